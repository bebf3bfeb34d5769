"""What a batch must know of the heads that see time: whose they are, and which pages make a job's vector of its frames.

Batches without one have none of this, and cost nothing by it. It knows no device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from adapters.config import HeadKind
from adapters.forward.streams import Job

Array = TypeVar("Array")


@dataclass(frozen=True)
class TimedKey:
    """``jobs`` with heads over frames, each of at most ``features`` groups of pages; ``groups`` are all different ones.

    ``kinds`` are the heads that occur. The last of the groups is blank, and so is what the numbers have too many.
    """

    kinds: tuple[HeadKind, ...]
    jobs: int
    features: int
    groups: int

    def shapes(self, answers: int, frames: int) -> tuple[tuple[int, ...], ...]:
        """Of the table's parts, in the order of ``TimedTable``, in a batch of so many answers and frames."""
        return (answers,), (self.jobs,), (self.jobs, self.features), (self.groups, frames + 1), (self.groups,)


@dataclass(frozen=True)
class TimedTable(Generic[Array]):
    """The parts of a table for heads over frames, as views of it.

    ``vectors`` (answers,): where each job's vector is among the answers' means, followed by the vectors made of frames;
    ``jobs`` (jobs,): for which answers these are made; ``places`` (jobs, features): where in ``groups`` their pages
    are; ``groups`` (groups, frames + 1): the page for each frame, and the one of the positions; ``attends`` (groups,):
    whether it is an attention.
    """

    vectors: Array
    jobs: Array
    places: Array
    groups: Array
    attends: Array

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, ...]], packed: Any) -> TimedTable[Array]:
        """Of an array or a tensor (integers,) and what ``TimedKey.shapes`` says."""
        return cls(*split(packed, shapes))


@dataclass(frozen=True)
class Timed:
    """The jobs of a batch that have such heads, by number, and how many groups their tasks have together.

    ``starts``: the pages of every different head -> the first of its groups.
    """

    numbers: list[int]
    starts: dict[tuple[int, ...], int]
    groups: int

    @classmethod
    def among(cls, jobs: Sequence[Job]) -> Timed | None:
        """None where no job has such a head."""
        numbers = [at for at, job in enumerate(jobs) if job.meta.groups]
        if not numbers:
            return None
        starts: dict[tuple[int, ...], int] = {}
        groups = 0
        for job in (jobs[at] for at in numbers):
            if job.pages not in starts:
                starts[job.pages] = groups
                groups += job.meta.groups
        return cls(numbers, starts, groups)

    def key(self, jobs: Sequence[Job], least: int) -> TimedKey:
        """With room for at least so many jobs; the same for the same jobs in another order."""
        metas = [jobs[at].meta for at in self.numbers]
        count = max(least, len(metas))
        return TimedKey(
            kinds=tuple(sorted({meta.head for meta in metas})),
            jobs=count,
            features=power_of_two(max(meta.groups for meta in metas)),
            groups=max(count, power_of_two(self.groups)) + 1,
        )

    def fill(self, table: TimedTable[NDArray[np.int64]], jobs: Sequence[Job]) -> None:
        """Write what a table of zeros is to hold."""
        answers, blank = len(table.vectors), len(table.groups) - 1
        table.vectors[:] = np.arange(answers)
        table.vectors[self.numbers] = answers + np.arange(len(self.numbers))
        table.jobs[: len(self.numbers)] = self.numbers
        table.places[:] = blank
        for at, number in enumerate(self.numbers):
            meta, start = jobs[number].meta, self.starts[jobs[number].pages]
            table.places[at, : meta.groups] = np.arange(start, start + meta.groups)
        for job in {jobs[at].pages: jobs[at] for at in self.numbers}.values():
            meta, start = job.meta, self.starts[job.pages]
            own = slice(start, start + meta.groups)
            pages = np.array(job.pages[meta.class_pages :]).reshape(meta.groups, -1)
            if meta.head == "attention":
                table.groups[own, :-1], table.groups[own, -1] = pages[:, :1], pages[:, 1]
                table.attends[own] = 1
            else:
                table.groups[own, : meta.frames] = pages


def split(packed: Any, shapes: Iterable[tuple[int, ...]]) -> Iterator[Any]:
    """An array or a tensor (integers,) as views of these shapes, one after another."""
    start = 0
    for shape in shapes:
        yield packed[start : start + prod(shape)].reshape(shape)
        start += prod(shape)


def power_of_two(count: int) -> int:
    """The smallest one that is not less."""
    return 1 << (count - 1).bit_length()
