"""A batch as a table: what each job's rows went through, whatever pictures its neighbours share with it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from adapters.config import Activation, SiteName
from adapters.forward.plan import (
    AFTER,
    BEFORE,
    FRAMES,
    HAS_AFTER,
    HAS_BEFORE,
    SITES,
    SLOT,
    SLOTS,
    SOURCE,
    TRAINED,
    Plan,
    padded,
    plan_of,
)
from adapters.forward.streams import Job, picture_of
from adapters.meta import AdapterMeta

DEPTH = 5
FIRST = {1: 0, 2: 2, 3: 2, 4: 4, 5: DEPTH, 6: DEPTH}
"""Each slot's first adapted block; 5 and 6 adapt none."""
LENGTHS = (1, 1, 1, 3, 2)
"""Frames of each picture."""
ACTS: dict[int, dict[SiteName, Activation]] = {3: {"parallel": "gelu"}, 4: {"qkv": "none"}}
"""What slots do elsewhere or otherwise than ReLU at ``parallel``."""


HEADS = {1: (1,), 2: (2, 3, 4), 3: (5,), 4: (6, 7), 5: (8, 9), 6: (10,)}
"""Each slot's pages."""


def meta(slot: int, frames: int, mean: float) -> AdapterMeta:
    return AdapterMeta(
        digest=str(slot), modality="image", frames=frames, classes=3, score="softmax",
        pool=("cls", "avg")[slot % 2], norm=("frozen", "trained")[slot in (3, 6)],
        acts={} if FIRST[slot] == DEPTH else {"parallel": "relu", **ACTS.get(slot, {})},
        temporal=frozenset(), parameters=0,
        first=FIRST[slot], normalisation=(mean,),
    )  # fmt: skip


def job(picture: int | None, slot: int, mean: float = 0.0) -> Job:
    frames = LENGTHS[picture or 0]
    return Job(np.zeros((frames, 3, 2, 2), np.uint8), slot, HEADS[slot], meta(slot, frames, mean), picture)


Row = tuple[object, ...]


def walked(plan: Plan, jobs: list[Job]) -> list[list[Row]]:
    """What each job's rows are after the last block: their picture, frame and normalisation, then block by slot.

    The prefix cache has what it says it has, and is given the tokens of a picture that no adapter has touched.
    """
    rows: list[Row] = []
    for at in plan.inputs:
        seen = jobs[at]
        rows += [
            (at if seen.picture is None else seen.picture, t, seen.meta.normalisation) for t in range(len(seen.pixels))
        ]
    assert len(rows) == plan.key.input_rows
    joins = dict(plan.key.joins)
    for block in range(DEPTH + 1):
        for keep in (keep for keep in plan.keeps if keep.block == block):
            assert rows[keep.start : keep.stop] == tokens_of(keep.picture)
        there = len(rows)
        for picture in (picture for begin, picture in plan.resumed if begin == block):
            rows += tokens_of(picture)
        while len(rows) < there + joins.get(block, 0):
            rows.append(rows[plan.table.rows[SOURCE, len(rows)]])
        if block == DEPTH:
            break
        for at, row in enumerate(rows):
            slot = plan.table.rows[SITES, at] if plan.key.sites else 0
            if slot and block >= FIRST[slot]:
                assert block >= plan.key.first
                rows[at] = (*row, (block, slot))
    assert len(rows) == plan.key.rows == plan.table.rows.shape[1]
    return [[rows[start + t] for t in range(n)] for start, n in zip(plan.starts, plan.frames, strict=True)]


def tokens_of(picture: Any) -> list[Row]:
    """A picture's rows that no adapter has touched."""
    named, normalisation = picture
    return [(named, t, normalisation) for t in range(LENGTHS[named])]


def alone(number: int, one: Job) -> list[Row]:
    adapted = tuple((block, one.slot) for block in range(FIRST[one.slot], DEPTH))
    picture = number if one.picture is None else one.picture
    return [(picture, t, one.meta.normalisation, *adapted) for t in range(len(one.pixels))]


jobs_lists = st.lists(
    st.builds(job, st.one_of(st.none(), st.integers(0, 4)), st.sampled_from(list(FIRST)), st.sampled_from([0.0, 0.5])),
    min_size=1,
    max_size=12,
)


@given(jobs_lists)
def test_every_row_goes_through_what_it_would_alone(jobs: list[Job]) -> None:
    plan = plan_of(jobs)
    assert walked(plan, jobs) == [alone(number, one) for number, one in enumerate(jobs)]
    assert [b for b, _ in plan.key.joins] == sorted({b for b, _ in plan.key.joins})


class Known:
    """The prefix cache: of some pictures the tokens before some blocks."""

    def __init__(self, blocks: dict[int, set[int]]) -> None:
        self.blocks = blocks

    def last(self, picture: Any, block: int) -> int:
        return max((known for known in self.blocks.get(picture[0], ()) if known <= block), default=0)


known = st.builds(Known, st.dictionaries(st.integers(0, 4), st.sets(st.integers(1, DEPTH), max_size=3)))


@given(jobs_lists, known)
def test_every_row_goes_through_what_it_would_alone_also_from_the_cache_on(jobs: list[Job], known: Known) -> None:
    plan = plan_of(jobs, pad=True, prefixes=known)
    if plan.resumed or plan.keeps:
        assert walked(plan, jobs) == [alone(number, one) for number, one in enumerate(jobs)]
    named = [one for one in jobs if one.picture is not None]
    missing = {
        (picture_of(one), one.meta.first)
        for one in named
        if one.meta.first and known.last((one.picture,), one.meta.first) < one.meta.first
    }
    assert {(keep.picture, keep.block) for keep in plan.keeps} == missing
    assert len(plan.keeps) == len(missing)
    begins = {(known.last((one.picture,), one.meta.first), picture_of(one)) for one in named}
    assert sorted(plan.resumed, key=repr) == sorted((pair for pair in begins if pair[0]), key=repr)


@given(jobs_lists)
def test_nothing_is_computed_twice(jobs: list[Job]) -> None:
    plan = plan_of(jobs)
    streams = {
        (
            ("own", number) if one.picture is None else one.picture,
            one.meta.normalisation,
            one.slot if one.meta.acts else 0,
        ): one
        for number, one in enumerate(jobs)
    }
    assert plan.key.rows == sum(len(one.pixels) for one in streams.values())
    pictures = {(picture, normalisation): one for (picture, normalisation, _), one in streams.items()}
    assert plan.key.input_rows == sum(len(one.pixels) for one in pictures.values())


@given(jobs_lists)
def test_neighbours_in_time_are_of_the_same_clip(jobs: list[Job]) -> None:
    plan = plan_of(jobs)
    for start, frames in zip(plan.starts, plan.frames, strict=True):
        clip = np.arange(start, start + frames)
        assert plan.table.rows[HAS_BEFORE, clip].tolist() == [t > 0 for t in range(frames)]
        assert plan.table.rows[HAS_AFTER, clip].tolist() == [t < frames - 1 for t in range(frames)]
        assert all(plan.table.rows[AFTER, a] == b and plan.table.rows[BEFORE, b] == a for a, b in pairwise(clip))


def test_pictures_of_their_own_stay_in_the_order_of_the_jobs() -> None:
    plan = plan_of([job(None, 3), job(1, 1), job(None, 3), job(3, 5)])
    assert plan.inputs == (0, 1, 2, 3)
    assert plan.starts.tolist() == [0, 1, 2, 3]
    assert plan.table.rows[SLOTS].tolist() == [3, 1, 3, 5, 5, 5]


def test_tasks_from_the_middle_on_join_there() -> None:
    plan = plan_of([job(0, 2), job(0, 3), job(0, 1), job(0, 5), job(0, 6)])
    assert plan.key.joins == ((0, 1), (2, 2))
    assert (plan.key.input_rows, plan.key.rows, plan.key.first) == (1, 4, 0)
    assert Counter(plan.starts.tolist())[0] == 2  # both that adapt nothing


def test_sizes_of_padded_batches() -> None:
    assert [padded(n) for n in (1, 2, 3, 5, 8, 9, 17, 32)] == [1, 2, 4, 8, 8, 16, 24, 32]


@given(jobs_lists, st.booleans(), st.randoms(use_true_random=False))
def test_another_order_is_the_same_key(jobs: list[Job], pad: bool, random: Random) -> None:
    mixed = random.sample(jobs, len(jobs))
    assert plan_of(jobs, pad=pad).key == plan_of(mixed, pad=pad).key


@given(jobs_lists, st.booleans())
def test_every_job_finds_its_vectors_and_its_own_pages(jobs: list[Job], pad: bool) -> None:
    plan = plan_of(jobs, pad=pad)
    key, table = plan.key, plan.table
    for at, (one, start, frames) in enumerate(zip(jobs, plan.starts, plan.frames, strict=True)):
        mode = key.modes.index((one.meta.pool, one.meta.norm))
        there = [mode * key.rows + start + min(t, frames - 1) for t in range(key.frames)]
        assert table.vectors[at].tolist() == there
        assert table.jobs[:, at][[SLOT, TRAINED, FRAMES]].tolist() == [one.slot, one.meta.norm == "trained", frames]
        assert tuple(table.heads[table.places[at, : len(one.pages)]]) == one.pages
    assert not table.heads[len({page for one in jobs for page in one.pages}) :].any()
    assert plan.packed.shape == (key.integers,)


@given(jobs_lists)
def test_blank_rows_use_no_slot_and_neighbour_themselves(jobs: list[Job]) -> None:
    plan, exact = plan_of(jobs, pad=True), plan_of(jobs)
    rows = exact.key.rows
    assert (plan.key.rows, plan.key.first) == ((rows, exact.key.first) if exact.key.joins else (padded(rows), 0))
    assert plan.key.joins == exact.key.joins
    assert np.array_equal(plan.table.rows[:, :rows], exact.table.rows)
    blank = plan.table.rows[:, rows:]
    assert not np.delete(blank, [SOURCE, BEFORE, AFTER], axis=0).any()
    assert all((blank[line] == np.arange(rows, plan.key.rows)).all() for line in (SOURCE, BEFORE, AFTER))
    assert not plan.table.jobs[[SLOT, TRAINED], len(jobs) :].any()
    assert (plan.table.jobs[FRAMES] >= 1).all()
