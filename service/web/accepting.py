"""Accepting where several front ends listen on one socket: each takes its share of the connections.

Left alone, whichever wakes first takes all that wait, and keeps them for as long as their clients do. The socket stays
one for all, so that whoever is in its queue when a front end dies is taken by another. It knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Callable

from service.engine.room import Cells

log = logging.getLogger(__name__)

DEFER_S = 0.002
"""How long whoever has more connections than another leaves a new one to that other."""
FULL_S = 0.1
"""How long nothing is accepted after the system gave no file for it."""


class Share(set[asyncio.Protocol]):
    """The connections of this process, how many of them others see, and what the others have.

    Stands where uvicorn keeps its set of connections.
    """

    def __init__(self, cells: Cells, own: int) -> None:
        """``cells`` has a number for each front end: of its connections, infinite while it accepts none."""
        super().__init__()
        self._cells, self._own, self._open = cells, own, False
        self._tell()

    def add(self, one: asyncio.Protocol) -> None:
        super().add(one)
        self._tell()

    def discard(self, one: object) -> None:
        super().discard(one)
        self._tell()

    def begin(self) -> None:
        """From now on this process accepts."""
        self._open = True
        self._tell()

    def end(self) -> None:
        self._open = False
        self._tell()

    @property
    def larger(self) -> bool:
        """Whether another front end has fewer."""
        return len(self) > min(self._cells)

    def _tell(self) -> None:
        self._cells[self._own] = len(self) if self._open else math.inf


class Acceptor:
    """Takes connections one at a time, and leaves them for a moment to whoever has fewer. As an ``asyncio.Server``."""

    def __init__(self, listener: socket.socket, share: Share, make: Callable[[], asyncio.Protocol]) -> None:
        listener.setblocking(False)
        self._listener, self._share, self._make = listener, share, make
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._coming: set[asyncio.Task[object]] = set()
        share.begin()
        self._listen()

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        return () if self._listener.fileno() < 0 else (self._listener,)

    def close(self) -> None:
        """Accept no more; what waits is left to others."""
        if self._listener.fileno() >= 0:
            self._share.end()
            if self._pause is not None:
                self._pause.cancel()
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()

    async def wait_closed(self) -> None:
        """Return when what was accepted has its protocol."""
        await asyncio.gather(*self._coming)

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener.fileno(), self._one_waits)

    def _one_waits(self) -> None:
        if self._share.larger:
            self._rest(DEFER_S)
        else:
            self._take()

    def _rest(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._pause = self._loop.call_later(seconds, self._after)

    def _after(self) -> None:
        """Whoever still waits was left to somebody who is busy, or is no more."""
        self._listen()
        self._take()

    def _take(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # another one was quicker, or it left
            return
        except OSError as error:
            log.error("no connection can be accepted: %s; the next attempt is in %g s", error.strerror, FULL_S)
            if self._pause is None:
                self._rest(FULL_S)
            return
        connection.setblocking(False)
        task: asyncio.Task[object] = self._loop.create_task(self._loop.connect_accepted_socket(self._make, connection))
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)
