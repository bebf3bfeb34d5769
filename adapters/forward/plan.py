"""What a batch needs to know, as one packed table of integers: slots, neighbours in time, shared rows, heads.

Everything that changes the computation's shape is in the ``BatchKey``, everything else is data in the table, so
one CUDA graph serves every batch of a key. It knows no device.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from math import prod
from typing import Any, Generic, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from adapters.config import ACTIVATIONS, Activation, Pool, SiteName
from adapters.forward.streams import Job, Prefixes, picture_of, streams_of
from adapters.forward.timed import Timed, TimedKey, TimedTable, power_of_two, split

SLOTS, SOURCE, BEFORE, AFTER, HAS_BEFORE, HAS_AFTER, SITES = range(7)
"""Lines of the table's rows; from ``SITES`` on, for each site of the key those of ``SLOTS_AT`` and so on."""
SLOTS_AT, ACTS_AT, PATCHES_AT, LINES_PER_SITE = range(4)
"""A site's own lines: its slots, its activations, and whether only the patches' tokens are adapted."""
SLOT, TRAINED, FRAMES = range(3)
"""Lines of the table's jobs: the slot, whether it has a norm of its own, rows of the job."""
SITE_ORDER: tuple[SiteName, ...] = get_args(SiteName)
"""The one order in which a key names sites."""

Array = TypeVar("Array")


@dataclass(frozen=True)
class SiteKey:
    """A site in use, the activations that occur there, whether any row mixes in time, and whether any spares tokens."""

    site: SiteName
    acts: tuple[Activation, ...]
    temporal: bool
    patches: bool = False


@dataclass(frozen=True)
class BatchKey:
    """The shape of a batch; the same for the same batch in another order.

    ``rows`` at its end, and the ``sites`` and ways of pooling that occur. ``first`` is the first block that any row
    adapts. ``joins`` holds (block, rows) for the rows that are not there from the beginning, in the order of the
    blocks: those that come from the prefix cache, and behind them copies of rows that are there. ``jobs`` are its
    answers, each of at most ``frames`` rows and at most ``pages`` pages of its head; ``heads`` are the different pages
    of all, ``seconds`` those of heads that take a second vector, with a blank one; 0 where there are no such heads.
    These may be larger than what is there: the rest is blank. ``timed`` is of the heads that see time.
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
    seconds: int = 0
    timed: TimedKey | None = None

    @property
    def input_rows(self) -> int:
        """Rows that come as pixels."""
        return self.rows - sum(rows for _, rows in self.joins)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the table's parts, in the order of ``Table``."""
        lines = SITES + LINES_PER_SITE * len(self.sites)
        timed = sum(map(prod, self.timed_shapes)) if self.timed else 0
        return (
            (lines, self.rows), (3, self.jobs), (self.jobs, self.frames), (self.jobs, self.pages), (self.heads,),
            (self.jobs if self.seconds else 0, self.frames), (self.jobs if self.seconds else 0, self.pages),
            (self.seconds,), (timed,),
        )  # fmt: skip

    @property
    def timed_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the parts for heads that see time, in the order of ``TimedTable``; none where there are no such heads."""
        return self.timed.shapes(self.jobs, self.frames) if self.timed else ()

    @property
    def integers(self) -> int:
        """Length of the packed table."""
        return sum(map(prod, self.shapes))


@dataclass(frozen=True)
class Table(Generic[Array]):
    """The parts of a packed table, as views of it.

    ``rows`` (6 + 3 sites, rows); ``jobs`` (3, jobs); ``vectors`` (jobs, frames): which of the pooled vectors, row after
    row and mode after mode, are each job's, its last one repeated; ``places`` (jobs, pages): where in ``heads`` its
    pages are; ``heads`` (heads,): page numbers. ``second_vectors``, ``second_places`` and ``seconds`` are the same of
    the jobs' second vectors, and of no job where the key has none; ``timed`` (integers,): see ``TimedTable``.
    """

    rows: Array
    jobs: Array
    vectors: Array
    places: Array
    heads: Array
    second_vectors: Array
    second_places: Array
    seconds: Array
    timed: Array

    @classmethod
    def of(cls, key: BatchKey, packed: Any) -> Table[Array]:
        """Of an array or a tensor (integers,)."""
        return cls(*split(packed, key.shapes))


class Keep(NamedTuple):
    """A picture's tokens before a block: the rows from ``start`` to ``stop`` there."""

    picture: Hashable
    block: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """``packed`` int64 (integers,), see ``Table``; ``inputs`` the jobs whose pixels are the batch's, one after another.

    ``frames`` (jobs,) rows per job; ``starts`` (jobs,) its first row, which several jobs may share. ``resumed``: the
    pictures whose tokens before a block come from the prefix cache, in the order of their rows. ``keeps``: what it is
    to have of this batch.
    """

    key: BatchKey
    packed: NDArray[np.int64]
    inputs: tuple[int, ...]
    frames: NDArray[np.int64]
    starts: NDArray[np.int64]
    resumed: tuple[tuple[int, Hashable], ...] = ()
    keeps: tuple[Keep, ...] = ()

    @property
    def table(self) -> Table[NDArray[np.int64]]:
        return Table.of(self.key, self.packed)


def padded(count: int) -> int:
    """Rows or jobs of the graph that serves ``count``: powers of two up to 8, then multiples of 8."""
    return power_of_two(count) if count <= 8 else -(-count // 8) * 8


def plan_of(jobs: Sequence[Job], *, pad: bool = False, prefixes: Prefixes | None = None) -> Plan:
    """Lay the streams out one after another, a clip's rows side by side in time order.

    ``pad`` makes few keys of many batches, for a runtime that keeps something for each: blank rows use slot 0 and
    neighbour only themselves, and every block is a block that some row may adapt. A batch with joins, or of which the
    prefix cache keeps something, stays as it is: their shapes are too many. ``prefixes`` says what that cache holds.
    """
    streams = streams_of(jobs, prefixes)
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
        patches = np.repeat([site in job.meta.patches for job in members], frames)
        temporal = any(site in job.meta.temporal for job in members)
        keys.append(SiteKey(site, acts, temporal, bool(patches.any())))
        lines += [mine, codes, patches]
    joined = zip(streams.enters[streams.pictures :], frames[streams.pictures :], strict=True)
    joins = tuple(
        (block, int(sum(rows for _, rows in group))) for block, group in groupby(joined, key=lambda pair: pair[0])
    )
    pad = pad and not joins and not streams.keeps
    rows, longest = int(frames.sum()), int(frames.max())
    size = padded(rows) if pad else rows
    timed, pages = Timed.among(jobs), [job.pages for job in jobs]
    twice = any(job.meta.twice for job in jobs)
    if timed or twice:  # the other pages of such a head make its job's vector, or are for its second one
        pages = [
            own[: job.meta.class_pages] if job.meta.groups or job.meta.twice else own
            for own, job in zip(pages, jobs, strict=True)
        ]
    heads, places = np.unique(np.concatenate(pages), return_inverse=True)
    others = [job.pages[job.meta.class_pages :] if job.meta.twice else () for job in jobs]
    seconds, second_places = np.unique([0, *chain(*others)], return_inverse=True) if twice else (places[:0],) * 2
    answers = max(size, padded(len(jobs))) if pad else len(jobs)
    span = power_of_two(longest) if pad else longest
    key = BatchKey(
        rows=size,
        sites=tuple(keys),
        modes=tuple(sorted({mode for job in jobs for mode in _modes_of(job)})),
        first=0 if pad else min((job.meta.first for job in members if job.meta.acts), default=0),
        joins=joins,
        jobs=answers,
        frames=span,
        pages=power_of_two(max(map(len, pages))),
        heads=max(answers, power_of_two(len(heads))),
        seconds=max(answers, power_of_two(len(seconds))) if twice else 0,
        timed=timed.key(jobs, size // span if pad else 0) if timed else None,
    )
    plan = Plan(
        key, np.zeros(key.integers, np.int64), tuple(streams.jobs[: streams.pictures]), frames[of_job], starts[of_job],
        tuple((streams.enters[at], picture_of(members[at])) for at in sorted(streams.resumed)),
        tuple(
            Keep(picture_of(members[at]), block, int(starts[at]), int(starts[at] + frames[at]))
            for at, block in streams.keeps
        ),
    )  # fmt: skip
    table = plan.table
    table.rows[:, :rows] = lines
    table.rows[SOURCE : AFTER + 1, rows:] = np.arange(rows, size)
    _fill_jobs(table, plan, jobs)
    table.heads[: len(heads)] = heads
    _fill_places(table.places, pages, places)
    if twice:  # page 0 comes first among them, and is blank
        table.seconds[: len(seconds)] = seconds
        _fill_places(table.second_places, others, second_places[1:])
    if timed:
        timed.fill(TimedTable.of(key.timed_shapes, table.timed), jobs)
    return plan


def _modes_of(job: Job) -> tuple[tuple[Pool, str], tuple[Pool, str]]:
    """How its vectors are pooled: the first, and the second, which is the same where it has only one."""
    if job.meta.twice:
        return ("cls", job.meta.norm), ("avg", job.meta.norm)
    return ((job.meta.pool, job.meta.norm),) * 2


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
    step = np.minimum(np.arange(key.frames), plan.frames[:, None] - 1)
    for at, vectors in enumerate((table.vectors, table.second_vectors)[: 2 if key.seconds else 1]):
        modes = np.array([key.modes.index(_modes_of(job)[at]) for job in jobs])
        vectors[:count] = (modes * key.rows + plan.starts)[:, None] + step


def _fill_places(places: NDArray[np.int64], pages: Sequence[tuple[int, ...]], found: NDArray[np.int64]) -> None:
    """``found``: of every job's pages, one job after another, the places in ``heads``."""
    counts = np.array([len(own) for own in pages])
    places[np.repeat(np.arange(len(pages)), counts), _positions(counts)] = found.reshape(-1)


def _positions(frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... within each of the runs."""
    return np.arange(frames.sum()) - np.repeat(np.cumsum(frames) - frames, frames)
