"""The pure policy: fair between tasks, first in first out within one, nothing lost, nothing too large."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.scheduler import PATIENCE, Scheduler, Ticket

MAX = 8
tickets = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, MAX), st.integers(0, 20)), min_size=1, max_size=60)


def ticket(task: str, rows: int = 1, deadline: float = 1e9, *, background: bool = False) -> Ticket[int]:
    return Ticket(task, rows, deadline, 0, background)


def drain(scheduler: Scheduler[int], now: float = 0.0) -> list[list[Ticket[int]]]:
    batches = []
    while len(scheduler):
        batch, _ = scheduler.take(now)
        batches.append(batch)
    return batches


def test_one_row_is_not_starved_by_a_thousand() -> None:
    scheduler: Scheduler[int] = Scheduler(32)
    for _ in range(1000):
        scheduler.add(ticket("flood"))
    single = ticket("single")
    scheduler.add(single)
    batch, _ = scheduler.take(0.0)
    assert single in batch
    assert len(batch) == 32


def test_busy_tasks_get_equal_rows_whatever_their_clip_length() -> None:
    scheduler: Scheduler[int] = Scheduler(16)
    for _ in range(400):
        scheduler.add(ticket("pictures", 1))
    for _ in range(100):
        scheduler.add(ticket("clips", 8))
    served = {"pictures": 0, "clips": 0}
    for _ in range(20):
        for t in scheduler.take(0.0)[0]:
            served[t.task] += t.rows
    assert abs(served["pictures"] - served["clips"]) <= 16


def test_a_clip_as_large_as_the_batch_is_served_among_pictures() -> None:
    scheduler: Scheduler[int] = Scheduler(MAX)
    clip = ticket("clip", MAX)
    scheduler.add(clip)
    for _ in range(100):
        scheduler.add(ticket("a"))
        scheduler.add(ticket("b"))
    for _ in range(2 * MAX):
        if clip in scheduler.take(0.0)[0]:
            break
    else:
        pytest.fail("the clip never got its turn")


def test_a_batch_fills_up_when_only_one_task_waits() -> None:
    scheduler: Scheduler[int] = Scheduler(32)
    for _ in range(40):
        scheduler.add(ticket("only"))
    assert [len(b) for b in drain(scheduler)] == [32, 8]


def test_a_ticket_that_can_never_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="9 rows do not fit a batch of 8"):
        Scheduler[int](MAX).add(ticket("a", MAX + 1))


def test_removed_tickets_are_not_served() -> None:
    scheduler: Scheduler[int] = Scheduler(MAX)
    first, second = ticket("a", 3), ticket("a", 2)
    scheduler.add(first)
    scheduler.add(second)
    assert scheduler.remove(first)
    assert not scheduler.remove(first)
    assert scheduler.waiting_rows == 2
    assert scheduler.take(0.0)[0] == [second]
    assert scheduler.take(0.0) == ([], [])


@given(tickets)
def test_everything_is_served_once_in_order_and_within_the_bound(items: list[tuple[str, int, int]]) -> None:
    scheduler: Scheduler[int] = Scheduler(MAX)
    added = [ticket(task, rows) for task, rows, _ in items]
    for t in added:
        scheduler.add(t)
    assert scheduler.waiting_rows == sum(t.rows for t in added)
    batches = drain(scheduler)
    assert all(0 < sum(t.rows for t in b) <= MAX for b in batches)
    served = [t for b in batches for t in b]
    assert len(served) == len(added)
    for task in "abcd":
        assert [t for t in served if t.task == task] == [t for t in added if t.task == task]
    assert scheduler.waiting_rows == 0


@given(tickets, st.integers(0, 20))
def test_expired_tickets_come_back_apart(items: list[tuple[str, int, int]], now: int) -> None:
    scheduler: Scheduler[int] = Scheduler(MAX)
    for task, rows, deadline in items:
        scheduler.add(ticket(task, rows, deadline))
    served, expired = [], []
    while len(scheduler):
        batch, late = scheduler.take(now)
        served += batch
        expired += late
    assert all(t.deadline > now for t in served)
    assert all(t.deadline <= now for t in expired)
    assert len(served) + len(expired) == len(items)


@given(tickets)
def test_no_waiting_task_falls_behind_by_more_than_a_clip(items: list[tuple[str, int, int]]) -> None:
    """While two tasks both wait, their served rows differ by at most a clip: the DRR bound, where all fits a batch.

    Where it does not, who has room in a batch may go before who has none; those are bounded by the next test.
    """
    scheduler: Scheduler[int] = Scheduler(MAX * len(items))
    for task, rows, _ in items:
        scheduler.add(ticket(task, rows))
    waiting = Counter(task for task, _, _ in items)
    rows = dict.fromkeys("abcd", 0)
    for t in scheduler.take(0.0)[0]:
        rows[t.task] += t.rows
        waiting[t.task] -= 1
        busy = [rows[task] for task in "abcd" if waiting[task] > 0]
        assert not busy or max(busy) - min(busy) <= MAX
    assert len(scheduler) == 0


@given(tickets)
def test_no_waiting_task_is_passed_over_for_long(items: list[tuple[str, int, int]]) -> None:
    """A clip waits for its turns, in which three others may send 45 rows, and behind three that had no room."""
    scheduler: Scheduler[int] = Scheduler(MAX)
    for task, rows, _ in items:
        scheduler.add(ticket(task, rows))
    waiting = Counter(task for task, _, _ in items)
    passed = Counter[str]()
    while len(scheduler):
        batch, _ = scheduler.take(0.0)
        waiting -= Counter(t.task for t in batch)
        passed = Counter({task: passed[task] + 1 for task in waiting if task not in {t.task for t in batch}})
        assert all(batches <= 10 for batches in passed.values())


def test_the_background_waits_for_everybody_else_and_makes_small_batches() -> None:
    scheduler: Scheduler[int] = Scheduler(MAX, background_rows=2)
    behind = [ticket("", background=True) for _ in range(3)]
    clip = ticket("", 5, background=True)
    for t in (*behind, clip):
        scheduler.add(t)
    front = [ticket("a") for _ in range(MAX + 1)]
    for t in front:
        scheduler.add(t)
    assert scheduler.waits
    assert scheduler.waiting_rows == MAX + 1
    assert drain(scheduler) == [front[:MAX], front[MAX:], behind[:2], behind[2:], [clip]]
    assert not scheduler.waits


def test_what_is_asked_of_one_picture_goes_together_in_the_background() -> None:
    scheduler: Scheduler[int] = Scheduler(MAX)
    asked = [Ticket("", 1, 1e9, 0, True, picture) for picture in (b"a", b"a", b"b", None, None, *[b"c"] * (MAX + 1))]
    for t in asked:
        scheduler.add(t)
    assert [len(batch) for batch in drain(scheduler)] == [2, 1, 1, 1, MAX, 1]


def test_the_background_is_not_starved_for_ever() -> None:
    """However full every batch of the others is; and they hardly notice."""
    scheduler: Scheduler[int] = Scheduler(MAX)
    behind = [ticket("", MAX, background=True), ticket("", background=True)]
    for t in behind:
        scheduler.add(t)
    found = []
    for _ in range(2 * PATIENCE + 2):
        while scheduler.waiting_rows < 2 * MAX:
            scheduler.add(ticket("flood"))
        found.append(scheduler.take(0.0)[0])
    assert [n for n, batch in enumerate(found) if any(t.background for t in batch)] == [PATIENCE, 2 * PATIENCE + 1]
    assert all(sum(t.rows for t in batch) == MAX for batch in found)


def test_the_background_can_be_taken_back_cleared_and_expires() -> None:
    scheduler: Scheduler[int] = Scheduler(MAX)
    gone, late, left = ticket("", background=True), ticket("", deadline=1, background=True), ticket("", background=True)
    for t in (gone, late, left):
        scheduler.add(t)
    assert scheduler.remove(gone)
    assert not scheduler.remove(gone)
    assert scheduler.take(2.0) == ([left], [late])
    scheduler.add(left)
    assert scheduler.clear() == [left]
    assert not scheduler.waits


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, MAX), st.booleans()), min_size=1, max_size=60))
def test_the_background_changes_nothing_for_others(items: list[tuple[str, int, bool]]) -> None:
    """The others' batches are what they would be without it, and every ticket is served once, in order."""
    mixed: Scheduler[int] = Scheduler(MAX)
    alone: Scheduler[int] = Scheduler(MAX)
    for task, rows, background in items:
        mixed.add(ticket(task, rows, background=background))
        if not background:
            alone.add(ticket(task, rows))
    assert mixed.waiting_rows == alone.waiting_rows
    batches, without = drain(mixed), drain(alone)
    told = [[(t.task, t.rows) for t in batch] for batch in batches]
    assert told[: len(without)] == [[(t.task, t.rows) for t in batch] for batch in without]
    behind = [t for batch in batches[len(without) :] for t in batch]
    assert [(t.task, t.rows) for t in behind] == [(task, rows) for task, rows, background in items if background]
    assert all(t.background for t in behind)
