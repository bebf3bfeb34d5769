"""What becomes of a file from a source: checked, tried once on the engine and published, as an upload is.

It knows what an engine answers, and the catalogue; it does not know where the file came from.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from adapters.errors import AdaptError, UnknownTask
from adapters.header import Header
from service.engine.interface import Link
from service.errors import status_of
from service.settings import Settings
from service.store.catalogue import Catalogue
from service.store.events import Actor
from service.store.repository import Staging, VersionInfo
from service.watch.metrics import Metrics

log = logging.getLogger(__name__)

SOURCES = Actor(None, "sources")
"""Who makes these changes, for the history."""
SOON_S = 5.0
"""After what was not the file's fault: an engine that is being started again, a full disk, a store that is away."""
RECENT = 20
"""Of a task's changes: among them one is looked for that somebody else made."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A file that somebody wants a task to have. ``put`` is when they wanted it, in seconds since 1970.

    ``origin`` is named in the log. ``changed``: the place that it comes from had another file before, so that this is
    wanted now, also where the task has had it long since.
    """

    task: str
    origin: str
    put: float
    changed: bool


class Taking:
    """Takes files that are offered; what a task has already changes nothing, and what is older undoes nothing."""

    def __init__(self, settings: Settings, catalogue: Catalogue, engine: Link, metrics: Metrics) -> None:
        self.catalogue = catalogue
        self._settings, self._engine, self._metrics = settings, engine, metrics

    @asynccontextmanager
    async def staging(self) -> AsyncIterator[Staging]:
        """A file to write into, which is gone afterwards unless it was taken."""
        repository, most = self.catalogue.repository, self._settings.max_adapter_bytes
        staging = await asyncio.to_thread(repository.open_staging, most)
        try:
            yield staging
        finally:
            await asyncio.to_thread(staging.discard)

    def failed(self, error: AdaptError) -> None:
        """Count what was offered and is not taken."""
        self._metrics.uploaded("refused" if is_final(error) else "failed")

    async def known(self, task: str, digest: str) -> VersionInfo | None:
        """The task's version with those bytes, as the store has it this moment."""
        await self.catalogue.catch_up()
        repository = self.catalogue.repository
        if repository.follows:
            await self.catalogue.run(lambda: repository.look(task))
        return self._version(task, digest)

    async def take(self, offer: Offer, staging: Staging) -> None:
        """Make it a version, and active unless the task was changed after it was offered; not if it was deleted since.

        Raises what is wrong with the file.
        """
        digest = await asyncio.to_thread(staging.finish)
        known = await self.known(offer.task, digest)
        if known is not None:
            self._metrics.uploaded("same")
            await self.have(offer, known)
            return
        newest = await self._is_newest(offer)
        if not newest and not self.catalogue.has(offer.task):
            log.info("%s: '%s' was deleted after it came there, and stays so; touch it to have it back",
                     offer.origin, offer.task)  # fmt: skip
            return
        info = await self._publish(offer.task, staging, digest, activate=newest)
        self._metrics.uploaded("created")
        state = "active" if newest else "staged, since the task was changed after it came there"
        log.info("%s: version %d of '%s' is published and %s", offer.origin, info.number, info.task, state)

    async def have(self, offer: Offer, known: VersionInfo) -> None:
        """The task has the bytes that are offered: let them answer where that is what has changed."""
        task, number = known.task, known.number
        active = self.catalogue.active(task)
        if active == number:
            log.info("%s: '%s' has it already, as version %d, which is active", offer.origin, task, number)
        elif offer.changed and await self._is_newest(offer):
            await self.catalogue.run(lambda: self.catalogue.activate(task, number, SOURCES))
            log.info("%s: version %d of '%s' had it already, and is active", offer.origin, number, task)
        else:
            log.info("%s: '%s' has it already, as version %d; nothing changes", offer.origin, task, number)

    async def _publish(self, task: str, staging: Staging, digest: str, *, activate: bool) -> VersionInfo:
        catalogue = self.catalogue
        header: Header = await asyncio.to_thread(lambda: catalogue.check(staging.path))
        try:
            deadline = time.monotonic() + self._settings.upload_timeout_s
            await self._engine.try_file(str(staging.path), digest, task, deadline)
            info, _ = await catalogue.run(
                lambda: catalogue.publish(staging, task, header, activate=activate, by=SOURCES)
            )
        except BaseException:
            catalogue.release(digest)
            raise
        return info

    async def _is_newest(self, offer: Offer) -> bool:
        """Whether it was offered after all that others did to the task: what they activated or deleted stays so."""
        return offer.put >= await self.catalogue.run(lambda: self._last_change(offer.task))

    def _last_change(self, task: str) -> float:
        """When anybody else changed it last, in seconds since 1970; 0 for nobody. Blocks."""
        repository = self.catalogue.repository
        try:
            events = repository.past.of(task, None, RECENT).events
        except UnknownTask:
            return 0.0
        others = [event.time for event in events if event.by.origin != SOURCES.origin]
        active = self.catalogue.active(task)
        if not events and active is not None:  # from before there was a history
            others = [repository.version(task, active).created]
        return _seconds(others[0]) if others else 0.0

    def _version(self, task: str, digest: str) -> VersionInfo | None:
        try:
            versions = self.catalogue.repository.task(task).versions
        except UnknownTask:
            return None
        return next((version for version in versions.values() if version.digest == digest), None)


def is_final(error: AdaptError) -> bool:
    """Whether the file itself is at fault, so that nothing helps but another one."""
    return status_of(error) < 500 and status_of(error) != 429


def _seconds(moment: str) -> float:
    """Since 1970; 0 for what cannot be read."""
    try:
        return datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return 0.0
