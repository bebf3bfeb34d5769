"""The supervisor's side of a trainer: its process runs while there is work, and is started again when it dies in it.

It knows the jobs' records; it does not know how a process is started.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from adapters.errors import AdaptError
from service.family import Child, how_ended
from service.messages import JOB, Told
from service.settings import Settings
from service.teach.jobs import Jobs

log = logging.getLogger(__name__)

PAUSE_S, MOST_PAUSE_S = 1.0, 60.0
"""After a trainer that ended by mistake, longer each time in a row."""


def recovered_jobs(settings: Settings) -> Jobs:
    """The records, once what an earlier server left behind is put right. Blocks."""
    jobs = Jobs(settings.data_dir, owner="supervisor")
    try:
        jobs.recover(settings.max_trainings)
    except AdaptError as error:  # a sick disk may still be served from
        log.warning("recovery of trainings: %s", error.message)
    return jobs


class Keeper:
    """Of one trainer. ``run`` never ends; whoever cancels it ends the process too.

    A trainer waits a moment for more before it ends; one that does not hear of a job is started again for it.
    """

    def __init__(self, slot: int, jobs: Jobs, start: Callable[[int], Awaitable[Child]]) -> None:
        self._slot, self._jobs, self._start = slot, jobs, start
        self._child: Child | None = None
        self._wake = asyncio.Event()
        self._wake.set()  # there may be work from before

    def wake(self) -> None:
        """There is another job."""
        self._wake.set()
        if self._child is not None:
            self._child.channel.send(Told(JOB, None))

    async def run(self) -> None:
        """Let the trainer run whenever there is work for it."""
        pause = 0.0
        while True:
            if not pause:
                await self._wake.wait()
                self._wake.clear()
            await asyncio.sleep(pause)
            pause = 0.0 if await self._once() else min(MOST_PAUSE_S, 2 * pause or PAUSE_S)

    async def _once(self) -> bool:
        """True when nothing is left to do."""
        try:
            while await asyncio.to_thread(self._jobs.work, self._slot):
                self._child = one = await self._start(self._slot)
                code = await asyncio.shield(one.ended)
                if code:
                    log.error("the %s process %s; another one goes on with its work", one.name, how_ended(code))
                    return False
        except (AdaptError, OSError) as error:
            log.error("the trainer cannot be started: %s", error)
            return False
        except Exception:
            log.exception("the trainer cannot be started")
            return False
        return True
