"""A stop that cuts nobody off."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from service.settings import Settings
from service.web.server import DRAINING, Server, server_config
from tests.houses import WAIT, House, Kit, house, problem, until
from tests.wire import Wire, post


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"))) as made:
        yield made


def read_all(connection: socket.socket) -> bytes:
    found = b""
    while chunk := connection.recv(65536):
        found += chunk
    return found


def request(header: bytes = b"") -> bytes:
    return b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n"


def test_a_stopping_server_refuses_with_a_problem(home: House) -> None:
    app = home.front.served

    async def stopping(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"state": {DRAINING: True}}, receive, send)

    async def ask(path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(stopping), base_url="http://localhost") as client:
            return await client.get(path)

    for path in ("/v1/tasks", "/v1/tasks/unknown", "/readyz"):
        response = asyncio.run(ask(path))
        assert "is stopping" in str(problem(response, 503)["detail"])
        assert response.headers["connection"] == "close"
    assert asyncio.run(ask("/livez")).status_code == 200


class Small:
    """An application that refuses while the server stops, as ours does; /slow takes its time."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.taken = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.taken += 1
        if scope["path"] == "/slow":
            await asyncio.to_thread(self.gate.wait, WAIT)
        status = 503 if scope["state"].get(DRAINING) else 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


class Crowded(Server):
    """In the moment before it stops, clients connect: the loop has not seen them, the kernel has."""

    late: list[socket.socket]

    async def on_tick(self, counter: int) -> bool:
        stop = await super().on_tick(counter)
        if stop:
            self.late = [socket.create_connection(address(self), timeout=WAIT) for _ in range(20)]
            self.greet()
        return stop

    def greet(self) -> None:
        """And ask."""
        for connection in self.late:
            connection.sendall(request())


class Pensive(Crowded):
    """As those, but they ask when nobody listens any more, and a good while later: their machine is busy."""

    BUSY_S = 0.7

    def greet(self) -> None:
        pass

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(self.BUSY_S, super().greet)
        await super().shutdown(sockets)


def address(server: Server) -> tuple[str, int]:
    host, port = server.servers[0].sockets[0].getsockname()
    return host, port


@dataclass
class Running:
    """A server in a thread of its own, and how to reach it."""

    server: Server
    thread: threading.Thread
    app: Small
    place: tuple[str, int]

    def connect(self) -> socket.socket:
        return socket.create_connection(self.place, timeout=WAIT)

    def stopped(self) -> bool:
        self.thread.join(WAIT)
        return not self.thread.is_alive()


@contextmanager
def running(kind: type[Server], **changes: Any) -> Iterator[Running]:
    app = Small()
    config = server_config(Settings(**changes), app)
    config.port = 0
    server = kind(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert until(lambda: server.started)
        yield Running(server, thread, app, address(server))
    finally:
        server.should_exit = True
        app.gate.set()
        thread.join(WAIT)


def status(connection: socket.socket) -> bytes:
    return connection.recv(65536)[:12]


@pytest.mark.parametrize("kind", [Crowded, Pensive])
def test_a_stop_answers_whom_the_kernel_had_connected(kind: type[Crowded]) -> None:
    with running(kind) as home:
        home.server.should_exit = True
        assert home.stopped()
        assert isinstance(home.server, Crowded)
        for connection in home.server.late:
            with connection:
                assert read_all(connection).startswith(b"HTTP/1.1 503")


def test_a_stop_answers_what_was_taken_and_refuses_the_rest() -> None:
    with running(Server) as home, home.connect() as slow, home.connect() as kept:
        kept.sendall(request())
        assert status(kept) == b"HTTP/1.1 200"
        slow.sendall(request().replace(b"/livez", b"/slow"))
        assert until(lambda: home.app.taken == 2)
        home.server.should_exit = True
        assert until(lambda: DRAINING in home.server.lifespan.state)
        kept.sendall(request())
        answer = read_all(kept)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"connection: close" in answer
        with home.connect() as new:
            new.sendall(request())
            assert status(new) == b"HTTP/1.1 503"
        home.app.gate.set()
        answer = read_all(slow)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
        assert home.stopped()
        with pytest.raises(ConnectionRefusedError):
            home.connect()


def test_an_idle_connection_does_not_hold_a_stop() -> None:
    with running(Server) as home, home.connect() as connection:
        connection.sendall(request())
        assert status(connection) == b"HTTP/1.1 200"
        home.server.should_exit = True
        assert read_all(connection) == b""
        assert home.stopped()


def test_a_request_without_end_does_not_hold_a_stop_past_its_bound() -> None:
    with running(Server, drain_s=1) as home, home.connect() as slow:
        slow.sendall(request().replace(b"/livez", b"/slow"))
        assert until(lambda: home.app.taken == 1)
        start = time.monotonic()
        home.server.should_exit = True
        read_all(slow)
        assert 1 <= time.monotonic() - start < 10
        home.app.gate.set()
        assert home.stopped()


def test_a_stop_waits_for_what_is_thrown_away_but_not_long() -> None:
    """An answer came before its body's end: the client still sends, and must see the answer, not a reset."""
    with running(Server) as home, Wire(home.connect()) as sends, Wire(home.connect()) as hangs:
        for wire in (sends, hangs):
            wire.send(post("/early", bytes(1000), length=200_000))
            assert wire.answer().status == 200
        home.server.should_exit = True
        assert until(lambda: DRAINING in home.server.lifespan.state)
        start = time.monotonic()
        sends.send(bytes(199_000))
        assert sends.ended()
        assert hangs.ended()
        assert home.stopped()
        assert time.monotonic() - start < 10
