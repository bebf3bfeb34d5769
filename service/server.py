"""The uvicorn server with what it lacks: bounds on a request's headers, and a stop that loses no request on its way.

It knows sockets and HTTP framing; it does not know routes or tasks.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.settings import Settings

BACKLOG = 2048
LINGER_S, LATE_S = 0.5, 0.1
"""At a stop, how long a connection without a request is still listened to, since one may be on its way: first those
that were there, then those that came while the others ended.
"""
TICK_S = 0.02
DRAINING = "draining"
"""In the state of each request that came after the server was told to stop."""


def server_config(settings: Settings, app: Any) -> uvicorn.Config:
    """How ``adaptserve serve`` runs its application."""
    bounds = {"max_header_bytes": settings.max_request_header_bytes, "header_timeout_s": settings.header_timeout_s}
    protocol: type[asyncio.Protocol] = type("Bounded", (BoundedProtocol,), bounds)
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_config=None,  # its lines go where all lines go: service.logs
        log_level=settings.log_level if settings.log_level == "debug" else "warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # service.door believes those that the settings name
        backlog=BACKLOG,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=int(settings.drain_s),
        lifespan="off",
    )


class Server(uvicorn.Server):
    """Uvicorn that, told to stop, cuts nobody off: it answers what it took and refuses what still comes, then closes.

    Requests that come after the word find ``DRAINING`` in ``scope["state"]``; refusing them is the application's part.
    Behind a proxy, Docker's among them, a closed listener is no refusal but a connection that breaks without an answer.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Return when all is answered, at the latest after ``timeout_graceful_shutdown`` seconds and one."""
        end = time.monotonic() + (self.config.timeout_graceful_shutdown or 0)
        self.lifespan.state[DRAINING] = True
        taken, connections = set(self.server_state.tasks), set(self.server_state.connections)
        for connection in connections:
            cast(BoundedProtocol, connection).leave(LINGER_S)
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


class BoundedProtocol(HttpToolsProtocol):
    """httptools with an end to headers: past ``max_header_bytes`` 431, past ``header_timeout_s`` 408.

    At a stop, a request that comes within LINGER_S on a connection at rest is still taken, as its last.
    """

    max_header_bytes = 64 * 1024
    header_timeout_s = 20.0
    _pending = 0
    _timer: asyncio.TimerHandle | None = None
    _stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Uvicorn's word to all, once the listeners are closed."""
        self.leave(LATE_S)

    def leave(self, linger_s: float) -> None:
        """The server stops: end with the request in progress, or, where there is none, in a moment."""
        if self._at_rest and not self._stopping:
            self.loop.call_later(linger_s, super().shutdown)
        elif not self._at_rest:
            super().shutdown()
        self._stopping = True

    @property
    def _at_rest(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        if self._at_rest and self._timer is None:
            self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)
        super().data_received(data)
        if self._timer is not None:  # the headers are not complete yet
            self._pending += len(data)
            if self._pending > self.max_header_bytes:
                self._refuse(431, f"the headers have over {self.max_header_bytes} bytes (max_request_header_bytes)")

    def on_headers_complete(self) -> None:
        self._stop_timer()
        super().on_headers_complete()
        if self._stopping and self.cycle is not None:
            self.cycle.keep_alive = False

    def _stop_timer(self) -> None:
        self._pending = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._refuse(408, f"the headers took over {self.header_timeout_s:g} s (header_timeout_s)")

    def _refuse(self, status: int, detail: str) -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            self.transport.write(_raw_problem(status, detail))
            self.transport.close()


def _raw_problem(status: int, detail: str) -> bytes:
    title = {408: "Request timeout", 431: "Request header fields too large"}[status]
    kind = title.lower().replace(" ", "-")
    body = json.dumps({"type": f"urn:adaptserve:problem:{kind}", "title": title, "status": status, "detail": detail})
    return (
        f"HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()
