"""Uploads: a staged file -> checked, tried once on the engine, published; or refused, leaving nothing behind.

It knows what an engine answers, and the catalogue; it does not know HTTP, tensors or where the bytes came from.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from adapters.errors import AdaptError
from adapters.header import Header, refuse_pickle_name
from service.engine.interface import Link
from service.errors import ClientGone, QueueFull, status_of
from service.pool import Pool
from service.store.catalogue import Catalogue
from service.store.events import Actor
from service.store.repository import Staging, VersionInfo
from service.watch.metrics import Metrics
from service.web.caller import Caller

T = TypeVar("T")

RETRY_AFTER_S = 1.0
BUFFER_BYTES = 1024 * 1024
"""Bytes gathered before a worker writes them, so that the disk never holds up the event loop."""


@dataclass(frozen=True)
class Published:
    """What an upload came to. ``created`` is False when the task had these very bytes before."""

    info: VersionInfo
    header: Header
    created: bool


class StagedFile:
    """A file that bytes are streamed into; a sink for ``service.web.routes.bodies``."""

    def __init__(self, staging: Staging, pool: Pool) -> None:
        self.staging, self._pool = staging, pool
        self._buffer = bytearray()

    async def write(self, chunk: bytes) -> None:
        self._buffer += chunk
        if len(self._buffer) >= BUFFER_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Hand what was gathered to the disk."""
        whole = bytes(self._buffer)
        self._buffer.clear()
        await asyncio.wrap_future(self._pool.submit(lambda: self.staging.write(whole)))


class Uploads:
    """At most ``max_uploads`` at a time; one more gets QueueFull before its body is read."""

    def __init__(self, catalogue: Catalogue, engine: Link, pool: Pool, metrics: Metrics, *, max_uploads: int) -> None:
        self._catalogue, self._engine = catalogue, engine
        self._pool, self._metrics = pool, metrics
        self._limit, self._running = max_uploads, 0

    @asynccontextmanager
    async def staging(self, max_bytes: int) -> AsyncIterator[StagedFile]:
        """Room for one upload and a file to stream into; the file is gone afterwards unless it was published."""
        self._enter()
        staged: StagedFile | None = None
        try:
            staged = StagedFile(
                await self._work(lambda: self._catalogue.repository.open_staging(max_bytes)), self._pool
            )
            yield staged
        except AdaptError as error:
            ours = status_of(error) >= 500 and not isinstance(error, ClientGone)
            self._metrics.uploaded("failed" if ours else "refused")
            raise
        except BaseException:
            self._metrics.uploaded("failed")
            raise
        finally:
            if staged is not None:
                self._discard(staged.staging)
            self._running -= 1

    async def publish(
        self, staged: StagedFile, task: str, filename: str | None, caller: Caller, *, activate: bool, by: Actor
    ) -> Published:
        """Check, try and publish. Raises an AdapterError with what is wrong; nothing is visible before the end."""
        refuse_pickle_name(filename)
        await staged.flush()
        staging = staged.staging
        ((digest, header),) = await caller.wait([self._pool.submit(lambda: self._check(staging))], "checking the file")
        try:
            trying = self._engine.try_file(str(staging.path), digest, task, caller.deadline, caller.asker)
            await caller.wait([asyncio.ensure_future(trying)], "trying the adapter")
            # From here it is not given up: what is on the disk and what was answered must agree.
            info, created = await asyncio.shield(
                self._work(lambda: self._catalogue.publish(staging, task, header, activate=activate, by=by))
            )
        except BaseException:
            self._catalogue.release(digest)
            raise
        self._metrics.uploaded("created" if created else "same")
        return Published(info, header, created)

    def _enter(self) -> None:
        if self._running >= self._limit:
            self._metrics.uploaded("refused")
            raise QueueFull(
                f"{self._running} uploads are under way, the limit is {self._limit} (max_uploads); "
                f"try again in {RETRY_AFTER_S:g} s",
                retry_after=RETRY_AFTER_S, field="max_uploads", limit=self._limit, value=self._running + 1,
            )  # fmt: skip
        self._running += 1

    def _discard(self, staging: Staging) -> None:
        try:
            self._pool.submit(staging.discard)
        except AdaptError:  # the pool is full, or closed by a stop: what failed must stay the error that is told
            staging.discard()

    def _check(self, staging: Staging) -> tuple[str, Header]:
        return staging.finish(), self._catalogue.check(staging.path)

    async def _work(self, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._pool.submit(work))
