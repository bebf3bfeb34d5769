"""How long an HTTP connection waits for its client to have sent and to have read, and how it ends.

It knows sockets and uvicorn's protocol class; it does not know headers. ``service.web.protocol`` reads requests.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from functools import partial

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.settings import Settings

log = logging.getLogger(__name__)

PARTING_S = 2.0
"""How long a connection lasts on which nothing more is answered, so that unread bytes do not reset the answer away."""
LINGER_S = 0.5
"""At a stop, how long a connection without a request is still listened to, since one may be on its way."""
FIRST_S = 2.0
"""So long after it came, at least, where it has asked nothing yet: who connects means to, and busy clients are late."""
MAX_PIPELINED = 16
"""Requests of one connection that wait for the answer before theirs; with more, it is not read for a while."""


class _Wire:
    """What uvicorn sees of the transport: when it closes and whether it is read is the connection's decision.

    It does not keep the connection: one that ended is freed at once, with its buffers.
    """

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport, self._connection = transport, weakref.ref(connection)
        self.pause_reading, self.get_extra_info = transport.pause_reading, transport.get_extra_info
        self.leaving = self.held = False
        self._keeps, self._head = False, b""

    def keep_head(self) -> None:
        """What is written next is an answer's head: it goes with what follows, in one packet that wakes one client."""
        self._keeps = True

    def write(self, data: bytes) -> None:
        if self._keeps:
            self._keeps, self._head = False, data
            return
        self._transport.write(self._head + data if self._head else data)
        self._head = b""

    def let_head_go(self) -> None:
        """Nothing follows, or nobody is there for it."""
        if self._transport.is_closing():
            self._head = b""
        elif self._head:
            self.write(b"")

    def is_closing(self) -> bool:
        return self.leaving or self._transport.is_closing()

    def close(self) -> None:
        connection = self._connection()
        if connection is not None:
            connection.part()

    def resume_reading(self) -> None:
        connection = self._connection()
        if connection is None or self._transport.is_closing():
            return
        self.held = len(connection.pipeline) >= MAX_PIPELINED
        if not self.held:
            self._transport.resume_reading()


class Connection(HttpToolsProtocol):
    """Throws away what comes of a body whose answer is out, closes without a reset, lets go who does not read.

    The rest of such a body is read within ``max_discard_bytes`` and ``discard_timeout_s``, and while it comes: many
    clients listen only when they have sent all, and the next request must begin where the body ends.
    """

    settings: Settings
    _wire: _Wire
    _own: asyncio.Transport
    _came: float
    _timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None
    _discard_left = 0
    _discard_end = 0.0
    _in_body = False
    """Headers came, and the end of their body did not."""
    _discarding = False
    """The answer to the body that is coming has begun."""
    _deaf = False
    """What comes is not parsed any more."""
    _spare = False
    """This connection is beyond ``max_connections``: others wait for its place."""
    _hasty = False
    """Its place is needed now."""
    _stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._own, self._wire, self._came = transport, _Wire(transport, self), self.loop.time()
        self.departed: asyncio.Future[None] = self.loop.create_future()
        super().connection_made(self._wire)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_send_timer()
        self.departed.set_result(None)
        super().connection_lost(exc)

    @property
    def _at_rest(self) -> bool:
        """No answer is due."""
        return self.cycle is None or self.cycle.response_complete

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._wire.is_closing():
            return
        if self._wire.held:
            self._wire.resume_reading()
        if self._discarding and self._at_rest:
            self._unset_keepalive_if_required()
            self._expect_rest()

    def on_message_complete(self) -> None:
        self._in_body = False
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

    def _discard(self) -> None:
        """From here on the body is not for the application."""
        if not self._discarding:
            self._discarding, self._discard_left = True, self.settings.max_discard_bytes
        self.flow.resume_reading()

    def _expect_rest(self) -> None:
        self._discard_end = self.loop.time() + self.settings.discard_timeout_s
        self._await_rest()

    def _await_rest(self) -> None:
        """Something must come within ``body_grace_s``, and all before the end."""
        left = self._discard_end - self.loop.time()
        self._set_timer(min(left, self.settings.body_grace_s), partial(self._look_at_rest, self._discard_left))

    def _look_at_rest(self, before: int) -> None:
        if self._discard_left == before or self.loop.time() >= self._discard_end:
            self._shut()
        else:
            self._await_rest()

    def _go_deaf(self) -> None:
        self._deaf, self._discard_left = True, self.settings.max_discard_bytes

    def _thrown_away(self, data: bytes) -> bool:
        """Count what nobody wants; True where it need not be parsed to find the next request."""
        if self._discarding or self._deaf:
            self._discard_left -= len(data)
            if self._discard_left < 0:
                self._shut()
        return self._deaf

    def part(self) -> None:
        """Close, but not on bytes that still come: the kernel would answer them with a reset, and drop the answer."""
        if self._wire.is_closing():
            return
        self._wire.let_head_go()
        self._wire.leaving = True
        if self._hasty or not (self._in_body or self._deaf):
            self._shut()
            return
        self._discard()
        self._own.resume_reading()
        if self._deaf:
            self._own.write_eof()
        if self._deaf or self._stopping or self._spare:
            self._set_timer(PARTING_S, self._shut)
        else:
            self._expect_rest()

    def _shut(self) -> None:
        """Close now; those bytes of an answer that are not out yet have their time."""
        self._stop_timer()
        self._wire.let_head_go()
        self._wire.leaving = True
        self._go_deaf()
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
        """The client has ``send_timeout_s`` to take something of what waits for it, and as long for the next part."""
        self._stop_send_timer()
        waiting = self._own.get_write_buffer_size()
        self._send_timer = self.loop.call_later(self.settings.send_timeout_s, self._look_at_reader, waiting)

    def _look_at_reader(self, waiting: int) -> None:
        if self._own.get_write_buffer_size() < waiting:
            self._expect_reader()
            return
        log.info(
            "a client took nothing of its answer for %g s (send_timeout_s); it is let go", self.settings.send_timeout_s
        )
        self._own.abort()

    def shutdown(self) -> None:
        """The server stops: end with the request in progress, or, where there is none, in a moment.

        A request that comes in that moment on a connection at rest is still taken, as its last.
        """
        if not self._at_rest:
            super().shutdown()
        elif self._discarding:
            self._wire.leaving = True
            self._set_timer(PARTING_S, self._shut)
        elif not self._stopping:
            first_s = self._came + FIRST_S - self.loop.time() if self.cycle is None else 0.0
            self.loop.call_later(max(LINGER_S, first_s), super().shutdown)
        self._stopping = True

    def _set_timer(self, seconds: float, then: Callable[[], None]) -> None:
        """One wait at a time: for headers, or for the end of what is thrown away."""
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
