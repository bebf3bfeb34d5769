"""Properties of the protocol on a transport in memory: cuts change nothing, and no bytes break it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from service.settings import Settings
from service.web.protocol import REFUSAL, BoundedProtocol
from service.web.server import server_config
from tests.wire import chunked, get, post

BODY = bytes(range(256)) * 3
UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x")
REQUESTS = {
    "get": get("/read"),
    "post": post("/read", BODY),
    "large": post("/read", BODY * 200),
    "chunks": chunked("/read", BODY, b"x", BODY),
    "trailer": chunked("/read", BODY, end=b"0\r\nX-A: b\r\n\r\n"),
    "upgrade": post("/read", BODY, *UPGRADE),
    "upgrade in chunks": chunked("/read", BODY, BODY, headers=UPGRADE),
    "upgrade without body": get("/read", *UPGRADE),
    "early": post("/early", BODY * 200),
    "early in chunks": chunked("/early", *[BODY] * 50),
    "early upgrade": post("/early", BODY, *UPGRADE),
    "empty lines": b"\r\n\r\n" + get("/read"),
}


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = self.paused = False

    def write(self, data: Any) -> None:
        assert not self.closed, "written after the end"
        self.written += data

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def write_eof(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """The digest of the body that was read; nothing is read under /early."""
    body, more = b"", scope["path"] == "/read"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    status = 200 if REFUSAL not in scope["state"] else 400
    digest = hashlib.sha256(body).hexdigest().encode() if status == 200 else b"-" * 64
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"64")]})
    await send({"type": "http.response.body", "body": digest})


async def _talk(pieces: list[bytes]) -> bytes:
    config = server_config(Settings(), refusing)
    config.load()
    protocol = config.http_protocol_class(config=config, server_state=ServerState(), app_state={})  # type: ignore[call-arg]
    assert isinstance(protocol, BoundedProtocol)
    transport = Transport()
    protocol.connection_made(transport)
    for piece in pieces:
        for _ in range(200):
            if not transport.paused:
                break
            await asyncio.sleep(0)
        if transport.closed:
            break
        protocol.data_received(piece)
    for _ in range(200):
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    await asyncio.gather(*protocol.tasks)
    return bytes(transport.written)


async def refusing(scope: Any, receive: Any, send: Any) -> None:
    """``echo``, which hears of a broken body as our application does."""
    try:
        await echo(scope, receive, send)
    except Exception as error:
        assert type(error).__name__ == "BadRequest"  # noqa: PT017
        await send({"type": "http.response.start", "status": 400, "headers": [(b"content-length", b"64")]})
        await send({"type": "http.response.body", "body": b"-" * 64})


def talk(pieces: list[bytes]) -> bytes:
    return asyncio.run(_talk(pieces))


def statuses(written: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer; nothing may be between them."""
    found = []
    while written:
        head, mark, rest = written.partition(b"\r\n\r\n")
        assert mark, written
        assert head.startswith(b"HTTP/1.1 "), written[:200]
        assert b"content-length: 64" in head
        found.append((int(head.split()[1]), rest[:64]))
        written = rest[64:]
    return found


def cut(stream: bytes, cuts: list[float]) -> list[bytes]:
    places = sorted({0, len(stream), *(int(at * len(stream)) for at in cuts)})
    return [stream[a:b] for a, b in pairwise(places)]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(REQUESTS)), min_size=1, max_size=6),
    st.lists(st.floats(0, 1), max_size=12),
)
def test_where_the_bytes_are_cut_changes_no_answer(names: list[str], cuts: list[float]) -> None:
    expected = [answer for name in names for answer in statuses(talk([REQUESTS[name]]))]
    assert [status for status, _ in expected] == [200] * len(names)
    assert statuses(talk(cut(b"".join(REQUESTS[name] for name in names), cuts))) == expected


def test_each_request_reads_its_own_body() -> None:
    def digest(body: bytes) -> tuple[int, bytes]:
        return 200, hashlib.sha256(body).hexdigest().encode()

    bodies = {"post": BODY, "upgrade": BODY, "upgrade in chunks": BODY + BODY, "large": BODY * 200, "trailer": BODY}
    for name, body in bodies.items():
        assert statuses(talk([REQUESTS[name]])) == [digest(body)]


def test_no_bytes_break_it(caplog: pytest.LogCaptureFixture) -> None:
    """Requests with bytes changed here and there end in answers, 200 or 400, with nothing between or in the log."""
    caplog.set_level(logging.INFO)
    small = sorted(name for name, request in REQUESTS.items() if len(request) < 5000)
    changed = []

    @settings(max_examples=400, deadline=None)
    @given(
        st.lists(st.sampled_from(small), min_size=1, max_size=4),
        st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), max_size=4),
        st.lists(st.floats(0, 1), max_size=6),
    )
    def check(names: list[str], changes: list[tuple[float, bytes]], cuts: list[float]) -> None:
        stream = bytearray(b"".join(REQUESTS[name] for name in names))
        for at, new in changes:
            place = int(at * len(stream))
            stream[place : place + len(new)] = new
        found = [status for status, _ in statuses(talk(cut(bytes(stream), cuts)))]
        assert set(found) <= {200, 400}
        changed.extend(found)
        assert caplog.records == []

    check()
    assert {200, 400} == set(changed)
