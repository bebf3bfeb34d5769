"""The uvicorn server with what it lacks: bounded connections, and a stop that loses no request on its way.

It knows sockets; it does not know HTTP framing, routes or tasks.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import uvicorn

from service.settings import Settings
from service.web.accepting import Acceptor, Share
from service.web.pins import Pins
from service.web.protocol import BoundedProtocol

BACKLOG = 2048
TICK_S = 0.02
DRAINING = "draining"
"""In the state of each request that came after the server was told to stop."""


def server_config(settings: Settings, app: Any) -> uvicorn.Config:
    """How ``adaptserve serve`` runs its application."""
    protocol: type[asyncio.Protocol] = type("Bounded", (BoundedProtocol,), {"settings": settings})
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_config=None,  # its lines go where all lines go: service.watch.logs
        log_level=settings.log_level if settings.log_level == "debug" else "warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # service.web.door believes those that the settings name
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=int(settings.drain_s),
        lifespan="off",
    )


class Server(uvicorn.Server):
    """Uvicorn that, told to stop, cuts nobody off: it answers what it took and refuses what still comes, then closes.

    Requests that come after the word find ``DRAINING`` in ``scope["state"]``; refusing them is the application's part.
    Behind a proxy, Docker's among them, a closed listener is no refusal but a connection that breaks without an answer.
    """

    def __init__(
        self, config: uvicorn.Config, on_started: Callable[[], object] = lambda: None, share: Share | None = None,
        pins: Pins | None = None,
    ) -> None:  # fmt: skip
        """``share``: of the connections, where several processes listen on the same socket."""
        super().__init__(config)
        self._on_started, self._share, self._pins = on_started, share, pins
        self._following: asyncio.Task[None] | None = None
        if share is not None:
            self.server_state.connections = cast(Any, share)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so; pinned tasks are there before."""
        if self._pins is not None:
            await self._pins.settle()
            self._following = asyncio.create_task(self._pins.follow())
        if self._share is None:
            await super().startup(sockets)
        else:
            await super().startup([])
            for listener in sockets or ():
                listener.listen(BACKLOG)
                self.servers.append(cast(Any, Acceptor(listener, self._share, self._protocol)))
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Return when all is answered, at the latest after ``timeout_graceful_shutdown`` seconds and one."""
        if self._following is not None:
            self._following.cancel()
        end = time.monotonic() + (self.config.timeout_graceful_shutdown or 0)
        self.lifespan.state[DRAINING] = True
        taken, connections = set(self.server_state.tasks), set(self.server_state.connections)
        for connection in connections:
            cast(BoundedProtocol, connection).shutdown()
        while time.monotonic() < end and not self.force_exit:
            if not (taken & self.server_state.tasks or connections & self.server_state.connections):
                break
            await asyncio.sleep(TICK_S)
        await self._close_listeners()
        self.config.timeout_graceful_shutdown = max(1, int(end - time.monotonic()))
        await super().shutdown(sockets)

    async def _close_listeners(self) -> None:
        """First taking what the kernel has already connected: closing would reset it."""
        listeners = [socket.socket(fileno=os.dup(own.fileno())) for server in self.servers for own in server.sockets]
        for server in self.servers:
            server.close()  # the loop takes no more; the copies keep the listeners alive until they are empty
            if isinstance(server, Acceptor):
                await server.wait_closed()  # what it has just taken must hear of the stop as well
        loop = asyncio.get_running_loop()
        for connection in [connection for listener in listeners for connection in _empty(listener)]:
            await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(
            config=self.config,  # type: ignore[call-arg]
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )


def _empty(listener: socket.socket) -> Iterator[socket.socket]:
    """Every connection that waits, then close: nothing may come between the last look and that."""
    with listener:
        listener.setblocking(False)
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # none is left, or no file descriptor is
                return
            yield connection
