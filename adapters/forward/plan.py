"""What a batch needs to know, as one packed table of integers: slots, neighbours in time, shared rows, heads.

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
from math import prod
from typing import Any, Generic, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from adapters.config import ACTIVATIONS, Activation, Pool, SiteName
from adapters.meta import AdapterMeta

SLOTS, SOURCE, BEFORE, AFTER, HAS_BEFORE, HAS_AFTER, SITES = range(7)
"""Lines of the table's rows; from ``SITES`` on, two lines per site of the key: its slots and its activations."""
SLOT, TRAINED, FRAMES = range(3)
"""Lines of the table's jobs: the slot, whether it has a norm of its own, rows of the job."""
SITE_ORDER: tuple[SiteName, ...] = get_args(SiteName)
"""The one order in which a key names sites."""

Array = TypeVar("Array")


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
    """The shape of a batch; the same for the same batch in another order.

    ``rows`` at its end, and the ``sites`` and ways of pooling that occur. ``first`` is the first block that any row
    adapts. ``joins`` holds (block, rows) for the rows that are not there from the beginning, in the order of the
    blocks. ``jobs`` are its answers, each of at most ``frames`` rows and at most ``pages`` pages of its head;
    ``heads`` are the different pages of all. These may be larger than what is there: the rest is blank.
    """

    rows: int
    sites: tuple[SiteKey, ...]
    modes: tuple[tuple[Pool, str], ...]
    first: int = 0
    joins: tuple[tuple[int, int], ...] = ()
    jobs: int = 1
    frames: int = 1
    pages: int = 1
    heads: int = 1

    @property
    def input_rows(self) -> int:
        """Rows that come as pixels."""
        return self.rows - sum(rows for _, rows in self.joins)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the table's parts, in the order of ``Table``."""
        lines = SITES + 2 * len(self.sites)
        return (lines, self.rows), (3, self.jobs), (self.jobs, self.frames), (self.jobs, self.pages), (self.heads,)

    @property
    def integers(self) -> int:
        """Length of the packed table."""
        return sum(map(prod, self.shapes))


@dataclass(frozen=True)
class Table(Generic[Array]):
    """The parts of a packed table, as views of it.

    ``rows`` (7 + 2 sites, rows); ``jobs`` (3, jobs); ``vectors`` (jobs, frames): which of the pooled vectors, row after
    row and mode after mode, are each job's, its last one repeated; ``places`` (jobs, pages): where in ``heads`` its
    pages are; ``heads`` (heads,): page numbers.
    """

    rows: Array
    jobs: Array
    vectors: Array
    places: Array
    heads: Array

    @classmethod
    def of(cls, key: BatchKey, packed: Any) -> Table[Array]:
        """Of an array or a tensor (integers,)."""
        parts, start = [], 0
        for shape in key.shapes:
            parts.append(packed[start : start + prod(shape)].reshape(shape))
            start += prod(shape)
        return cls(*parts)


@dataclass(frozen=True)
class Plan:
    """``packed`` int64 (integers,), see ``Table``; ``inputs`` the jobs whose pixels are the batch's, one after another.

    ``frames`` (jobs,) rows per job; ``starts`` (jobs,) its first row, which several jobs may share.
    """

    key: BatchKey
    packed: NDArray[np.int64]
    inputs: tuple[int, ...]
    frames: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def table(self) -> Table[NDArray[np.int64]]:
        return Table.of(self.key, self.packed)


def padded(count: int) -> int:
    """Rows or jobs of the graph that serves ``count``: powers of two up to 8, then multiples of 8."""
    return power_of_two(count) if count <= 8 else -(-count // 8) * 8


def power_of_two(count: int) -> int:
    """The smallest one that is not less."""
    return 1 << (count - 1).bit_length()


def plan_of(jobs: Sequence[Job], *, pad: bool = False) -> Plan:
    """Lay the streams out one after another, a clip's rows side by side in time order.

    ``pad`` makes few keys of many batches, for a runtime that keeps something for each: blank rows use slot 0 and
    neighbour only themselves, and every block is a block that some row may adapt. A batch with joins stays as it is,
    their shapes are too many.
    """
    streams = _streams(jobs)
    members = [jobs[job] for job in streams.jobs]
    frames = np.array([job.pixels.shape[0] for job in members])
    starts = np.cumsum(frames) - frames
    of_job = np.array(streams.of_job)
    sites = sorted({site for job in members for site in job.meta.acts}, key=SITE_ORDER.index)
    lines, keys = _row_lines(members, frames, starts[streams.carriers]), []
    for site in sites:
        mine = np.repeat([job.slot if site in job.meta.acts else 0 for job in members], frames)
        codes = np.repeat([ACTIVATIONS.index(job.meta.acts.get(site, "none")) for job in members], frames)
        acts = tuple(ACTIVATIONS[c] for c in np.unique(codes[mine > 0]))
        keys.append(SiteKey(site, acts, any(site in job.meta.temporal for job in members)))
        lines += [mine, codes]
    joined = zip(members[streams.pictures :], frames[streams.pictures :], strict=True)
    joins = tuple(
        (block, int(sum(rows for _, rows in group)))
        for block, group in groupby(joined, key=lambda pair: pair[0].meta.first)
    )
    pad = pad and not joins
    rows, longest = int(frames.sum()), int(frames.max())
    size = padded(rows) if pad else rows
    heads, places = np.unique(np.concatenate([job.pages for job in jobs]), return_inverse=True)
    answers = max(size, padded(len(jobs))) if pad else len(jobs)
    key = BatchKey(
        rows=size,
        sites=tuple(keys),
        modes=tuple(sorted({(job.meta.pool, job.meta.norm) for job in jobs})),
        first=0 if pad else min((job.meta.first for job in members if job.meta.acts), default=0),
        joins=joins,
        jobs=answers,
        frames=power_of_two(longest) if pad else longest,
        pages=power_of_two(max(len(job.pages) for job in jobs)),
        heads=max(answers, power_of_two(len(heads))),
    )
    plan = Plan(key, np.zeros(key.integers, np.int64), tuple(streams.jobs[: streams.pictures]),
                frames[of_job], starts[of_job])  # fmt: skip
    table = plan.table
    table.rows[:, :rows] = lines
    table.rows[SOURCE : AFTER + 1, rows:] = np.arange(rows, size)
    _fill_jobs(table, plan, jobs)
    table.heads[: len(heads)] = heads
    _fill_places(table.places, jobs, places)
    return plan


def _row_lines(
    members: Sequence[Job], frames: NDArray[np.int64], carriers: NDArray[np.int64]
) -> list[NDArray[np.generic]]:
    """The lines before ``SITES``; ``carriers``: the first row of the stream that each is copied from."""
    index, position = np.arange(frames.sum()), _positions(frames)
    first, last = position == 0, position == np.repeat(frames, frames) - 1
    return [
        np.repeat([job.slot for job in members], frames),
        np.repeat(carriers, frames) + position,
        np.where(first, index, index - 1),
        np.where(last, index, index + 1),
        ~first,
        ~last,
    ]


def _fill_jobs(table: Table[NDArray[np.int64]], plan: Plan, jobs: Sequence[Job]) -> None:
    key, count = plan.key, len(jobs)
    table.jobs[FRAMES] = 1
    table.jobs[:, :count] = [job.slot for job in jobs], [job.meta.norm == "trained" for job in jobs], plan.frames
    modes = np.array([key.modes.index((job.meta.pool, job.meta.norm)) for job in jobs])
    step = np.minimum(np.arange(key.frames), plan.frames[:, None] - 1)
    table.vectors[:count] = (modes * key.rows + plan.starts)[:, None] + step


def _fill_places(places: NDArray[np.int64], jobs: Sequence[Job], found: NDArray[np.int64]) -> None:
    """``found``: of every job's pages, one job after another, the places in ``heads``."""
    counts = np.array([len(job.pages) for job in jobs])
    places[np.repeat(np.arange(len(jobs)), counts), _positions(counts)] = found.reshape(-1)


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
