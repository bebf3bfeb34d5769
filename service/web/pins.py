"""Pins: the tasks that are always on the device, whichever of their versions is active, whatever else is asked for.

Versions that a task's traffic or shadow names are brought there too, once, before the first request for them.

It knows the catalogue and what an engine answers; it does not know HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from adapters.errors import AdaptError, NoRoom
from adapters.limits import variable
from service.engine.interface import Link
from service.messages import Item
from service.settings import Settings
from service.share_settings import pinned_of
from service.store.catalogue import Catalogue
from service.store.manifest import TaskInfo, VersionInfo

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""How often it looks whether another version is active: so late a pin may follow."""
BRING_S = 30.0
"""For how long a version may be on its way to the device."""


class Pins:
    """``settle`` before anybody is served, then ``follow`` as long as somebody is."""

    def __init__(self, settings: Settings, engine: Link, catalogue: Catalogue) -> None:
        """Raises NoRoom where the slots could not hold them all."""
        self._names = pinned_of(settings.pinned_tasks)
        self._engine, self._catalogue = engine, catalogue
        self._told: Mapping[str, str] = {}
        self._known: Mapping[str, TaskInfo] = {}
        slots = engine.facts.slots
        if len(self._names) >= slots:
            raise NoRoom(
                f"{len(self._names)} tasks are pinned ({variable('pinned_tasks')}), and the device has {slots} slots "
                "(slots), one of which all others need; pin fewer, or raise slots",
                field="pinned_tasks", limit=slots - 1, value=len(self._names),
            )  # fmt: skip

    async def settle(self) -> None:
        """All that are there are on the device now. Raises NoRoom; what else is wrong is in the log."""
        await self._catalogue.catch_up()
        await self._bring_ruled()
        if not self._names:
            return
        self._told = wanted = self._wanted()
        items = []
        for task in wanted:
            try:
                served = await self._catalogue.resolve(task)
            except AdaptError as error:  # deleted this moment, or made for another backbone
                log.warning("the pinned task '%s' cannot be brought to the device: %s", task, error.message)
            else:
                items.append(Item(task, served.digest, self._catalogue.files(served)))
        try:
            await self._engine.pin(items)
        except NoRoom:
            raise
        except AdaptError as error:
            self._told = {}
            log.warning("a pinned task is not on the device: %s", error.message)

    async def follow(self) -> None:
        """For ever, or until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._catalogue.catch_up()
                if self._wanted() != self._told:
                    await self.settle()
                else:
                    await self._bring_ruled()
            except AdaptError as error:
                log.warning("a pinned task is not on the device: %s", error.message)
            except Exception:
                log.exception("the pinned tasks could not be looked after; it is tried again")

    async def _bring_ruled(self) -> None:
        """What new rules name; it may be put out again, as all may that are not pinned."""
        ruled, known = self._catalogue.repository.ruled, self._known
        if ruled.keys() <= known.keys() and all(known[name] is ruled.get(name) for name in known):
            return
        self._known = dict(ruled)
        had = {version.digest for task in known.values() for version in _named_by(task)}
        new = [info for task in self._known.values() for info in _named_by(task) if info.digest not in had]
        for info in new[: self._engine.facts.slots]:
            await self._bring(info)

    async def _bring(self, info: VersionInfo) -> None:
        try:
            served = await self._catalogue.resolve(info.task, info.number)
            if "device" in await self._engine.tiers([served.digest]):
                return
            await self._catalogue.repository.bring(info)
            deadline = time.monotonic() + BRING_S
            await self._engine.try_file(str(served.path), served.digest, served.task, deadline)
        except AdaptError as error:
            log.warning(
                "version %d of '%s' could not be brought to the device: %s", info.number, info.task, error.message
            )

    def _wanted(self) -> Mapping[str, str]:
        """The digest of each one that has an active version."""
        found = {}
        for name in self._names:
            if self._catalogue.active(name) is not None:
                found[name] = self._catalogue.repository.version(name, None).digest
        return found


def _named_by(task: TaskInfo) -> list[VersionInfo]:
    """The versions that answer, or are asked, beside the active one."""
    numbers = [*(task.traffic.weights if task.traffic is not None else ())]
    numbers += [task.shadow.version] if task.shadow is not None else []
    return [task.versions[number] for number in numbers if number != task.active]
