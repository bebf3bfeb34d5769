"""Budget: bytes that many requests may hold together, so that their sum is bounded and not only each of them.

It does not know what the bytes are. Only the event loop's thread uses it.
"""

from __future__ import annotations

from service.errors import QueueFull

RETRY_AFTER_S = 1.0


class Budget:
    """``take`` before bytes are kept, ``give`` when they are gone."""

    def __init__(self, limit: int, name: str) -> None:
        self.held = 0
        self._limit, self._name = limit, name

    def take(self, count: int) -> None:
        """Raises QueueFull past the limit; nothing is taken then."""
        if self.held + count > self._limit:
            raise QueueFull(
                f"the requests under way hold {self.held} bytes, the limit is {self._limit} ({self._name}); "
                f"try again in {RETRY_AFTER_S:g} s",
                retry_after=RETRY_AFTER_S, field=self._name, limit=self._limit, value=self.held + count,
            )  # fmt: skip
        self.held += count

    def give(self, count: int) -> None:
        self.held -= count
