"""Which version answers a request that names none: the active one, or what the task's traffic says of this request.

It knows the catalogue and the bytes that came; it does not know the device.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from service.errors import UnknownVersion
from service.store.catalogue import Catalogue, Served

STICKY = "X-AdaptServe-Sticky"
"""Of a request: whatever is equal there goes to one version, whichever pictures come."""
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
        return cls(sticky, lambda: digest_of(bodies))

    async def digest(self) -> str:
        if self._digest is None:
            self._digest = await self._find()
        return self._digest

    async def key(self) -> bytes:
        """Equal for what must go to one version."""
        return (await self.digest() if self._sticky is None else self._sticky).encode()


async def version_for(catalogue: Catalogue, task: str, version: int | None, picture: Picture | None) -> Served:
    """What answers: the version asked for, else as the task's rule has it. Raises as ``Catalogue.resolve``."""
    rule = catalogue.repository.ruled.get(task) if version is None and picture is not None else None
    if rule is None or rule.active is None or picture is None:
        return await catalogue.resolve(task, version)
    number = rule.active
    if rule.traffic is not None:
        number = rule.traffic.version_of(task, await picture.key())
    try:
        return replace(await catalogue.resolve(task, number), rule=rule)
    except UnknownVersion:  # the rule has ended this moment, and somebody has deleted it
        return await catalogue.resolve(task)


async def digest_of(bodies: Sequence[bytes]) -> str:
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
