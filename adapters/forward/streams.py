"""Which rows a batch computes: pictures that several jobs name are seen once, up to the block where their tasks part.

A *stream* is a picture seen by one slot; streams of a picture are the same up to the first block that one of them
adapts. So a batch begins with one stream for each picture, the one that is adapted last, and every other stream *joins*
as a copy of it right before its own first adapted block. Jobs whose adapters add nothing to the blocks are all the same
stream. A picture whose tokens before a block are in a cache begins there, for the streams that are adapted from that
block on. It knows no device.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adapters.meta import AdapterMeta


@dataclass(frozen=True)
class Job:
    """One input and the slot that answers it: ``pixels`` uint8 (frames, 3, height, width).

    Jobs with the same ``picture`` have equal pixels; None is like no other. ``embed``: the pooled vector is wanted too.
    """

    pixels: NDArray[np.uint8]
    slot: int
    pages: tuple[int, ...]
    meta: AdapterMeta
    picture: Hashable = None
    embed: bool = False

    def pooled(self) -> Job:
        """The same stream with no more than the mean over its frames, of a job whose head sees time."""
        meta = replace(self.meta, head="mean", groups=0, classes=1)
        return replace(self, pages=(0,), meta=meta)


class Prefixes(Protocol):
    """Of which pictures the tokens are known."""

    def last(self, picture: Hashable, block: int) -> int:
        """The last block, at most ``block``, before which a picture's tokens are known; 0 if there is none."""
        ...


@dataclass(frozen=True)
class Streams:
    """The distinct streams, in the order in which they come into the batch.

    The first ``pictures`` carry a picture from its pixels on. The others come in right before a block, which
    ``enters`` says (of the first it is 0), block after block, and for each block those first that are ``resumed``: they
    carry a picture from its tokens on. ``jobs``: a job for each stream. ``carriers``: the stream that each is copied
    from. ``of_job``: each job's stream. ``keeps``: the carriers, and the blocks before which the cache wants their
    tokens, which no adapter has touched there.
    """

    pictures: int
    jobs: list[int]
    carriers: list[int]
    enters: list[int]
    of_job: list[int]
    resumed: frozenset[int] = frozenset()
    keeps: tuple[tuple[int, int], ...] = ()


def picture_of(job: Job) -> Hashable:
    """Pixels that are normalised differently are another picture; None is like no other."""
    return None if job.picture is None else (job.picture, job.meta.normalisation)


def streams_of(jobs: Sequence[Job], prefixes: Prefixes | None = None) -> Streams:
    """The streams of a batch; without ``prefixes`` every picture begins with its pixels, and none is kept."""
    groups: dict[Hashable, dict[int, int]] = {}  # a picture, where it begins: a slot that sees it -> one of its jobs
    begins: dict[Hashable, int] = {}
    seen: list[tuple[Hashable, int]] = []
    for number, job in enumerate(jobs):
        picture = picture_of(job)
        begin = 0 if prefixes is None or picture is None else prefixes.last(picture, job.meta.first)
        group = number if picture is None else (picture, begin)
        slot = job.slot if job.meta.acts else 0
        groups.setdefault(group, {}).setdefault(slot, number)
        begins[group] = begin
        seen.append((group, slot))
    if len(groups) == len(jobs) and prefixes is None:
        alone = list(range(len(jobs)))
        return Streams(len(jobs), alone, alone, [0] * len(jobs), alone)

    def first(slot_job: tuple[int, int]) -> float:
        return jobs[slot_job[1]].meta.first if slot_job[0] else np.inf  # slot 0 is the bare backbone

    carriers = {group: max(slots.items(), key=first) for group, slots in groups.items()}
    coming = [(begins[group], False, group, pair) for group, pair in carriers.items()]
    coming += [
        (jobs[pair[1]].meta.first, True, group, pair)
        for group, slots in groups.items()
        for pair in slots.items()
        if pair != carriers[group]
    ]
    from_pixels = [one for one in coming if not one[0] and not one[1]]
    order = from_pixels + sorted((one for one in coming if one[0] or one[1]), key=lambda one: one[:2])
    place = {(group, slot): at for at, (_, _, group, (slot, _)) in enumerate(order)}
    return Streams(
        pictures=len(from_pixels),
        jobs=[job for _, _, _, (_, job) in order],
        carriers=[place[group, carriers[group][0]] for _, _, group, _ in order],
        enters=[block for block, _, _, _ in order],
        of_job=[place[stream] for stream in seen],
        resumed=frozenset(at for at, (block, copied, _, _) in enumerate(order) if block and not copied),
        keeps=() if prefixes is None else tuple(
            (place[group, carriers[group][0]], block)
            for group, slots in groups.items()
            for block in sorted({jobs[job].meta.first for job in slots.values() if jobs[job].picture is not None})
            if block > begins[group]
        ),
    )  # fmt: skip
