"""Traffic: shares are as the weights, whoever works them out; rules are kept, changed, and end when they must."""

from __future__ import annotations

import asyncio
import json
import re
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import Conflict, UnknownTask, UnknownVersion
from service.store.changes import (
    DeleteVersion,
    Publish,
    RollBack,
    activated,
    deactivated,
    directed,
    shadowed,
    undirected,
    unshadowed,
)
from service.store.events import difference
from service.store.manifest import TaskInfo, VersionInfo, parse, render
from service.store.traffic import GUARD, MAX_WEIGHTED, Guard, Traffic
from service.watch.versions import (
    MAX_DISAGREEMENTS,
    MAX_LABELS,
    MAX_TALLIES,
    OTHER_LABEL,
    Ledger,
    VersionCounts,
    VersionKey,
    VersionNews,
    VersionTallies,
    verdict,
)

GOLDEN = [51, 64, 80]
KEYS = [f"{number:064x}".encode() for number in range(3000)]
WEIGHTS = st.dictionaries(st.integers(1, 999), st.integers(1, 1000), min_size=2, max_size=5)


def traffic(weights: dict[int, int]) -> Traffic:
    return Traffic(MappingProxyType(weights), GUARD, "now")


def task(versions: int = 3, active: int | None = 1, **more: Any) -> TaskInfo:
    kept = {n: VersionInfo("t", n, f"{n:064x}", 1, "2026-11-26") for n in range(1, versions + 1)}
    return TaskInfo("t", MappingProxyType(kept), active, versions + 1, **more)


@settings(max_examples=12, deadline=None)
@given(WEIGHTS, st.text("abc", min_size=1, max_size=5))
def test_shares_are_as_the_weights(weights: dict[int, int], name: str) -> None:
    """Within five standard deviations: one in a million is further off."""
    rule, whole = traffic(weights), sum(weights.values())
    answered = [rule.version_of(name, key) for key in KEYS]
    for number, weight in weights.items():
        share = weight / whole
        spread = (share * (1 - share) / len(KEYS)) ** 0.5
        assert abs(answered.count(number) / len(KEYS) - share) <= 5 * spread + 1e-3


@settings(max_examples=50, deadline=None)
@given(WEIGHTS, st.data())
def test_more_weight_moves_keys_to_that_version_alone(weights: dict[int, int], data: st.DataObject) -> None:
    grown = data.draw(st.sampled_from(sorted(weights)))
    before, after = traffic(weights), traffic(weights | {grown: weights[grown] + data.draw(st.integers(1, 1000))})
    for key in KEYS[:300]:
        was, now = before.version_of("t", key), after.version_of("t", key)
        assert now in (was, grown)


def test_every_server_says_the_same() -> None:
    """These are written down: another release must not move everybody's users."""
    rule = traffic({1: 95, 2: 5})
    assert [key for key in range(100) if rule.version_of("digits", b"user-%d" % key) == 2] == GOLDEN
    assert traffic({2: 5, 1: 95}).version_of("digits", b"user-1") == rule.version_of("digits", b"user-1")
    other = [key for key in range(100) if rule.version_of("letters", b"user-%d" % key) == 2]
    assert other != GOLDEN, "a user that is unlucky in one task is not in all"


def test_a_rule_is_kept_and_what_knows_none_loses_it_whole() -> None:
    ruled = shadowed(directed(task(), {1: 95, 2: 5}, Guard(window=9, max_errors=None)), 3, 0.25)
    assert parse("t", render(ruled)) == ruled
    assert ruled.is_ruled
    document = json.loads(render(ruled))
    for name in ("traffic", "shadow"):
        without = {key: value for key, value in document.items() if key != name}
        found = parse("t", json.dumps(without).encode())
        assert getattr(found, name) is None
        assert found.versions == ruled.versions
    for strange in ({"weights": {"1": 0}}, {"weights": {"1": 9, "2": -1}, "guard": None, "since": "x"}, 7, [1]):
        found = parse("t", json.dumps(document | {"traffic": strange, "shadow": strange}).encode())
        assert (found.traffic, found.shadow, found.active) == (None, None, 1), "the task is served nevertheless"
    later = json.loads(render(ruled))
    later["traffic"]["guard"]["more"] = 1
    assert parse("t", json.dumps(later).encode()) == ruled
    for changed in ({"active": 3}, {"active": None}):  # by whoever knows no rules and keeps them
        found = parse("t", json.dumps(document | changed).encode())
        assert found.traffic is None
    assert parse("t", json.dumps(document | {"active": 3}).encode()).shadow is None


def test_a_rule_ends_with_what_it_stands_on() -> None:
    ruled = shadowed(directed(task(), {1: 95, 2: 5}, GUARD), 3, 0.5)
    for ended in (activated(ruled, 2, None), deactivated(ruled), undirected(ruled)):
        assert ended.traffic is None
        assert ended.shadow == ruled.shadow
    assert activated(ruled, 1, None) is ruled, "it is active already"
    assert activated(ruled, 3, None).shadow is None
    assert unshadowed(ruled).shadow is None
    assert directed(ruled, {1: 9, 3: 1}, GUARD).shadow is None, "it answers now"
    assert not ruled.emptied().is_ruled
    assert (ruled.without([2]).traffic, ruled.without([2]).shadow) == (None, ruled.shadow)
    assert (ruled.without([3]).traffic, ruled.without([3]).shadow) == (ruled.traffic, None)
    new = Publish("t", "f" * 64, 1, True, None, lambda _: None)(ruled)
    assert (new.active, new.traffic) == (4, None)
    staged = Publish("t", "f" * 64, 1, False, None, lambda _: None)(ruled)
    assert (staged.active, staged.traffic) == (1, ruled.traffic)


def test_the_same_rule_again_is_no_change() -> None:
    ruled = shadowed(directed(task(), {2: 5, 1: 95}, GUARD), 3, 0.5)
    assert directed(ruled, {1: 95, 2: 5}, Guard()) is ruled
    assert shadowed(ruled, 3, 0.5) is ruled
    more = shadowed(ruled, 3, 0.75)
    assert more.shadow is not None
    assert ruled.shadow is not None
    assert more.shadow.since == ruled.shadow.since, "what was seen counts on"
    assert directed(task(), {1: 7}, GUARD).traffic is None, "the active one alone shares with nobody"
    assert undirected(task()) == task()


def test_what_cannot_be_is_refused_in_words() -> None:
    ruled = shadowed(directed(task(), {1: 95, 2: 5}, GUARD), 3, 0.5)
    for number, said in ((1, "is active"), (2, "part of the traffic; take it out"), (3, "is the shadow; take it out")):
        with pytest.raises(Conflict, match=said):
            DeleteVersion(number)(ruled)
    with pytest.raises(Conflict, match="has no weight"):
        directed(task(), {2: 1, 3: 1}, GUARD)
    with pytest.raises(Conflict, match="no active version"):
        directed(task(active=None), {1: 1, 2: 1}, GUARD)
    with pytest.raises(UnknownVersion, match="no version 9"):
        directed(task(), {1: 1, 9: 1}, GUARD)
    with pytest.raises(UnknownTask):
        directed(task(versions=0, active=None), {1: 1}, GUARD)
    with pytest.raises(Conflict, match="the limit is"):
        directed(task(versions=30), dict.fromkeys(range(1, MAX_WEIGHTED + 2), 1), GUARD)
    for number in (1, 2):
        with pytest.raises(Conflict, match="answers already"):
            shadowed(ruled, number, 0.5)


def test_a_rule_is_rolled_back_once_and_no_other_one() -> None:
    ruled = directed(task(), {1: 95, 2: 5}, GUARD)
    assert ruled.traffic is not None
    step = RollBack(ruled.traffic.since, 2, "because")
    back = step(ruled)
    assert step.made
    assert back.traffic is None
    assert back.rolled_back is not None
    assert (back.active, back.rolled_back.version, back.rolled_back.why) == (1, 2, "because")
    assert parse("t", render(back)) == back
    assert step(back) is back
    assert not step.made
    anew = directed(back, {1: 95, 2: 5}, GUARD)
    assert anew.rolled_back is None
    assert step(anew) is anew, "what was seen of the old rule says nothing of the new one"


def test_the_history_tells_of_rules() -> None:
    ruled = directed(task(), {1: 95, 2: 5}, GUARD)
    told = difference(task(), ruled)
    assert told.what == "traffic"
    assert (told.detail["weights"], told.detail["before"]) == ({"1": 95, "2": 5}, None)
    assert difference(ruled, undirected(ruled)).detail["weights"] is None
    assert ruled.traffic is not None
    back = difference(ruled, RollBack(ruled.traffic.since, 2, "because")(ruled))
    assert back.what == "rolled_back"
    assert back.version is not None
    assert back.version.number == 2
    seen = shadowed(task(), 3, 0.5)
    assert (difference(task(), seen).what, difference(task(), seen).detail) == ("shadow", {"share": 0.5})
    assert difference(seen, unshadowed(seen)).detail == {"share": 0.0}
    ended = difference(ruled, activated(ruled, 2, None))
    assert (ended.what, ended.detail["traffic_ended"]) == ("activated", {"1": 95, "2": 5})


# How versions do.


def counts(requests: int = 0, seconds: float = 0.01, **more: int) -> VersionCounts:
    made = VersionNews("t", 1, "now", 300, VersionCounts())
    for _ in range(requests):
        made.timed(seconds)
    for name, value in more.items():
        setattr(made.counts, name, value)
    return made.counts


FINE = counts(1000)


@pytest.mark.parametrize(
    ("own", "active", "said"),
    [
        (counts(19, errors=19), FINE, None),  # too few to tell
        (counts(20, errors=2), FINE, "2 of 20 requests to version 2 failed in 300 s: 10.0%, and 0.0%"),
        (counts(20, errors=1), FINE, None),
        (counts(20, errors=2), counts(1000, errors=60), None),  # it goes badly for all
        (counts(100, not_finite=2, errors=2), FINE, "were no numbers"),
        (counts(100, not_finite=1, errors=1), FINE, None),
        (counts(20, seconds=0.03), FINE, "took 29.2 ms at the median in 300 s, and the active one"),
        (counts(20, seconds=0.018), FINE, None),
        (counts(20, seconds=0.003), counts(1000, seconds=0.001), None),  # thrice, but what of it
        (counts(20, seconds=0.03), counts(19), None),  # nothing to hold it against
        (counts(0, compared=50, agreed=34), FINE, "34 of 50 best labels of version 2 were those of the active one"),
        (counts(0, compared=50, agreed=35), FINE, None),
        (counts(0, compared=49, agreed=0), FINE, None),
        (counts(), counts(), None),
    ],
)
def test_a_version_that_does_badly_is_told_why(own: VersionCounts, active: VersionCounts, said: str | None) -> None:
    found = verdict(GUARD, 2, own, active)
    if said is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(said, found), found
    off = Guard(max_errors=None, max_not_finite=None, max_latency_ratio=None, min_agreement=None)
    assert verdict(off, 2, own, active) is None


def test_a_window_forgets_and_the_whole_does_not() -> None:
    tallies, key = VersionTallies(), VersionKey("t", 2, "now")
    for second in range(40):
        news = VersionNews(*key, 30, VersionCounts())
        news.timed(0.01)
        tallies.add(news, 100.0 + second)
    assert tallies.lately(key, 139.9).requests == 30
    assert tallies.lately(key, 150).requests == 19
    assert tallies.lately(key, 1000).requests == 0
    assert sum(tallies.lately(key, 1000).times.values()) == 0
    (whole,) = tallies.of("t")
    assert whole.counts.requests == 40
    assert whole.counts.seconds(0.5) == pytest.approx(0.01, rel=0.09)
    assert tallies.lately(VersionKey("t", 3, "now"), 1.0).requests == 0


def test_everything_that_is_kept_is_bounded() -> None:
    tallies = VersionTallies()
    news = VersionNews("t", 2, "now", 300, VersionCounts())
    for number in range(MAX_LABELS + 50):
        news.compared(f"{number:064x}", f"label {number}", "other", "when")
        news.compared(f"{number:064x}", f"label {number}", f"label {number}", "when")
    tallies.add(news, 0.0)
    tallies.add(news, 0.0)
    (whole,) = tallies.of("t")
    assert len(whole.labels) == MAX_LABELS + 1
    assert whole.labels[OTHER_LABEL] == (200, 100)
    assert [one.digest for one in whole.differing] == [
        f"{number:064x}" for number in range(MAX_LABELS + 50 - MAX_DISAGREEMENTS, MAX_LABELS + 50)
    ], "each input once"
    for number in range(MAX_TALLIES + 5):
        tallies.add(VersionNews(f"task-{number}", 1, "now", 300, VersionCounts()), 0.0)
    assert tallies.of("t") == []
    assert tallies.of(f"task-{MAX_TALLIES}") != []


def test_news_are_told_together_and_before_anybody_asks() -> None:
    told: list[list[VersionNews]] = []

    async def known(name: str) -> list[VersionNews]:
        return [one for some in told for one in some if one.task == name]

    async def run() -> None:
        ledger = Ledger(told.append, known)
        for _ in range(3):
            ledger.of(VersionKey("t", 2, "now"), 300).timed(0.01)
        assert told == []
        (one,) = await ledger.known("t")
        assert one.counts.requests == 3
        assert await ledger.known("t") == [one], "what was told is not told again"

    asyncio.run(run())
