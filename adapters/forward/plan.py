"""What a batch needs to know, as one small table of integers: slots, neighbours in time, activations, shared rows.

Everything that changes the computation's shape is in the ``BatchKey``, everything else is data in the table, so
one CUDA graph serves every batch of a key. It knows no device.

Jobs that name the same picture share its rows. A *stream* is a picture seen by one slot; streams of a picture are the
same up to the first block that one of them adapts. So a batch begins with one stream for each picture, the one that is
adapted last, and every other stream *joins* as a copy of it right before its own first adapted block. Jobs whose
adapters add nothing to the blocks are all the same stream.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from adapters.config import ACTIVATIONS, Activation, Pool, SiteName
from adapters.meta import AdapterMeta

SLOTS, SOURCE, BEFORE, AFTER, HAS_BEFORE, HAS_AFTER, SITES = range(7)
"""Lines of the table; from ``SITES`` on, two lines per site of the key: its slots and its activations."""


@dataclass(frozen=True)
class Job:
    """One input and the slot that answers it: ``pixels`` uint8 (frames, 3, size, size).

    Jobs with the same ``picture`` have equal pixels; None is like no other.
    """

    pixels: NDArray[np.uint8]
    slot: int
    pages: tuple[int, ...]
    meta: AdapterMeta
    picture: Hashable = None


@dataclass(frozen=True)
class SiteKey:
    """A site in use, the activations that occur there, and whether any row mixes in time."""

    site: SiteName
    acts: tuple[Activation, ...]
    temporal: bool


@dataclass(frozen=True)
class BatchKey:
    """The shape of a batch: rows at its end, sites, ways of pooling.

    ``first`` is the first block that any row adapts. ``joins`` holds (block, rows) for the rows that are not there from
    the beginning, in the order of the blocks.
    """

    rows: int
    sites: tuple[SiteKey, ...]
    modes: tuple[tuple[Pool, str], ...]
    first: int = 0
    joins: tuple[tuple[int, int], ...] = ()

    @property
    def input_rows(self) -> int:
        """Rows that come as pixels."""
        return self.rows - sum(rows for _, rows in self.joins)


@dataclass(frozen=True)
class Plan:
    """``table`` int64 (7 + 2 sites, rows); ``inputs`` the jobs whose pixels are the batch's, one after another.

    ``frames`` (jobs,) rows per job; ``starts`` (jobs,) its first row, which several jobs may share.
    """

    key: BatchKey
    table: NDArray[np.int64]
    inputs: tuple[int, ...]
    frames: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def shared(self) -> bool:
        """Whether jobs share rows; if not, the rows are the jobs' own, one after another."""
        return bool(self.key.joins) or self.key.rows != self.frames.sum()

    @property
    def rows_of_jobs(self) -> NDArray[np.int64]:
        """Each job's rows, job after job: (sum of ``frames``,)."""
        return np.repeat(self.starts, self.frames) + _positions(self.frames)


def plan_of(jobs: Sequence[Job]) -> Plan:
    """Lay the streams out one after another, a clip's rows side by side in time order."""
    streams = _streams(jobs)
    members = [jobs[job] for job in streams.jobs]
    frames = np.array([job.pixels.shape[0] for job in members])
    starts = np.cumsum(frames) - frames
    index, position = np.arange(frames.sum()), _positions(frames)
    first, last = position == 0, position == np.repeat(frames, frames) - 1
    lines = [
        np.repeat([job.slot for job in members], frames),
        np.repeat(starts[streams.carriers], frames) + position,
        np.where(first, index, index - 1),
        np.where(last, index, index + 1),
        ~first,
        ~last,
    ]
    keys = []
    for site in dict.fromkeys(s for job in members for s in job.meta.acts):
        mine = np.repeat([job.slot if site in job.meta.acts else 0 for job in members], frames)
        codes = np.repeat([ACTIVATIONS.index(job.meta.acts.get(site, "none")) for job in members], frames)
        acts = tuple(ACTIVATIONS[c] for c in np.unique(codes[mine > 0]))
        keys.append(SiteKey(site, acts, any(site in job.meta.temporal for job in members)))
        lines += [mine, codes]
    joined = zip(members[streams.pictures :], frames[streams.pictures :], strict=True)
    key = BatchKey(
        rows=len(index),
        sites=tuple(keys),
        modes=tuple(dict.fromkeys((job.meta.pool, job.meta.norm) for job in jobs)),
        first=min((job.meta.first for job in members if job.meta.acts), default=0),
        joins=tuple(
            (block, int(sum(rows for _, rows in group)))
            for block, group in groupby(joined, key=lambda pair: pair[0].meta.first)
        ),
    )
    of_job = np.array(streams.of_job)
    table = np.stack(lines).astype(np.int64)
    return Plan(key, table, tuple(streams.jobs[: streams.pictures]), frames[of_job], starts[of_job])


@dataclass(frozen=True)
class _Streams:
    """The distinct streams: the first ``pictures`` carry a picture from the beginning, the others join, in order.

    ``jobs``: a job for each stream. ``carriers``: the stream that each is copied from. ``of_job``: each job's stream.
    """

    pictures: int
    jobs: list[int]
    carriers: list[int]
    of_job: list[int]


def _streams(jobs: Sequence[Job]) -> _Streams:
    pictures: dict[Hashable, dict[int, int]] = {}  # of each picture: the slot that sees it -> a job that says so
    seen: list[tuple[Hashable, int]] = []
    for number, job in enumerate(jobs):
        # Pixels that are normalised differently are another picture; None is like no other.
        picture = number if job.picture is None else (job.picture, job.meta.normalisation)
        slot = job.slot if job.meta.acts else 0
        pictures.setdefault(picture, {}).setdefault(slot, number)
        seen.append((picture, slot))
    if len(pictures) == len(jobs):
        alone = list(range(len(jobs)))
        return _Streams(len(jobs), alone, alone, alone)

    def first(slot_job: tuple[int, int]) -> float:
        return jobs[slot_job[1]].meta.first if slot_job[0] else np.inf  # slot 0 is the bare backbone

    carriers = {picture: max(slots.items(), key=first) for picture, slots in pictures.items()}
    others = [(p, pair) for p, slots in pictures.items() for pair in slots.items() if pair != carriers[p]]
    order = [*carriers.items(), *sorted(others, key=lambda other: first(other[1]))]
    place = {(picture, slot): at for at, (picture, (slot, _)) in enumerate(order)}
    return _Streams(
        pictures=len(pictures),
        jobs=[job for _, (_, job) in order],
        carriers=[place[picture, carriers[picture][0]] for picture, _ in order],
        of_job=[place[stream] for stream in seen],
    )


def _positions(frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... within each of the runs."""
    return np.arange(frames.sum()) - np.repeat(np.cumsum(frames) - frames, frames)
