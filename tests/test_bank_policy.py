"""The pure policy of the bank: loads in order of need, for nobody who left; and who is wanted least."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.bank.policy import HALF_LIFE_S, MOST, PATIENCE_S, WANTED, LoadPace, LoadQueue, Usage, due

KEYS = "abcdef"
Queue = LoadQueue[int, str]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(KEYS), st.floats(0.0, 2 * PATIENCE_S)),
        st.tuples(st.just("leave"), st.integers(0, 30), st.just(0.0)),
        st.tuples(st.just("take"), st.floats(0.0, 2.0), st.just(0.0)),
        st.tuples(st.just("end"), st.just(0), st.just(0.0)),
        st.tuples(st.just("wait"), st.floats(0.0, 3.0), st.just(0.0)),
    ),
    max_size=60,
)


@given(steps)
def test_nothing_is_lost_nothing_is_loaded_for_nobody_and_the_earliest_due_goes_first(
    schedule: list[tuple[str, object, float]],
) -> None:
    """Against a model that keeps every claim in one flat table."""
    queue, now = Queue(), 0.0
    live: dict[int, tuple[str, float, float]] = {}  # claim: key, deadline, due
    ended: set[int] = set()
    loading: str | None = None
    for number, (kind, what, time) in enumerate(schedule):
        if kind == "add":
            key = str(what)
            by = due(now + time, now, wanted=number % 5 == 0)
            queue.add(key, number, f"load {number}", now + time, by)
            live[number] = (key, now + time, by)
        elif kind == "leave":
            claim = int(what)  # type: ignore[call-overload]
            key = live[claim][0] if claim in live else "a"
            assert queue.remove(key, claim) == (live.pop(claim, None) is not None)
        elif kind == "wait":
            now += float(what)  # type: ignore[arg-type]
        elif kind == "take" and loading is None:
            seconds = float(what)  # type: ignore[arg-type]
            keys = len({key for key, _, _ in live.values()})
            loading, late = queue.take(now, seconds)
            assert len(late) == len(set(late))
            for claim in late:
                assert live.pop(claim)[1] <= now + keys * seconds
                ended.add(claim)
            best: dict[str, float] = {}
            for key, _, by in live.values():
                best[key] = min(by, best.get(key, math.inf))
            assert (loading is None) == (not best)
            if loading is not None:
                assert best[loading] == min(best.values())
        elif kind == "end" and loading is not None:
            served = queue.end(loading)
            assert served == [claim for claim, (key, _, _) in live.items() if key == loading]
            for claim in served:
                del live[claim]
            loading = None
        waiting = {key for key, _, _ in live.values()}
        assert len(queue) == len(waiting - {loading})
        for key in KEYS:
            mine = [(c, d) for c, (k, d, _) in live.items() if k == key]
            assert queue.waits(key) == bool(mine)
            assert queue.claims(key) == {claim: f"load {claim}" for claim, _ in mine}
            assert queue.deadline(key) == min((d for _, d in mine), default=math.inf)
    assert sorted(queue.clear()) == sorted(live)
    assert len(queue) == 0
    assert ended.isdisjoint(live)


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.floats(0.1, 2 * PATIENCE_S)), max_size=20), st.floats(0.1, 10.0))
def test_what_is_said_to_be_ahead_is_what_goes_first(claims: list[tuple[str, float]], deadline: float) -> None:
    queue = Queue()
    for number, (key, by) in enumerate(claims):
        queue.add(key, number, "", by, by)
    before, own = queue.ahead(["new"], deadline)
    assert own == 1
    queue.add("new", 1000, "", deadline, deadline)
    order = []
    while (key := queue.take(0.0, 0.0)[0]) is not None:
        order.append(key)
        queue.end(key)
    assert order.index("new") == before


def test_patient_callers_are_not_overtaken_for_ever() -> None:
    queue = Queue()
    queue.add("patient", 0, "", 120.0, due(120.0, 0.0, wanted=False))
    now, taken = 0.0, []
    while "patient" not in taken:
        assert now < 2 * PATIENCE_S
        queue.add(f"hasty at {now}", 1, "", now + 1.0, due(now + 1.0, now, wanted=len(taken) % 2 == 0))
        key, _ = queue.take(now, 0.1)
        assert key is not None
        taken.append(key)
        queue.end(key)
        now += 0.1
    assert len(taken) > 10


def test_one_is_loaded_even_if_it_seems_too_late() -> None:
    """Else one load that took a minute would be expected for ever, and nothing be loaded again to learn better."""
    queue = Queue()
    queue.add("a", 1, "", 1.0, 1.0)
    queue.add("b", 2, "", 1.5, 1.5)
    assert queue.take(0.0, 60.0) == ("a", [2])


def test_whoever_was_overtaken_hears_of_it_before_the_deadline() -> None:
    queue, now, late = Queue(), 0.0, list[int]()
    queue.add("patient", 0, "", 1.0, 1.0)
    while not late:
        assert now < 1.0
        queue.add(f"wanted at {now}", 1, "", now + 1.0, now)
        key, late = queue.take(now, 0.1)
        assert key is not None
        queue.end(key)
        now += 0.1
    assert late == [0]


def test_a_load_that_has_begun_is_joined() -> None:
    queue = Queue()
    queue.add("a", 1, "", 1.0, 1.0)
    assert queue.take(0.0, 0.1) == ("a", [])
    assert queue.remove("a", 1)
    assert not queue.waits("a")
    queue.add("a", 2, "", 1.0, 1.0)
    assert len(queue) == 0
    assert queue.ahead(["a"], 1.0) == (0, 0)
    assert queue.end("a") == [2]


uses = st.lists(st.tuples(st.sampled_from(KEYS), st.floats(0.0, 2 * HALF_LIFE_S)), max_size=60)


@given(uses)
def test_ranks_order_keys_as_their_decayed_counts_do(schedule: list[tuple[str, float]]) -> None:
    usage, now = Usage(100), 1e6  # a machine that is up for days
    counts: dict[str, float] = {}
    for key, pause in schedule:
        now += pause
        counts = {k: count * 2 ** (-pause / HALF_LIFE_S) for k, count in counts.items()}
        counts[key] = min(MOST, counts.get(key, 0.0) + 1.0)
        asked_before = counts[key] - 1.0 if counts[key] < MOST else MOST
        if abs(asked_before - WANTED) > 0.001:
            assert usage.wanted(key, now) == (asked_before > WANTED)
        usage.saw(key, now)
        for a, x in counts.items():
            for b, y in counts.items():
                if x > 1.0001 * y:
                    assert usage.rank(a) > usage.rank(b)
    assert usage.least(counts) is None or counts[usage.least(counts) or ""] == pytest.approx(min(counts.values()))


@given(uses, st.integers(1, 4))
def test_what_is_remembered_is_bounded(schedule: list[tuple[str, float]], most: int) -> None:
    usage, now = Usage(most), 0.0
    for key, pause in schedule:
        now += pause
        usage.saw(key, now)
        assert len(usage) <= most
        assert usage.rank(key) > -math.inf


def test_often_outranks_lately_and_long_ago_outranks_nothing() -> None:
    usage = Usage(10)
    for second in range(0, 20, 4):
        usage.saw("every four seconds", second)
    usage.saw("once", 19.9)
    assert usage.least(["every four seconds", "once"]) == "once"
    for second in range(1000):
        usage.saw("busy for long", second)
    usage.saw("once", 1060.0)
    assert usage.least(["busy for long", "once", "never"]) == "never"
    assert usage.least(["busy for long", "once"]) == "busy for long"
    assert usage.least([]) is None


def test_the_expected_wait_is_the_loads_before_and_the_rest_of_the_running_one() -> None:
    pace = LoadPace()
    assert pace.wait(3, 1, 0.0) == 0.0
    pace.begin(0.0)
    assert pace.wait(0, 1, 5.0) == 5.0  # it may hang: as long again
    assert pace.end(10.0) == 10.0
    assert pace.wait(0, 1, 11.0) == 0.0
    assert pace.wait(2, 1, 11.0) == 30.0
    pace.begin(20.0)
    assert pace.wait(0, 1, 24.0) == 16.0
    assert pace.wait(0, 0, 24.0) == 6.0
    for start in range(30, 100, 2):
        pace.begin(start)
        pace.end(start + 1.0)
    assert pace.seconds == pytest.approx(1.0, rel=0.01)
