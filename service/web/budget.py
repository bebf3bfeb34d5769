"""Budget: bytes that many requests may hold together, so that their sum is bounded and not only each of them.

It does not know what the bytes are. Only the event loop's thread uses it.
"""

from __future__ import annotations

from collections.abc import Mapping

from service.errors import QueueFull
from service.parts import Parts, numbers_for

RETRY_AFTER_S = 1.0


class Budget:
    """``take`` before bytes are kept, ``give`` when they are gone."""

    def __init__(self, limit: int, name: str, weights: Mapping[str, float] | None = None) -> None:
        """``weights`` are those of the holders of keys, each of whom has a part for itself."""
        self.held = 0
        holders = weights or {}
        self._limit, self._name = limit, name
        self._parts = Parts(limit, holders, [0.0] * numbers_for(len(holders)))

    def take(self, count: int, holder: str = "") -> None:
        """Raises QueueFull past the limit; nothing is taken then."""
        parts = self._parts
        if parts.room(count, holder, self.held) < count:
            own = f", {parts.held(holder)} those of this key" if parts.several else ""
            raise QueueFull(
                f"the requests under way hold {self.held} bytes{own}, the limit is {parts.most(holder)} "
                f"({self._name}); try again in {RETRY_AFTER_S:g} s",
                retry_after=RETRY_AFTER_S, field=self._name, limit=self._limit, value=self.held + count,
            )  # fmt: skip
        self.held += count
        parts.hold(count, holder)

    def give(self, count: int, holder: str = "") -> None:
        self.held -= count
        self._parts.hold(-count, holder)
