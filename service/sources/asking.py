"""A front end's side of tasks that are declared with a source, and may not be here yet.

It knows names; the process of sources fetches. Its methods may be called from any thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future

from adapters.errors import AdaptError
from service.errors import SourceFailed
from service.messages import BRING, BROUGHT, DECLARED, Failed, Told, error_of

SOON_S = 2.0


def failure(message: str, retry_after: float, **facts: object) -> SourceFailed:
    """Why a task is not here, and in how many seconds it is worth asking again."""
    error = SourceFailed(message, **facts)
    error.retry_after = retry_after
    return error


class DeclaredTasks:
    """See ``service.store.catalogue.Elsewhere``."""

    def __init__(self, wait_s: float) -> None:
        """A request waits so long."""
        self.names: frozenset[str] = frozenset()
        self.pinned: tuple[str, ...] = ()
        self._wait_s = wait_s
        self._waiting: dict[str, Future[AdaptError | None]] = {}
        self._send: Callable[[Told], None] = lambda _: None

    def connect(self, send: Callable[[Told], None]) -> None:
        """What reaches the process of sources, from now on; it is asked which tasks there are."""
        self._send = send
        send(Told(DECLARED, None))

    def heard(self, message: Told) -> None:
        """What that process tells."""
        if message.name == DECLARED:
            names, pinned = message.value
            self.names, self.pinned = frozenset(names), tuple(pinned)
            for task in list(self._waiting):  # a process that was started again has not heard of them
                self._send(Told(BRING, task))
        elif message.name == BROUGHT:
            task, kind, held = message.value
            waiting = self._waiting.pop(task, None)
            if waiting is not None:
                waiting.set_result(error_of(Failed(0, 0, kind, held)) if kind else None)

    async def bring(self, task: str) -> None:
        """Have it brought in; whoever asks for it meanwhile waits for the same. Raises SourceFailed."""
        waiting = self._waiting.get(task)
        if waiting is None:
            waiting = self._waiting[task] = Future()
            self._send(Told(BRING, task))
        try:
            async with asyncio.timeout(self._wait_s):
                error = await asyncio.shield(asyncio.wrap_future(waiting))
        except TimeoutError:
            self._waiting.pop(task, None)  # the next one asks again: the message may be lost
            raise failure(
                f"task '{task}' is being brought in from its source, which takes longer than {self._wait_s:g} s "
                "(source_wait_s); ask again",
                SOON_S, task=task,
            ) from None  # fmt: skip
        if error is not None:
            raise error.copy()
