"""Requests off a connection: bounds on headers and connections, and refusals that are answers like any other.

It knows HTTP framing; it does not know routes or tasks. What it refuses itself it hands to the application as a request
with a ``REFUSAL``, so that each refusal is a problem document, a log line and a count.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from adapters.errors import AdaptError
from service.errors import BadRequest, RequestHeaderFieldsTooLarge, RequestTimeout, TooManyConnections
from service.settings import Settings
from service.web.connection import PARTING_S, Connection

REFUSAL = "refusal"
"""In the state of a request that never came whole: a ``Refusal``. Answering with it is the application's part."""
CROWDED = "crowded"
"""In the state of each request beyond ``max_connections``. Which of them are still served is the application's part."""
EXCHANGE = "exchange"
"""In the state of each request: an ``Exchange``."""
RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its answer on the wire; ``departed`` is done once the client has closed the connection."""

    _cycle: RequestResponseCycle
    departed: asyncio.Future[None]

    @property
    def whole(self) -> bool:
        """Whether the body's end is there, so that nothing of it need be waited for."""
        return not self._cycle.more_body


@dataclass(frozen=True)
class Refusal:
    """Why a request goes no further, and the seconds since its first byte."""

    error: AdaptError
    seconds: float


class BoundedProtocol(Connection):
    """Bounds on headers (431, 408) and on connections (503). ``Upgrade`` is ignored: the answer comes over HTTP/1.1."""

    _began = 0.0
    _pending = 0
    """Bytes since something was complete: of headers, or of what a chunked body has beside its chunks."""
    _trailers = 0
    _progress = False
    _in_head = False
    _body_began = False
    _wrong: AdaptError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        beyond, reserve = len(self.connections) - self.settings.max_connections, self.settings.reserved_connections
        self._spare = beyond > 0
        self._expect_head()
        if beyond > 2 * reserve:
            transport.abort()
        elif beyond > reserve and not self._displace():
            self._refuse(too_many(self.settings))

    def _displace(self) -> bool:
        """Whether one in the reserve made way that has not asked anything: who watches the server asks at once."""
        silent = [
            other
            for other in self.connections
            if isinstance(other, BoundedProtocol) and other._spare and other.cycle is None and other is not self
        ]
        if not silent:
            return False
        oldest = min(silent, key=lambda other: other._began)
        oldest._hasty = True
        oldest._refuse(too_many(self.settings))
        return True

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._thrown_away(data):
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
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            else:
                return

    def _head(self) -> bytes:
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        self._in_head, self._began = True, time.perf_counter()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A trailer comes too late to be heeded. Raises what stops the parser where there is too much of them."""
        if not self._in_body:
            super().on_header(name, value)
            return
        self._trailers += len(name) + len(value) + 4
        if self._trailers > self.settings.max_request_header_bytes:
            self._wrong = self._too_much_beside()
            raise httptools.HttpParserError("the trailers are too large")

    def on_headers_complete(self) -> None:
        """Raises what stops the parser: ``_wrong`` says why, or the connection is about to end."""
        self._stop_timer()
        if self._wire.is_closing() or (self.cycle is not None and not self.cycle.keep_alive):
            self._go_deaf()
            raise httptools.HttpParserError("this connection takes no more requests")
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.settings.max_request_header_bytes:
            self._wrong = self._headers_too_large()
            raise httptools.HttpParserError("the headers are too large")
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._wrong = BadRequest("CONNECT asks for a proxy, and this server is none; ask it directly")
                raise httptools.HttpParserError("this is no proxy")
            return
        self._spare = self._spare and len(self.connections) > self.settings.max_connections
        if self._spare:
            self.scope["state"][CROWDED] = True
        super().on_headers_complete()
        self._progress = self._in_body = True
        self._in_head = self._body_began = False
        self._trailers = 0
        if self._stopping or self._spare:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._progress = self._body_began = True
        if not self._discarding:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._progress = True
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, partial(self._exchange, cycle, app))

    async def _exchange(self, cycle: RequestResponseCycle, app: Any, scope: Any, receive: Any, send: Any) -> None:
        """The application; it hears of a body that breaks, and the connection of an answer that does not await it."""

        async def take() -> Any:
            self._check_whole(cycle)
            message = await receive()
            self._check_whole(cycle)
            return message

        async def give(message: Any) -> None:
            if cycle.more_body and not cycle.response_started:
                self._answered_early(cycle)
            if not cycle.response_started:
                self._wire.keep_head()
                await send(message)
                return
            await send(message)
            self._wire.let_head_go()  # to HEAD nothing follows

        scope["state"][EXCHANGE] = Exchange(cycle, self.departed)
        try:
            await app(scope, take, give)
        finally:
            del scope["state"][EXCHANGE]  # it refers to the scope: both would wait for a collection

    def _check_whole(self, cycle: RequestResponseCycle) -> None:
        if self._wrong is not None and cycle.more_body and not cycle.response_started:
            raise self._wrong.copy()  # its traceback holds this connection, which must not hold it

    def _answered_early(self, cycle: RequestResponseCycle) -> None:
        """The connection lasts if the rest of the body will be read, and is sure to come."""
        claimed = next((value for name, value in cycle.scope["headers"] if name == b"content-length"), b"0")
        may_not_come = cycle.waiting_for_100_continue and not self._body_began
        if may_not_come or self._deaf or int(claimed) > self.settings.max_discard_bytes:
            cycle.keep_alive = False
        self._discard()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_head:
            self._expect_head()

    def _expect_head(self) -> None:
        """Bound the wait for headers, unless an answer is due: they are read when that is out."""
        if self._timer is not None or not self._at_rest or self._wire.is_closing():
            return
        limit = self.settings.header_timeout_s
        self._began = time.perf_counter()
        self._set_timer(min(PARTING_S, limit) if self._spare else limit, self._too_slow)

    def _too_slow(self) -> None:
        limit = self.settings.header_timeout_s
        late = RequestTimeout(
            f"the request's headers took over {limit:g} s (header_timeout_s)", field="header_timeout_s", limit=limit
        )
        self._refuse(too_many(self.settings) if self._spare else late)

    def _too_large(self) -> None:
        if self._in_body:
            self._break(self._too_much_beside())
        else:
            self._refuse(self._headers_too_large())

    def _too_much_beside(self) -> AdaptError:
        limit = self.settings.max_request_header_bytes
        return BadRequest(
            f"the chunked body has over {limit} bytes of extensions or trailers (max_request_header_bytes)",
            field="max_request_header_bytes", limit=limit,
        )  # fmt: skip

    def _headers_too_large(self) -> AdaptError:
        limit = self.settings.max_request_header_bytes
        return RequestHeaderFieldsTooLarge(
            f"the headers have over {limit} bytes (max_request_header_bytes)",
            field="max_request_header_bytes", limit=limit,
        )  # fmt: skip

    def _cannot_parse(self, error: Exception) -> None:
        if self._deaf:
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
            self.part()

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


def too_many(settings: Settings) -> TooManyConnections:
    """The answer to whoever comes when every connection is taken."""
    limit = settings.max_connections
    return TooManyConnections(
        f"{limit} connections are open, the limit (max_connections); try again in {RETRY_AFTER_S:g} s",
        retry_after=RETRY_AFTER_S, field="max_connections", limit=limit,
    )  # fmt: skip
