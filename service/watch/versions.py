"""Versions side by side: how each one that a rule names does, how often its best label is the active version's, and
when one has done so badly that it must go.

Processes tell what they saw in portions, and one of them adds up. It knows no store and no HTTP.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from service.store.traffic import Guard

TELL_S = 0.2
"""How often news are told, while there are any."""
MAX_TALLIES = 1000
"""Of versions; the one that was told of least lately is forgotten."""
MAX_LABELS = 1000
"""Of one version, that are counted by themselves; all others together under ``OTHER_LABEL``."""
OTHER_LABEL = "_other"
MAX_DISAGREEMENTS = 100
"""Of one version, the last ones."""
SLOTS = 30
"""Parts of a guard's window: it slides by them."""
SLOWER_S = 0.005
"""A version that is not even so much slower is not too slow, whatever the ratio."""
_STEPS = 8
"""Of times, for each doubling: they are known to 9 %."""
_LEAST_S = 1e-4


class VersionKey(NamedTuple):
    """A version under a rule; ``since`` tells the rule."""

    task: str
    version: int
    since: str


class Disagreement(msgspec.Struct, array_like=True, frozen=True):
    """An input, by its bytes' sha256; the active version's best label, and the ``other`` one's; when, in ISO 8601."""

    digest: str
    label: str
    other: str
    created: str


class VersionCounts(msgspec.Struct, array_like=True):
    """Requests that it answered or failed, how long they took by ``bin_of``, and the answers that were compared.

    ``errors`` are all that failed, ``not_finite`` those of them whose scores were no numbers.
    """

    requests: int = 0
    errors: int = 0
    not_finite: int = 0
    compared: int = 0
    agreed: int = 0
    times: dict[int, int] = {}

    def add(self, other: VersionCounts, sign: int = 1) -> None:
        """Count what another has counted; with ``sign`` -1 no more."""
        self.requests += sign * other.requests
        self.errors += sign * other.errors
        self.not_finite += sign * other.not_finite
        self.compared += sign * other.compared
        self.agreed += sign * other.agreed
        for place, count in other.times.items():
            self.times[place] = self.times.get(place, 0) + sign * count

    def share(self, count: int) -> float:
        """Of all requests."""
        return count / self.requests if self.requests else 0.0

    @property
    def agreement(self) -> float | None:
        return self.agreed / self.compared if self.compared else None

    def seconds(self, part: float) -> float | None:
        """The time within which so many of the answers were there, to 9 %; None where there were none."""
        whole = sum(self.times.values())
        wanted, seen = part * whole, 0
        for place in sorted(self.times):
            seen += self.times[place]
            if seen and seen >= wanted:
                return _LEAST_S * 2 ** ((place + 0.5) / _STEPS)
        return None


class VersionNews(msgspec.Struct, array_like=True):
    """What one process saw of a version since it last told: ``labels`` has compared and agreed of each.

    ``window``: the seconds that the rule's guard looks back on.
    """

    task: str
    version: int
    since: str
    window: float
    counts: VersionCounts
    labels: dict[str, tuple[int, int]] = {}
    differing: list[Disagreement] = []

    @property
    def key(self) -> VersionKey:
        return VersionKey(self.task, self.version, self.since)

    def timed(self, seconds: float) -> None:
        """It answered."""
        self.counts.requests += 1
        place = bin_of(seconds)
        self.counts.times[place] = self.counts.times.get(place, 0) + 1

    def failed(self, *, not_finite: bool) -> None:
        """It should have answered."""
        self.counts.requests += 1
        self.counts.errors += 1
        self.counts.not_finite += not_finite

    def compared(self, digest: str, label: str, other: str, when: str) -> None:
        """An answer was held against the active version's, whose best label is ``label``."""
        agreed = label == other
        self.counts.compared += 1
        self.counts.agreed += agreed
        _count_label(self.labels, label, 1, int(agreed))
        if not agreed:
            self.differing.append(Disagreement(digest, label, other, when))
            del self.differing[:-MAX_DISAGREEMENTS]


class VersionTally:
    """All that was told of a version under one rule, and what of it was lately."""

    def __init__(self, key: VersionKey, window: float) -> None:
        self.whole = VersionNews(*key, window, VersionCounts())
        self._lately = VersionCounts()
        self._slots: deque[tuple[int, VersionCounts]] = deque()

    def add(self, news: VersionNews, now: float) -> None:
        """Count what a process told at ``now``, in seconds."""
        self.whole.counts.add(news.counts)
        for label, (compared, agreed) in news.labels.items():
            _count_label(self.whole.labels, label, compared, agreed)
        if news.differing:
            seen = {one.digest: one for one in news.differing}
            older = [one for one in self.whole.differing if one.digest not in seen]
            self.whole.differing = [*older, *seen.values()][-MAX_DISAGREEMENTS:]
        slot = int(now / self.whole.window * SLOTS)
        if not self._slots or self._slots[-1][0] != slot:
            self._slots.append((slot, VersionCounts()))
        self._slots[-1][1].add(news.counts)
        self._lately.add(news.counts)

    def lately(self, now: float) -> VersionCounts:
        """What was counted within the window, to a thirtieth of it."""
        first = int(now / self.whole.window * SLOTS) - SLOTS + 1
        while self._slots and self._slots[0][0] < first:
            self._lately.add(self._slots.popleft()[1], -1)
        return self._lately


class VersionTallies:
    """Of all versions that rules name, or named lately."""

    def __init__(self) -> None:
        self._tallies: OrderedDict[VersionKey, VersionTally] = OrderedDict()

    def add(self, news: VersionNews, now: float) -> None:
        key = news.key
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = VersionTally(key, news.window)
        self._tallies.move_to_end(key)
        tally.add(news, now)
        while len(self._tallies) > MAX_TALLIES:
            self._tallies.popitem(last=False)

    def lately(self, key: VersionKey, now: float) -> VersionCounts:
        tally = self._tallies.get(key)
        return tally.lately(now) if tally is not None else VersionCounts()

    def of(self, task: str) -> list[VersionNews]:
        """All that was told of a task's versions, each under its rules, the latest last."""
        return [tally.whole for key, tally in self._tallies.items() if key.task == task]


class Ledger:
    """What one front end sees, told soon to whoever adds up; for its event loop's thread."""

    def __init__(self, send: Callable[[list[VersionNews]], None], ask: Callable[[str | None], Awaitable[Any]]) -> None:
        """``ask`` the one who adds up: for the list of VersionNews of a task; without one, how many roll-backs."""
        self._send, self._ask = send, ask
        self._news: dict[VersionKey, VersionNews] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def known(self, task: str) -> list[VersionNews]:
        """All that any front end has seen of a task's versions, under each rule that they had lately."""
        self.tell()
        return msgspec.convert(await self._ask(task), list[VersionNews])

    async def roll_backs(self) -> int:
        """How often a task was rolled back by this server."""
        return int(await self._ask(None))

    def tell(self) -> None:
        """Hand over what was counted since the last time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._send(self.take())

    def of(self, key: VersionKey, window: float) -> VersionNews:
        """Where to count."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_S, self.tell)
        found = self._news.get(key)
        if found is None:
            found = self._news[key] = VersionNews(*key, window, VersionCounts())
        return found

    def take(self) -> list[VersionNews]:
        """All, and begin anew."""
        taken = list(self._news.values())
        self._news.clear()
        return taken


def verdict(guard: Guard, version: int, own: VersionCounts, active: VersionCounts) -> str | None:
    """Why a version must lose its traffic, by what it and the active one did within the window; None: it may go on."""
    within = f"in {guard.window:g} s"
    if own.requests >= guard.min_requests:
        wrong = own.share(own.not_finite)
        if guard.max_not_finite is not None and wrong > guard.max_not_finite:
            return (
                f"the scores of {own.not_finite} of {own.requests} requests to version {version} were no numbers "
                f"{within}: {wrong:.1%}, the bound is {guard.max_not_finite:.1%} (max_not_finite)"
            )
        mine, theirs = own.share(own.errors), active.share(active.errors)
        if guard.max_errors is not None and mine - theirs > guard.max_errors:
            return (
                f"{own.errors} of {own.requests} requests to version {version} failed {within}: {mine:.1%}, and "
                f"{theirs:.1%} of the active one's; {guard.max_errors:.1%} more are allowed (max_errors)"
            )
        slow, usual = own.seconds(0.5), active.seconds(0.5)
        if (
            guard.max_latency_ratio is not None and active.requests >= guard.min_requests
            and slow is not None and usual is not None
            and slow - usual > SLOWER_S and slow > guard.max_latency_ratio * usual
        ):  # fmt: skip
            return (
                f"version {version} took {1000 * slow:.1f} ms at the median {within}, and the active one "
                f"{1000 * usual:.1f}: {slow / usual:.1f} times, the bound is {guard.max_latency_ratio:g} "
                "(max_latency_ratio)"
            )
    agreement = own.agreement
    bound = guard.min_agreement if own.compared >= guard.min_compared else None
    if agreement is not None and bound is not None and agreement < bound:
        return (
            f"{own.agreed} of {own.compared} best labels of version {version} were those of the active one "
            f"{within}: {agreement:.1%}, the bound is {bound:.1%} (min_agreement)"
        )
    return None


def bin_of(seconds: float) -> int:
    """Times that lie within 9 % of each other count together."""
    return max(0, int(_STEPS * math.log2(max(seconds, _LEAST_S) / _LEAST_S)))


def newest(reports: Iterable[VersionNews], version: int) -> VersionNews | None:
    """The last report of a version."""
    return max((one for one in reports if one.version == version), key=lambda one: one.since, default=None)


def by_label(labels: dict[str, tuple[int, int]]) -> Sequence[tuple[str, int, int]]:
    """Label, compared and agreed: those that disagree most first."""
    return sorted(
        ((label, compared, agreed) for label, (compared, agreed) in labels.items()),
        key=lambda one: (one[2] - one[1], one[0]),
    )


def _count_label(labels: dict[str, tuple[int, int]], label: str, compared: int, agreed: int) -> None:
    if label not in labels and len(labels) >= MAX_LABELS:
        label = OTHER_LABEL
    before = labels.get(label, (0, 0))
    labels[label] = (before[0] + compared, before[1] + agreed)
