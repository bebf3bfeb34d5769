"""One HTTP/1.1 connection: uvicorn's httptools protocol, with a bound on all that a client may leave undone.

It knows sockets and HTTP framing; it does not know routes or tasks. What it refuses itself it hands to the application
as a request with a ``REFUSAL``, so that each refusal is a problem document, a log line and a count like any other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from adapters.errors import AdaptError
from service.errors import BadRequest, RequestHeaderFieldsTooLarge, RequestTimeout, TooManyConnections
from service.settings import Settings

log = logging.getLogger(__name__)

REFUSAL = "refusal"
"""In the state of a request that never came whole: a ``Refusal``. Answering with it is the application's part."""
CROWDED = "crowded"
"""In the state of each request beyond ``max_connections``. Which of them are still served is the application's part."""
RETRY_AFTER_S = 1.0
PARTING_S = 2.0
"""How long a connection lasts on which nothing more will be answered, so that unread bytes do not reset the answer."""
LATE_S = 0.1
"""At a stop, how long a connection is still listened to that came while the others ended."""
MAX_PIPELINED = 16
"""Requests of one connection that wait for the answer before theirs; with more, it is not read for a while."""


@dataclass(frozen=True)
class Refusal:
    """Why a request goes no further, and the seconds since its first byte."""

    error: AdaptError
    seconds: float


class _Wire:
    """What uvicorn sees of the transport: closing it is the protocol's decision, and so is reading on."""

    def __init__(self, transport: asyncio.Transport, protocol: BoundedProtocol) -> None:
        self._transport, self._protocol = transport, protocol
        self.write, self.pause_reading = transport.write, transport.pause_reading
        self.get_extra_info = transport.get_extra_info
        self.leaving = self.held = False

    def is_closing(self) -> bool:
        return self.leaving or self._transport.is_closing()

    def close(self) -> None:
        self._protocol.part()

    def resume_reading(self) -> None:
        self.held = len(self._protocol.pipeline) >= MAX_PIPELINED
        if not self.held and not self._transport.is_closing():
            self._transport.resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """Bounds on headers (431, 408), on connections (503), on a body whose answer is out, and on an answer not taken.

    A body that an early answer leaves unread is read on and thrown away, within ``max_discard_bytes`` and
    ``discard_timeout_s``: the client sees the answer, and the next request of the connection begins where it should.
    ``Upgrade`` is ignored. At a stop, a request that comes in a moment on a connection at rest is taken as its last.
    """

    settings = Settings()
    _wire: _Wire
    _own: asyncio.Transport
    _timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None
    _began = 0.0
    _pending = 0
    _discard_left = 0
    _in_head = _in_body = _body_began = _progress = False
    _discarding = _deaf = _spare = _stopping = False
    _wrong: AdaptError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._own, self._wire = transport, _Wire(transport, self)
        super().connection_made(self._wire)  # type: ignore[arg-type]
        beyond = len(self.connections) - self.settings.max_connections
        self._spare = beyond > 0
        self._expect_head()
        if beyond > 2 * self.settings.reserved_connections:
            transport.abort()
        elif beyond > self.settings.reserved_connections:
            self._refuse(too_many(self.settings))

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._discarding or self._deaf:
            self._discard_left -= len(data)
            if self._discard_left < 0:
                self._shut()
                return
        if self._deaf:
            return
        self._progress = False
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._cannot_parse(error)
            return
        self._pending = 0 if self._progress else self._pending + len(data)
        if self._pending > self.settings.max_request_header_bytes:
            self._too_large()
        elif self._in_head or not (self._progress or self._in_body):
            self._expect_head()

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as pause:
                # llhttp takes what follows for another protocol. The same head without `Upgrade` begins it anew.
                data = self._head() + data[pause.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            else:
                return

    def _head(self) -> bytes:
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # a trailer comes too late to be heeded
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Raises what stops the parser: ``_wrong`` says why, or the connection is to end and more is not wanted."""
        self._stop_timer()
        if self._wire.is_closing() or (self.cycle is not None and not self.cycle.keep_alive):
            self._deaf = True
            raise httptools.HttpParserError("the connection takes no more requests")
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.settings.max_request_header_bytes:
            self._wrong = self._headers_too_large()
            raise httptools.HttpParserError("headers too large")
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._wrong = BadRequest("CONNECT asks for a proxy, and this server is none; ask it directly")
                raise httptools.HttpParserError("CONNECT")
            return
        self._spare = self._spare and len(self.connections) > self.settings.max_connections
        if self._spare:
            self.scope["state"][CROWDED] = True
        self._progress = self._in_body = True
        self._in_head = self._body_began = False
        try:
            super().on_headers_complete()
        except BaseException:
            self._in_body = False
            raise
        if self._stopping or self._spare:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._progress = self._body_began = True
        if not self._discarding:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._progress, self._in_body = True, False
        super().on_message_complete()
        if not self._discarding:
            return
        self._discarding = False
        self._stop_timer()
        if self._wire.leaving:
            self._shut()
        elif self._at_rest:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, partial(self._exchange, cycle, app))

    async def _exchange(self, cycle: RequestResponseCycle, app: Any, scope: Any, receive: Any, send: Any) -> None:
        """The application with a word from the protocol: the body is broken; the answer comes before its end."""

        async def take() -> Any:
            message = None if self._broken(cycle) else await receive()
            if message is None or self._broken(cycle):
                assert self._wrong is not None
                raise self._wrong
            return message

        async def give(message: Any) -> None:
            if cycle.more_body and not cycle.response_started:
                self._answered_early(cycle)
            await send(message)

        await app(scope, take, give)

    def _broken(self, cycle: RequestResponseCycle) -> bool:
        return self._wrong is not None and cycle.more_body and not cycle.response_started

    def _answered_early(self, cycle: RequestResponseCycle) -> None:
        """What is still to come of this body is not wanted. A client that waits for 100 Continue may never send it."""
        waits = cycle.waiting_for_100_continue and not self._body_began
        claimed = next((value for name, value in cycle.scope["headers"] if name == b"content-length"), b"0")
        if waits or self._deaf or int(claimed) > self.settings.max_discard_bytes:
            cycle.keep_alive = False
        self._discarding, self._discard_left = True, self.settings.max_discard_bytes
        self.flow.resume_reading()  # a client may listen only when it has sent all

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._wire.is_closing():
            return
        if self._wire.held:
            self._wire.resume_reading()
        if self._discarding and self._at_rest:
            self._unset_keepalive_if_required()
            self._set_timer(PARTING_S if self._spare else self.settings.discard_timeout_s, self._shut)
        elif self._in_head:
            self._expect_head()

    def part(self) -> None:
        """Close, but not on bytes that still come: the kernel would answer them with a reset, and drop the answer."""
        if self._wire.is_closing():
            return
        self._wire.leaving = True
        if not (self._in_body or self._deaf):
            self._shut()
            return
        if self._deaf:
            self._own.write_eof()
        elif not self._discarding:
            self._discarding, self._discard_left = True, self.settings.max_discard_bytes
        short = self._deaf or self._spare or self._stopping
        self._set_timer(PARTING_S if short else self.settings.discard_timeout_s, self._shut)
        self._own.resume_reading()

    def _shut(self) -> None:
        """Close now; the bytes of an answer that are not out yet have their time."""
        self._stop_timer()
        self._wire.leaving = self._deaf = True
        self._own.close()
        if self._own.get_write_buffer_size():
            self._expect_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reader()

    def resume_writing(self) -> None:
        self._stop_send_timer()
        super().resume_writing()

    def _expect_reader(self) -> None:
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(self.settings.send_timeout_s, self._not_taken)

    def _not_taken(self) -> None:
        log.info(
            "a client did not take its answer for %g s (send_timeout_s); it is let go", self.settings.send_timeout_s
        )
        self._own.abort()

    def shutdown(self) -> None:
        """Uvicorn's word to all, once the listeners are closed."""
        self.leave(LATE_S)

    def leave(self, linger_s: float) -> None:
        """The server stops: end with the request in progress, or, where there is none, in a moment."""
        if self._discarding and self._at_rest:
            self._wire.leaving = True
            self._set_timer(PARTING_S, self._shut)
        elif not self._at_rest:
            super().shutdown()
        elif not self._stopping:
            self.loop.call_later(linger_s, super().shutdown)
        self._stopping = True

    @property
    def _at_rest(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        """Wait for the next headers no longer than their time; while an answer is due, that waits first."""
        if self._timer is not None or not self._at_rest or self._wire.is_closing():
            return
        limit = self.settings.header_timeout_s
        self._began = time.perf_counter()
        self._set_timer(min(PARTING_S, limit) if self._spare else limit, self._too_slow)

    def _set_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _too_slow(self) -> None:
        limit = self.settings.header_timeout_s
        late = RequestTimeout(
            f"the request's headers took over {limit:g} s (header_timeout_s)", field="header_timeout_s", limit=limit
        )
        self._refuse(too_many(self.settings) if self._spare else late)

    def _too_large(self) -> None:
        if self._in_body:
            self._break(BadRequest("the chunked body has too much beside its chunks: extensions or trailers"))
        else:
            self._refuse(self._headers_too_large())

    def _headers_too_large(self) -> AdaptError:
        limit = self.settings.max_request_header_bytes
        return RequestHeaderFieldsTooLarge(
            f"the headers have over {limit} bytes (max_request_header_bytes)",
            field="max_request_header_bytes", limit=limit,
        )  # fmt: skip

    def _cannot_parse(self, error: Exception) -> None:
        if self._deaf:  # what came after the last request that is answered
            self._discard_left = self.settings.max_discard_bytes
            return
        ours = isinstance(error, httptools.HttpParserCallbackError)  # raised where the headers were read
        wrong = self._wrong or BadRequest(f"this is not HTTP/1.1: {'the address does not parse' if ours else error}")
        if self._in_body:
            self._break(wrong)
        else:
            self._refuse(wrong)

    def _break(self, wrong: AdaptError) -> None:
        """The body cannot be read to its end: who reads it hears that; the connection ends with the answer."""
        self._wrong = wrong
        self._go_deaf()
        self.cycle.keep_alive = False
        self.cycle.message_event.set()
        if self.cycle.response_complete:
            self._shut()

    def _refuse(self, error: AdaptError) -> None:
        """Answer with ``error`` after what came before it, then close."""
        if self._wire.is_closing() or self._deaf:
            return
        self._stop_timer()
        self._go_deaf()
        method = self.parser.get_method().decode("ascii") if self._in_head and self.url else "-"
        HttpToolsProtocol.on_message_begin(self)
        self.scope |= {"method": method, "path": "", "raw_path": b"", "query_string": b""}
        self.scope["state"][REFUSAL] = Refusal(error, time.perf_counter() - self._began)
        cycle = RequestResponseCycle(
            scope=self.scope, transport=self.transport, flow=self.flow, logger=self.logger,
            access_logger=self.access_logger, access_log=False, default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(), expect_100_continue=False, keep_alive=False,
            on_response=self.on_response_complete,
        )  # fmt: skip
        cycle.more_body = False
        waits, self.cycle = not self._at_rest, cycle
        if waits:
            self.pipeline.appendleft((cycle, self.app))
        else:
            self._start_asgi_task(cycle, self.app)

    def _go_deaf(self) -> None:
        self._deaf, self._discard_left = True, self.settings.max_discard_bytes


def too_many(settings: Settings) -> TooManyConnections:
    """The answer to whoever comes when every connection is taken."""
    limit = settings.max_connections
    return TooManyConnections(
        f"{limit} connections are open, the limit (max_connections); try again in {RETRY_AFTER_S:g} s",
        retry_after=RETRY_AFTER_S, field="max_connections", limit=limit,
    )  # fmt: skip
