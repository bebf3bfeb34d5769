"""Bodies off the wire: raw or one multipart field, counted while they stream, into memory or a file.

It does not know what the bytes are. Nothing here trusts Content-Length, Content-Type or a file name.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Protocol, Self

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.types import Message

from adapters.errors import UnsupportedMedia
from service.errors import BodyTooLarge, ClientGone, RequestTimeout
from service.settings import Settings
from service.web.budget import Budget
from service.web.protocol import EXCHANGE, Exchange
from service.web.routes.forms import OneFile, text_of_header

MULTIPART_OVERHEAD = 64 * 1024
"""Bytes that a form may hold besides the file: boundaries, headers, other fields."""
LOST_TO_CURL = re.compile(rb"[\0\r\n]")
"""What `curl -d @FILE` leaves out. Every picture, clip and adapter has such bytes: lengths hold zeros."""


class Sink(Protocol):
    """Where the bytes go."""

    async def write(self, chunk: bytes) -> None: ...


class Memory:
    """A sink that keeps everything, within what all may keep together; it counts until the ``async with`` ends."""

    def __init__(self, budget: Budget, holder: str = "") -> None:
        """``holder``: whose part of it they take."""
        self._budget, self._holder, self._held = budget, holder, 0
        self._chunks: list[bytes] = []

    async def write(self, chunk: bytes) -> None:
        """Raises QueueFull when all requests together hold too much."""
        self.hold(len(chunk))
        self._chunks.append(chunk)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._chunks.clear()
        self._budget.give(self._held, self._holder)

    def hold(self, count: int) -> None:
        """Count bytes that are made of these. Raises QueueFull as ``write``."""
        self._budget.take(count, self._holder)
        self._held += count

    def take(self) -> bytes:
        """The bytes so far; they are kept once only."""
        whole = b"".join(self._chunks)
        self._chunks.clear()
        return whole


async def receive(
    request: Request,
    sink: Sink,
    settings: Settings,
    *,
    limit: int,
    limit_name: str,
    fields: Sequence[str],
    json: bool = False,
) -> str | None:
    """Stream the body, or the first multipart field of that name, into ``sink``; returns the file's name if given.

    Without ``fields`` no form is read. With ``json`` the body may be that, under whatever Content-Type: `curl -d` does
    it no harm.

    Raises BodyTooLarge past ``limit`` bytes, RequestTimeout for a body that comes too slowly, BadRequest for a broken
    form or an unknown field, UnsupportedMedia for what `curl -d` sends, ClientGone, and what the sink raises. The rest
    of a body that is refused is the server's business.
    """
    if exchange(request).whole:
        return await _receive(request, sink, settings, limit, limit_name, fields, json)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await _receive(request, sink, settings, limit, limit_name, fields, json)
    except TimeoutError as error:
        longest = settings.body_timeout_s
        raise RequestTimeout(
            f"the body took over {longest:g} s (body_timeout_s); send it over a faster line, or a smaller file",
            field="body_timeout_s", limit=longest,
        ) from error  # fmt: skip


def exchange(request: Request) -> Exchange:
    """What the connection knows of this request."""
    found: Exchange = request.scope["state"][EXCHANGE]
    return found


async def _receive(
    request: Request, sink: Sink, settings: Settings, limit: int, limit_name: str, fields: Sequence[str], json: bool
) -> str | None:
    kind, options = parse_options_header(request.headers.get("content-type"))
    form = OneFile(options.get(b"boundary"), fields) if fields and kind == b"multipart/form-data" else None
    room = _Room(limit, limit_name)
    whole = _Room(limit + MULTIPART_OVERHEAD, limit_name) if form else room
    claimed = request.headers.get("content-length", "")
    if claimed.isdecimal():
        whole.check(int(claimed))
    stripped = kind == b"application/x-www-form-urlencoded"  # as --data-binary sends it too, which strips nothing
    async for chunk in _chunks(request, _Patience(settings)):
        if form is None:
            if json and not room.taken and chunk.lstrip()[:1] == b"{":
                stripped = False
            room.take(len(chunk))
            stripped = stripped and LOST_TO_CURL.search(chunk) is None
            await sink.write(chunk)
            continue
        whole.take(len(chunk))
        for piece in form.taken(chunk):
            room.take(len(piece))
            await sink.write(piece)
    if form is not None:
        form.check_complete()
        return form.filename
    if stripped and room.taken:
        raise UnsupportedMedia(
            "the body is a form, or a file that `curl -d` has damaged: -d leaves out line breaks and zero bytes; send "
            "the file with --data-binary @FILE",
            field="body",
        )
    _, disposition = parse_options_header(request.headers.get("content-disposition"))
    return text_of_header(disposition.get(b"filename"))


async def _chunks(request: Request, patience: _Patience) -> AsyncIterator[bytes]:
    while True:
        part = request.receive()
        message = await (part if exchange(request).whole else patience.wait(part))
        if message["type"] == "http.disconnect":
            raise ClientGone("the client left before it had sent the whole body")
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return


class _Patience:
    """How long the next part of a body is waited for.

    ``body_grace_s`` is a bucket: waiting empties it, and bytes fill it again, a second for each ``min_body_rate`` of
    them. So a pause is forgiven, and a trickle is not, also at the end of a body that began fast.
    """

    def __init__(self, settings: Settings) -> None:
        self._rate, self._most = settings.min_body_rate, settings.body_grace_s
        self._grace = self._most

    async def wait(self, part: Awaitable[Message]) -> Message:
        """The next message. Raises RequestTimeout."""
        start = time.monotonic()
        try:
            async with asyncio.timeout(self._grace):
                message = await part
        except TimeoutError as error:
            raise RequestTimeout(
                f"the body came at less than {self._rate:g} bytes a second (min_body_rate) for over {self._most:g} s "
                "(body_grace_s); send it over a faster line, or a smaller file",
                field="min_body_rate", limit=self._rate,
            ) from error  # fmt: skip
        refilled = self._grace + start - time.monotonic() + len(message.get("body", b"")) / self._rate
        self._grace = max(0.0, min(refilled, self._most))
        return message


class _Room:
    """Counts bytes up to a limit."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit, self._name, self.taken = limit, name, 0

    def take(self, count: int) -> None:
        self.taken += count
        self.check(self.taken)

    def check(self, count: int) -> None:
        if count > self._limit:
            raise BodyTooLarge(
                f"the body has {count} bytes or more, the limit is {self._limit} ({self._name}); send a smaller file",
                field=self._name, limit=self._limit, value=count,
            )  # fmt: skip
