"""Fair shares in the pure policy: holders and tasks by weight, whatever they send, and whoever comes and goes."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.scheduler import LOOKS, Scheduler, Ticket
from service.shares import LAG

ROWS = 10_000
BATCH = 32
WITHIN = 0.02
"""Of all rows."""
weights = st.floats(0.5, 4)
digits = st.integers(0, 9)
lengths = st.sampled_from([1, 1, 2, 4, 8, 16])


def ticket(
    task: str, rows: int = 1, holder: str = "", priority: int = 5, deadline: float = 1e9, payload: int = 0
) -> Ticket[int]:
    return Ticket(task, rows, deadline, payload, holder=holder, priority=priority)


def shares(served: Counter[str], weight: Mapping[str, float]) -> None:
    """Each had its part of all rows, within 2 %."""
    rows, whole = sum(served.values()), sum(weight.values())
    off = {name: served[name] / rows - own / whole for name, own in weight.items()}
    assert max(map(abs, off.values())) <= WITHIN, off


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(weights, st.lists(st.tuples(weights, lengths), min_size=1, max_size=4)), min_size=1, max_size=4)
)
def test_rows_go_by_weight_between_holders_and_between_the_tasks_of_each(
    plan: list[tuple[float, list[tuple[float, int]]]],
) -> None:
    """All flood; clips of all lengths are among pictures."""
    holders = {f"holder-{h}": weight for h, (weight, _) in enumerate(plan)}
    lines = [
        (f"holder-{h}", f"task-{h}-{t}", weight, rows)
        for h, (_, tasks) in enumerate(plan)
        for t, (weight, rows) in enumerate(tasks)
    ]
    tasks = {task: weight for _, task, weight, _ in lines}
    scheduler: Scheduler[int] = Scheduler(BATCH, holders=holders, tasks=tasks)
    for holder, task, _, length in lines:
        for _ in range(2 * BATCH // length):
            scheduler.add(ticket(task, length, holder))
    by_holder, by_task = Counter[str](), Counter[str]()
    while sum(by_holder.values()) < ROWS:
        for t in scheduler.take(0.0)[0]:
            by_holder[t.holder] += t.rows
            by_task[t.task] += t.rows
            scheduler.add(ticket(t.task, t.rows, t.holder))
    shares(by_holder, holders)
    for h, (_, own) in enumerate(plan):
        mine = Counter({task: had for task, had in by_task.items() if task.startswith(f"task-{h}-")})
        part = sum(mine.values()) / ROWS
        whole = sum(weight for weight, _ in own)
        for place, (weight, _) in enumerate(own):
            assert abs(mine[f"task-{h}-{place}"] / ROWS - part * weight / whole) <= WITHIN


@settings(deadline=None, max_examples=30)
@given(st.tuples(weights, weights, weights), st.integers(0, 2**32 - 1))
def test_shares_hold_while_tasks_and_holders_come_and_go(three: tuple[float, float, float], seed: int) -> None:
    """Three always have something; of their tasks, and of holders with little to send, others are there each moment."""
    dice = random.Random(seed)
    weight = {f"holder-{number}": w for number, w in enumerate(three)}
    scheduler: Scheduler[int] = Scheduler(BATCH, holders=weight)
    waiting, served, added, taken = Counter[str](), Counter[str](), 0, 0
    while sum(served.values()) < ROWS:
        for name in weight:
            while waiting[name] < 2 * BATCH:
                rows = dice.choice([1, 1, 1, 4, 8])
                scheduler.add(ticket(f"task-{dice.randrange(20)}", rows, name))
                waiting[name] += rows
                added += 1
        if dice.random() < 0.3:
            scheduler.add(ticket("once", 1, f"guest-{dice.randrange(50)}"))
            added += 1
        for t in scheduler.take(0.0)[0]:
            taken += 1
            waiting[t.holder] -= t.rows
            if t.holder in weight:
                served[t.holder] += t.rows
    shares(served, weight)
    assert taken + len(scheduler) == added
    assert len(scheduler._shares._holders) <= 53


def test_rest_is_not_saved_up_and_a_short_pause_forgives_nothing() -> None:
    scheduler: Scheduler[int] = Scheduler(4)
    for _ in range(400):
        scheduler.add(ticket("a", holder="always"))
    for _ in range(50):
        scheduler.take(0.0)
    for _ in range(100):
        scheduler.add(ticket("b", holder="rested"))
    served = Counter(t.holder for _ in range(10) for t in scheduler.take(0.0)[0])
    assert served == {"always": 20, "rested": 20}

    light: Scheduler[int] = Scheduler(4, holders={"light": 0.25})
    for _ in range(1000):
        light.add(ticket("a", holder="heavy"))
    found = Counter[str]()
    for _ in range(100):  # one at a time, and gone in between
        if not any(t.holder == "light" for t in light._shares.left()):
            light.add(ticket("b", holder="light"))
        found.update(t.holder for t in light.take(0.0)[0])
    assert 78 <= found["light"] <= 82


def test_clips_get_as_many_rows_as_pictures_also_where_they_often_do_not_fit() -> None:
    """Five frames of eight: the pictures take the other three, and are behind for it when that is too much."""
    scheduler: Scheduler[int] = Scheduler(8)
    for _ in range(4000):
        scheduler.add(ticket("pictures"))
        scheduler.add(ticket("clips", 5))
        scheduler.add(ticket("more pictures"))
    served = Counter[str]()
    for _ in range(1000):
        for t in scheduler.take(0.0)[0]:
            served[t.task] += t.rows
    assert max(served.values()) - min(served.values()) <= 8, served


def test_whoever_had_no_room_for_long_does_not_shut_others_out_when_it_has() -> None:
    scheduler: Scheduler[int] = Scheduler(8, holders={"clips": 9})
    for _ in range(4000):
        scheduler.add(ticket("pictures", holder="pictures"))
    for _ in range(200):
        scheduler.add(ticket("long", 5, holder="clips"))
    for _ in range(200):  # nine tenths are due, and five eighths is what fits
        scheduler.take(0.0)
    for _ in range(4000):
        scheduler.add(ticket("short", holder="clips"))
    batches = [{t.holder for t in scheduler.take(0.0)[0]} for _ in range(9 * LAG + 1)]
    assert any("pictures" in found for found in batches)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(1, 8), digits, digits), min_size=1,
        max_size=60,
    ),
    digits,
)  # fmt: skip
def test_nothing_is_lost_and_a_task_of_a_priority_is_first_in_first_out(
    items: list[tuple[str, str, int, int, int]], now: int
) -> None:
    scheduler: Scheduler[int] = Scheduler(8, holders={"a": 3, "b": 0.5}, tasks={"x": 2})
    added = [ticket(task, rows, holder, priority, when) for holder, task, rows, priority, when in items]
    for number, t in enumerate(added):
        scheduler.add(t)
        if number % 7 == 6:
            assert scheduler.remove(added[number - 3])
    gone = {id(added[number - 3]) for number in range(6, len(added), 7)}
    batches, late = [], []
    while len(scheduler):
        batch, expired = scheduler.take(now)
        assert 0 < sum(t.rows for t in batch) <= 8 or expired
        batches.append(batch)
        late += expired
    served = [t for batch in batches for t in batch]
    assert scheduler.waiting_rows == 0
    assert not scheduler.waits
    assert all(t.deadline > now for t in served)
    assert all(t.deadline <= now for t in late)
    assert Counter(map(id, served + late)) == Counter(id(t) for t in added if id(t) not in gone)
    for key in {(t.holder, t.task, t.priority) for t in served}:
        own = [t for t in served if (t.holder, t.task, t.priority) == key]
        assert own == [t for t in added if t in own]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 9)), min_size=1, max_size=40))
def test_priority_orders_a_holders_own_and_changes_nothing_for_others(items: list[tuple[str, str, int]]) -> None:
    with_them: Scheduler[int] = Scheduler(4)
    without: Scheduler[int] = Scheduler(4)
    for holder, task, priority in items:
        with_them.add(ticket(task, 1, holder, priority if holder == "a" else 5))
        without.add(ticket(task, 1, holder, 5))
    first = Counter[str]()
    while len(with_them):
        one, other = with_them.take(0.0)[0], without.take(0.0)[0]
        assert [t.holder for t in one] == [t.holder for t in other]
        assert [t.task for t in one if t.holder == "b"] == [t.task for t in other if t.holder == "b"]
        for t in one:
            if t.holder == "a":
                assert t.priority <= (first["a"] or 9)
                first["a"] = t.priority or first["a"]


def test_a_clip_of_one_holder_is_not_passed_over_for_ever_by_pictures_of_all() -> None:
    scheduler: Scheduler[int] = Scheduler(8)
    clip = ticket("clip", 8, "a")
    for _ in range(400):
        for holder in "cba":
            scheduler.add(ticket("pictures", 1, holder))
    scheduler.add(clip)
    assert any(clip in scheduler.take(0.0)[0] for _ in range(3))


def test_what_a_turn_costs_knows_nothing_of_idle_tasks_and_little_of_those_without_room() -> None:
    scheduler: Scheduler[int] = Scheduler(8)
    for number in range(10_000):  # each was here once
        scheduler.add(ticket(f"idle-{number}", holder=f"holder-{number % 100}"))
        scheduler.take(0.0)
    assert not scheduler._shares._holders

    class Looked(deque[Ticket[int]]):
        looks = 0

        def __getitem__(self, place: object) -> Ticket[int]:  # type: ignore[override]
            Looked.looks += 1
            return super().__getitem__(place)  # type: ignore[index]

    scheduler.add(ticket("first", 7))
    for number in range(10 * LOOKS):
        scheduler.add(ticket(f"clip-{number}", 8))
    for line in scheduler._shares._holders[""]._ranks[5]._lines.values():
        line.tickets = Looked(line.tickets)
    assert [t.task for t in scheduler.take(0.0)[0]] == ["first"]
    assert Looked.looks <= LOOKS + 2
    assert [t.task for t in scheduler.take(0.0)[0]] == ["clip-0"]
