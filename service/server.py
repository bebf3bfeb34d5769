"""The uvicorn server with the two bounds that it lacks: bytes and seconds of a request's headers.

It knows sockets and HTTP framing; it does not know routes or tasks.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.settings import Settings

BACKLOG = 2048


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
        backlog=BACKLOG,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=int(settings.drain_s),
        lifespan="off",
    )


class BoundedProtocol(HttpToolsProtocol):
    """httptools with an end to headers: past ``max_header_bytes`` 431, past ``header_timeout_s`` 408."""

    max_header_bytes = 64 * 1024
    header_timeout_s = 20.0
    _pending = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        at_rest = self.cycle is None or self.cycle.response_complete
        if at_rest and self._timer is None:
            self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)
        super().data_received(data)
        if self._timer is not None:  # the headers are not complete yet
            self._pending += len(data)
            if self._pending > self.max_header_bytes:
                self._refuse(431, f"the headers have over {self.max_header_bytes} bytes (max_request_header_bytes)")

    def on_headers_complete(self) -> None:
        self._stop_timer()
        super().on_headers_complete()

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
