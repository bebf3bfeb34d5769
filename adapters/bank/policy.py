"""Which adapter is loaded next, and which one makes room: pure policy, times are passed in, the caller holds the lock.

It knows no slots, threads or tensors. Keys are whatever names an adapter, claims whoever waits for one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Generic, TypeVar

C = TypeVar("C")
L = TypeVar("L")

HALF_LIFE_S = 10.0
"""After so long a use counts half."""
MOST = 16.0
"""The count that no key passes, so that one that was busy for hours makes room within a minute of rest."""
WANTED = 0.75
"""The count from which a key that is not resident is loaded before others: it was asked for within the last 4 s."""
PATIENCE_S = 5.0
"""A claim that may wait longer than that is queued as if it may not: patient callers are overtaken, not for ever."""
SMOOTH = 0.8
"""Share of the old value that the expected time of a load keeps at each load."""
SWEEP_S = 0.02
"""How often the whole queue is looked through for claims that have been overtaken and cannot be in time any more."""


class Usage:
    """How wanted each key is: its uses, each worth half after ``HALF_LIFE_S``, at most ``MOST``.

    It is the policy LRFU (Lee et al., 2001) with a bound.
    A key that is used every few seconds outranks any number of keys that are used once; among equals the one used
    last outranks. Of keys that are no longer resident it remembers the ``remembered`` latest.
    """

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        # log2 of the count, plus the time in half-lives: so ranks do not change while nothing is used.
        self._rank: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rank)

    def saw(self, key: str, now: float) -> None:
        """The key is used, or asked for."""
        age = now / HALF_LIFE_S
        self._rank[key] = math.log2(min(MOST, 2.0 ** (self._rank.get(key, -math.inf) - age) + 1.0)) + age
        self._rank.move_to_end(key)
        if len(self._rank) > self._remembered:
            self._rank.popitem(last=False)

    def wanted(self, key: str, now: float) -> bool:
        """Whether the key was asked for again and again, or a moment ago, before this time."""
        return self.rank(key) - now / HALF_LIFE_S >= math.log2(WANTED)

    def rank(self, key: str) -> float:
        """Larger is more wanted; keys that are not remembered come last."""
        return self._rank.get(key, -math.inf)

    def least(self, keys: Iterable[str]) -> str | None:
        """The least wanted of some keys; None of none."""
        return min(keys, key=self.rank, default=None)


@dataclass
class _Load(Generic[C, L]):
    """One key's claims, each with its deadline, its due time and its way to load."""

    serial: int
    claims: dict[C, tuple[float, float, L]] = field(default_factory=dict)
    due: float = math.inf
    begun: bool = False


def due(deadline: float, now: float, wanted: bool) -> float:
    """When a load is due: at once if its key is wanted, else by the deadline, at the latest after ``PATIENCE_S``.

    So tasks that are asked often come back quickly, and so does whoever was refused and asks again.
    """
    return now if wanted else min(deadline, now + PATIENCE_S)


class LoadQueue(Generic[C, L]):
    """Keys that wait to be loaded, the one that is due first first; a key without claims is not in it."""

    def __init__(self) -> None:
        self._loads: dict[str, _Load[C, L]] = {}
        self._order: list[tuple[float, int, str]] = []
        self._serial = 0
        self._swept = -math.inf

    def __len__(self) -> int:
        """Keys that wait and are not being loaded."""
        return len(self._order)

    @property
    def keys(self) -> tuple[str, ...]:
        """Those that somebody waits for, also the one that is being loaded."""
        return tuple(self._loads)

    def add(self, key: str, claim: C, load: L, deadline: float, due: float) -> None:
        """Claim a key; a load that has begun is joined."""
        entry = self._loads.get(key)
        if entry is None:
            self._serial += 1
            entry = self._loads[key] = _Load(self._serial)
        entry.claims[claim] = (deadline, due, load)
        if due < entry.due:
            self._move(key, entry, due)

    def remove(self, key: str, claim: C) -> bool:
        """Whoever claimed has left; False if it is not here. The key leaves with its last claim unless it has begun."""
        entry = self._loads.get(key)
        if entry is None or claim not in entry.claims:
            return False
        _, due, _ = entry.claims.pop(claim)
        if not entry.claims and not entry.begun:
            self._forget(key, entry)
        elif due == entry.due and entry.claims:
            self._move(key, entry, min(due for _, due, _ in entry.claims.values()))
        return True

    def take(self, now: float, seconds: float) -> tuple[str | None, list[C]]:
        """Begin the next load, which takes about ``seconds``; None if none is left. Also whoever it is too late for.

        Too late is a deadline that has passed, or that passes before the loads up to this one have ended. If that
        holds for all keys one is loaded nevertheless, so that a wrong idea of ``seconds`` is soon corrected.
        """
        late = self._sweep(now, seconds) if now >= self._swept + SWEEP_S else []
        while self._order:
            key = self._order[0][2]
            entry = self._loads[key]
            ends = now + seconds if len(self._order) > 1 else now
            late += self._drop(key, entry, now if any(d > ends for d, _, _ in entry.claims.values()) else ends)
            if self._order and self._order[0][2] == key:  # else it is gone, or due later without those who are
                self._order.pop(0)
                entry.begun = True
                return key, late
        return None, late

    def _sweep(self, now: float, seconds: float) -> list[C]:
        """Drop who waits behind the first key and cannot be in time there."""
        self._swept, ends, late = now, now + seconds, list[C]()
        for _, _, key in self._order[1:]:
            entry = self._loads[key]
            late += self._drop(key, entry, ends + seconds)
            if entry.claims:
                ends += seconds
        return late

    def _drop(self, key: str, entry: _Load[C, L], until: float) -> list[C]:
        """Take a key's claims with deadlines up to then out of the queue, and the key if none is left."""
        gone = [claim for claim, (deadline, _, _) in entry.claims.items() if deadline <= until]
        for claim in gone:
            self.remove(key, claim)
        return gone

    def end(self, key: str) -> list[C]:
        """A load has ended; whoever still claims the key, in the order in which they came."""
        entry = self._loads.pop(key)
        if not entry.begun:
            self._order.remove((entry.due, entry.serial, key))
        return list(entry.claims)

    def clear(self) -> list[C]:
        """Every claim, for a caller that is going to refuse them. Loads that have begun still end with ``end``."""
        claims = [claim for entry in self._loads.values() for claim in entry.claims]
        for entry in self._loads.values():
            entry.claims.clear()
        self._loads = {key: entry for key, entry in self._loads.items() if entry.begun}
        self._order.clear()
        return claims

    def waits(self, key: str) -> bool:
        """Whether somebody claims the key."""
        entry = self._loads.get(key)
        return entry is not None and bool(entry.claims)

    def claims(self, key: str) -> dict[C, L]:
        """Who claims a key, and how each would load it."""
        entry = self._loads.get(key)
        return {} if entry is None else {claim: load for claim, (_, _, load) in entry.claims.items()}

    def deadline(self, key: str) -> float:
        """The earliest deadline of a key's claims."""
        entry = self._loads.get(key)
        return math.inf if entry is None else min((d for d, _, _ in entry.claims.values()), default=math.inf)

    def ahead(self, keys: Iterable[str], due: float) -> tuple[int, int]:
        """If somebody claimed these keys now: how many waiting loads would begin before theirs, how many are theirs."""
        before = bisect_right(self._order, due, key=itemgetter(0))
        entries = [self._loads.get(key) for key in keys]
        own = [entry for entry in entries if entry is None or not entry.begun]
        return before - sum(e is not None and e.due <= due for e in own) if own else 0, len(own)

    def _move(self, key: str, entry: _Load[C, L], due: float) -> None:
        if not entry.begun:
            place = bisect_left(self._order, (entry.due, entry.serial, key))
            if place < len(self._order) and self._order[place][1] == entry.serial:
                del self._order[place]
            insort(self._order, (due, entry.serial, key))
        entry.due = due

    def _forget(self, key: str, entry: _Load[C, L]) -> None:
        del self._loads[key]
        del self._order[bisect_left(self._order, (entry.due, entry.serial, key))]


class LoadPace:
    """How long a load takes, ``seconds``, learned from those that ended; 0 before the first."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._begun: float | None = None

    def begin(self, now: float | None) -> None:
        """A load begins; None: there is none to begin."""
        self._begun = now

    def end(self, now: float) -> float:
        """How long the load took that began last."""
        taken = now - (now if self._begun is None else self._begun)
        self.seconds = SMOOTH * self.seconds + (1 - SMOOTH) * taken if self.seconds else taken
        self._begun = None
        return taken

    def wait(self, before: int, own: int, now: float) -> float:
        """How long ``own`` loads take, with the one in progress and those ``before``.

        0 where there are none of these: how long a load takes now is then found out by loading.
        """
        if self._begun is None:
            return (before + own) * self.seconds if before else 0.0
        running = now - self._begun
        # What takes longer than usual may take as long again.
        rest = self.seconds - running if running < self.seconds else running
        return (before + own) * self.seconds + rest
