"""The guardian: adds up what all front ends saw of versions under a rule, and takes the traffic from a bad one.

One for each server, where the counts come together. Of servers that share a store each looks after what it answers
itself, and whoever sees it first ends the rule: once, since a rule that was ended is not there to be ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import msgspec

from adapters.errors import AdaptError
from service.store.changes import RollBack
from service.store.events import Actor
from service.store.manifest import TaskInfo
from service.store.repository import Repository
from service.watch.versions import VersionKey, VersionNews, VersionTallies, verdict

log = logging.getLogger(__name__)

GUARDIAN = Actor(origin="guard")
AGAIN_S = 5.0
"""After so long a roll-back that failed is tried again."""


class Guardian:
    """On one event loop."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._tallies = VersionTallies()
        self._work: dict[str, asyncio.Task[None]] = {}
        """The task that is judged, and again if more is told meanwhile."""
        self._more: set[str] = set()
        self.roll_backs = 0
        """How often traffic was taken from a version, since the start."""

    def heard(self, news: Any) -> None:
        """The list of VersionNews since a front end last told; plain values where it came over a socket."""
        now, told = time.monotonic(), msgspec.convert(news, list[VersionNews])
        for one in told:
            self._tallies.add(one, now)
        for task in {one.task for one in told}:
            self._more.add(task)
            if task not in self._work:
                self._work[task] = asyncio.ensure_future(self._judge_all(task))

    def known(self, task: str) -> list[VersionNews]:
        """What is known of a task's versions, under each rule that they had lately."""
        return self._tallies.of(task)

    def answer(self, asked: str | None) -> Any:
        """What a front end asks: what is ``known`` of a task; without one, how often any was rolled back here."""
        return self.roll_backs if asked is None else self.known(asked)

    async def _judge_all(self, task: str) -> None:
        try:
            while task in self._more:
                self._more.discard(task)
                await self._judge(task)
        except AdaptError as error:
            log.error("the traffic of task '%s' could not be rolled back: %s", task, error.message)
            await asyncio.sleep(AGAIN_S)
        except Exception:
            log.exception("the versions of task '%s' could not be judged", task)
            await asyncio.sleep(AGAIN_S)
        finally:
            del self._work[task]

    async def _judge(self, task: str) -> None:
        repository = self._repository
        if repository.behind:
            await asyncio.to_thread(repository.follow)
        known = repository.ruled.get(task)
        found = None if known is None else self._verdict(known)
        if known is None or known.traffic is None or found is None:
            return
        version, why = found
        step = RollBack(known.traffic.since, version, why)
        after = await repository.run(lambda: repository.revise(task, step, by=GUARDIAN, why=why))
        if step.made:
            self.roll_backs += 1
            log.error("task '%s' is rolled back to version %s: %s", task, after.active, why)

    def _verdict(self, known: TaskInfo) -> tuple[int, str] | None:
        """Which version must go, and why."""
        traffic = known.traffic
        if traffic is None or traffic.guard is None or known.active is None:
            return None
        now, guard, since = time.monotonic(), traffic.guard, traffic.since
        active = self._tallies.lately(VersionKey(known.name, known.active, since), now)
        for number in traffic.weights:
            if number != known.active:
                own = self._tallies.lately(VersionKey(known.name, number, since), now)
                why = verdict(guard, number, own, active)
                if why is not None:
                    return number, why
        return None
