"""What tells a request apart, where several versions share a task's traffic: a header, or the bytes that came.

It does not know versions; ``service.web.comparisons`` does.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence

STICKY = "X-AdaptServe-Sticky"
"""Of a request: whatever is equal there goes to one version, whichever pictures come."""
MAX_STICKY = 1024
"""Characters of it."""
LARGE = 256 * 1024
"""Bytes from which they are hashed off the event loop: a quarter of a millisecond here."""


class Picture:
    """What a request is told by, worked out when it is first asked for: the header, or the digest of what came."""

    def __init__(self, sticky: str | None, find: Callable[[], Awaitable[str]]) -> None:
        self._sticky, self._find = sticky, find
        self._digest: str | None = None

    @classmethod
    def of(cls, sticky: str | None, *bodies: bytes) -> Picture:
        """Of one picture or clip: the sha256 of its bytes, by which examples are known too. Of several: of theirs."""
        return cls(sticky, lambda: _digest_of(bodies))

    async def digest(self) -> str:
        if self._digest is None:
            self._digest = await self._find()
        return self._digest

    async def key(self) -> bytes:
        """Equal for what must go to one version."""
        return (self._sticky or await self.digest()).encode()


async def _digest_of(bodies: Sequence[bytes]) -> str:
    """sha256, in hex."""
    if sum(map(len, bodies)) < LARGE:
        return sha256(bodies)
    return await asyncio.to_thread(sha256, bodies)


def sha256(bodies: Sequence[bytes]) -> str:
    """Of one body, or of several ones' digests."""
    if len(bodies) == 1:
        return hashlib.sha256(bodies[0]).hexdigest()
    whole = hashlib.sha256()
    for body in bodies:
        whole.update(hashlib.sha256(body).digest())
    return whole.hexdigest()
