"""The supervisor's side of the process of sources: started again when it ends, and between it and the front ends.

It knows what they say to each other; it does not know how a process is started.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from adapters.errors import AdaptError
from service.family import Child, Ended, has_said, how_ended
from service.messages import BRING, BROUGHT, DECLARED, Message, Told
from service.settings import Settings

log = logging.getLogger(__name__)

NAME = "sources"
"""Of the process."""
PAUSE_S, MOST_PAUSE_S = 1.0, 60.0
"""After each time that it ended, longer in a row."""
STEADY_S = 60.0
LONGEST_START_S = 120.0
"""Beyond the time that it has for sources; then the server begins without it."""


class SourcesKeeper:
    """Whoever cancels what ``begin`` gives ends the process too."""

    def __init__(
        self, settings: Settings, start: Callable[[], Awaitable[Child]], tell: Callable[[Message], None]
    ) -> None:
        """``tell`` reaches every front end."""
        self._start, self._tell = start, tell
        self._patience_s = settings.source_timeout_s + LONGEST_START_S
        self._child: Child | None = None

    async def begin(self) -> Coroutine[Any, Any, None]:
        """Start it, and wait for what is to be there before anybody is served; then what keeps it running, for ever.

        Raises what keeps it from starting.
        """
        self._child = one = await self._start()
        try:
            async with asyncio.timeout(self._patience_s):
                await has_said(one)
                await has_said(one, one.built)
        except (Ended, TimeoutError):
            log.error("the %s process does not get through its start; the server begins without what it brings", NAME)
        return self._run()

    async def _run(self) -> None:
        """Whoever is served goes on being served without it."""
        pause = 0.0
        while True:
            one = self._child
            assert one is not None, "begin has started one"
            began = asyncio.get_running_loop().time()
            code = await asyncio.shield(one.ended)
            steady = asyncio.get_running_loop().time() - began > STEADY_S
            pause = PAUSE_S if steady else min(MOST_PAUSE_S, 2 * pause or PAUSE_S)
            log.error("the %s process %s; another one is started in %g s", one.name, how_ended(code), pause)
            await asyncio.sleep(pause)
            try:
                self._child = await self._start()
            except (AdaptError, OSError) as error:
                log.error("the %s process cannot be started: %s", one.name, error)

    def heard(self, one: Child, message: Told) -> None:
        """What the process tells of tasks goes to all front ends, and what those ask to the process; nothing else."""
        if one.name == NAME and message.name in (DECLARED, BROUGHT):
            self._tell(message)
        elif one.name != NAME and message.name in (DECLARED, BRING) and self._child is not None:
            self._child.channel.send(message)
