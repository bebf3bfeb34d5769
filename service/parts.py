"""Parts: what each holder may have of a bounded queue, whatever the others send.

Half of the queue is common; the other half is reserved for the holders by their weights. Where there are none, all of
it is for everybody. Pure: it counts in numbers that are given to it, and knows no threads or clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

COMMON, ACTIVE, FIRST = range(3)


class Numbers(Protocol):
    """A list of floats, or memory that several processes see."""

    def __getitem__(self, place: int, /) -> float: ...

    def __setitem__(self, place: int, value: float, /) -> None: ...


@dataclass(frozen=True, slots=True)
class _Part:
    """A holder's: where what it holds is counted, and what is ready of that; and how much is reserved for it."""

    at: int
    weight: float
    own: int


def numbers_for(holders: int) -> int:
    """How many numbers there are for so many holders; all are 0 at the beginning."""
    return FIRST + 2 * (holders + 1)


class Parts:
    """Of ``limit`` of whatever it is. What is ``ready`` is served by weight; the rest waits for something else.

    Whoever has the numbers may ask; one at a time counts.
    """

    def __init__(self, limit: int, weights: Mapping[str, float], numbers: Numbers) -> None:
        """``weights`` are those of the holders, in the order that all who have the numbers know."""
        self._limit, self._numbers, self.several = limit, numbers, bool(weights)
        whole = sum(weights.values())
        self._parts = {
            name: _Part(FIRST + 2 * number, weight, int(limit / 2 * weight / whole))
            for number, (name, weight) in enumerate(weights.items(), 1)
        }
        self._other = _Part(FIRST, 1.0, 0 if weights else limit)
        self._common = limit - sum(part.own for part in (*self._parts.values(), self._other))

    def hold(self, count: int, holder: str) -> None:
        """So many more are held for a holder; fewer where it is negative."""
        numbers, part = self._numbers, self._part(holder)
        before = numbers[part.at]
        numbers[part.at] = after = before + count
        numbers[COMMON] += max(0.0, after - part.own) - max(0.0, before - part.own)

    def ready(self, count: int, holder: str) -> None:
        """So many more of them are ready to be served."""
        numbers, part = self._numbers, self._part(holder)
        before = numbers[part.at + 1]
        numbers[part.at + 1] = after = before + count
        if (before > 0) != (after > 0):
            numbers[ACTIVE] += part.weight if after else -part.weight

    def held(self, holder: str) -> int:
        return int(self._numbers[self._part(holder).at])

    def held_ready(self, holder: str) -> int:
        """How many of those that are held are ready."""
        return int(self._numbers[self._part(holder).at + 1])

    def own(self, holder: str) -> int:
        """How much is reserved for a holder."""
        return self._part(holder).own

    def most(self, holder: str) -> int:
        """How much a holder may hold where nobody else holds anything."""
        return self._part(holder).own + self._common

    def room(self, count: int, holder: str, held: int) -> int:
        """How many more a holder may hold, of whom ``count`` are wanted, while ``held`` are by all together.

        Where its part could never hold so many, it may have what nobody needs now, if it holds nothing else.
        """
        part, left = self._part(holder), self._limit - held
        own = int(self._numbers[part.at])
        if not own and count > part.own + self._common:
            return left
        return min(left, max(0, part.own - own) + max(0, self._common - int(self._numbers[COMMON])))

    def ahead(self, ready: int, holder: str) -> int:
        """How many of all that are ``ready`` go before another one of a holder: its own, and what others may send."""
        if not self.several:
            return ready
        part = self._part(holder)
        own = self._numbers[part.at + 1]
        active = max(self._numbers[ACTIVE], 0.0) + (0.0 if own else part.weight)
        return min(ready, math.ceil(own * active / part.weight - 1e-9))

    def _part(self, holder: str) -> _Part:
        return self._parts.get(holder, self._other)
