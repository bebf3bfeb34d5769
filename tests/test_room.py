"""The queue's room: what each key has for itself, what is for all, and who waits for whom."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.room import RATE, Room, cells_for, cells_of
from service.errors import QueueFull

LIMIT = 100


def room(weights: dict[str, float] | None = None, rate: float = 0.0) -> Room:
    cells = cells_of(bytearray(8 * cells_for(len(weights or {}))))
    made = Room(max_batch_rows=32, max_queue_rows=LIMIT, clock=lambda: 0.0, cells=cells, weights=weights).begin()
    cells[RATE] = rate
    return made


def fill(made: Room, holder: str, rows: int = 1) -> int:
    """Let it in until it is refused; how many rows it got."""
    had = 0
    while True:
        try:
            made.enter(rows, math.inf, holder)
        except QueueFull:
            return had
        made.arrived(rows, holder)
        had += rows


def test_without_keys_all_of_the_queue_is_everybodys() -> None:
    made = room()
    assert fill(made, "") == LIMIT
    with pytest.raises(QueueFull, match=r"the queue holds 100 rows, the limit is 100 \(max_queue_rows\)"):
        made.check(1, math.inf, cold=False)
    made.arrived(-1, "")
    made.leave(1, "", background=False)
    made.check(1, math.inf, cold=False)


def test_with_one_key_it_is_that_ones() -> None:
    assert fill(room({"only": 5.0}), "only") == LIMIT


def test_a_flood_of_one_key_leaves_the_others_their_part() -> None:
    """Half is for all; of the other half 3 of 5, 1 of 5 and 1 of 5 are reserved."""
    made = room({"flood": 3, "one": 1, "two": 1})
    assert fill(made, "flood") == 50 + 30
    assert fill(made, "one") == 10
    assert fill(made, "two") == 10
    with pytest.raises(QueueFull, match="holds 10 rows of this key, 100 in all, and has room for 0 more of it"):
        made.check(1, math.inf, "two", cold=False)
    with pytest.raises(QueueFull):
        made.check(1, math.inf, "", cold=False)


@given(
    st.dictionaries(st.sampled_from("abcde"), st.floats(0.01, 1000), max_size=5),
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(-20, 20)), max_size=80),
)
def test_what_is_reserved_is_there_whatever_comes_and_goes(
    weights: dict[str, float], moves: list[tuple[str, int]]
) -> None:
    made = room(weights)
    held = dict.fromkeys("abcdef", 0)
    for holder, move in moves:
        rows = max(move, -held[holder])
        if rows > 0:
            try:
                made.enter(rows, math.inf, holder)
            except QueueFull:
                continue
        else:
            made.leave(-rows, holder, background=False)
        held[holder] += rows
        made.arrived(rows, holder)
        assert made.queued == made.ready == sum(held.values()) <= LIMIT
    whole = sum(weights.values())
    for holder, weight in weights.items():
        own = int(LIMIT / 2 * weight / whole)
        if held[holder] < own:
            made.check(own - held[holder], math.inf, holder, cold=False)
    for holder, rows in held.items():
        made.leave(rows, holder, background=False)
        made.arrived(-rows, holder)
    assert (made.queued, made.ready) == (0, 0)
    for holder in weights or [""]:
        made.check(min(LIMIT, 50), math.inf, holder, cold=False)


def test_a_request_that_its_part_could_never_hold_has_the_whole_queue_while_it_is_free() -> None:
    made = room(dict.fromkeys("abcdefghij", 1.0))
    made.enter(LIMIT, math.inf, "a")
    with pytest.raises(QueueFull):
        made.check(1, math.inf, "b", cold=False)


def test_nobody_is_refused_for_the_time_that_anothers_flood_takes() -> None:
    """At 10 rows a second 80 rows take 8 s; two equal keys are served in turn, so five of the other's take 1 s."""
    made = room({"flood": 1, "quiet": 1}, rate=10.0)
    for _ in range(70):
        made.enter(1, math.inf, "flood")
        made.arrived(1, "flood")
    with pytest.raises(QueueFull, match="the 70 rows in the queue take about 7.0 s"):
        made.check(1, 5.0, "flood", cold=False)
    made.check(1, 0.1, "quiet", cold=False)
    for _ in range(5):
        made.enter(1, math.inf, "quiet")
        made.arrived(1, "quiet")
    made.check(1, 3.5, "quiet", cold=False)
    with pytest.raises(QueueFull, match="the 10 rows in the queue take about 1.0 s"):
        made.check(1, 3.0, "quiet", cold=False)


def test_cold_rows_of_one_key_leave_room_for_anothers() -> None:
    made = room({"cold": 1, "other": 1})
    for _ in range(56):
        made.enter(1, math.inf, "cold", cold=True)
    with pytest.raises(QueueFull, match="56 rows wait for adapters to be loaded.* 56 of one key"):
        made.check(1, math.inf, "cold", cold=True)
    made.check(19, math.inf, "cold", cold=False)
    made.check(19, math.inf, "other", cold=True)
    with pytest.raises(QueueFull, match="of the queue's 100"):
        made.check(20, math.inf, "other", cold=True)


def test_a_batch_leaves_half_to_the_keys_other_requests_and_works_on_under_anothers_flood() -> None:
    alone = room()
    alone.enter(50, math.inf, "")
    alone.check(50, math.inf, "", cold=False, spare=True)
    alone.enter(1, math.inf, "")
    with pytest.raises(QueueFull):
        alone.check(1, math.inf, "", cold=False, spare=True)
    made = room({"flood": 1, "batch": 1})
    assert fill(made, "flood") == 75
    made.enter(11, math.inf, "batch")
    made.check(1, math.inf, "batch", cold=False, spare=True)
    made.enter(1, math.inf, "batch")
    with pytest.raises(QueueFull):
        made.check(1, math.inf, "batch", cold=False, spare=True)
    made.check(13, math.inf, "batch", cold=False)
