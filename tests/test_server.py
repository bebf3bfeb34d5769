"""The bounds on headers, on the first request and on later ones of a connection; a stop that cuts nobody off."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.server import Server, server_config
from service.settings import Settings
from tests.houses import WAIT, House, Kit, house, until


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder: Path = tmp_path_factory.mktemp("server")
    settings = Kit(folder).settings(
        data_dir=folder / "data", max_request_header_bytes=8000, header_timeout_s=0.5, keep_alive_s=60
    )
    with house(settings) as made:
        yield made


def connect(home: House) -> socket.socket:
    host, port = home.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def read_all(connection: socket.socket) -> bytes:
    found = b""
    while chunk := connection.recv(65536):
        found += chunk
    return found


def request(header: bytes = b"") -> bytes:
    return b"GET /livez HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n"


@pytest.mark.parametrize("first", [b"", request()])
def test_headers_without_end_are_431(home: House, first: bytes) -> None:
    with connect(home) as connection:
        if first:
            connection.sendall(first)
            assert b"200 OK" in connection.recv(65536)
        connection.sendall(b"GET /livez HTTP/1.1\r\nX-A: " + b"a" * 9000)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.split(b"\r\n\r\n")[1])["status"] == 431


@pytest.mark.parametrize("first", [b"", request()])
@pytest.mark.parametrize("partial", [b"GET /livez HTTP/1.1\r\n", b"G"])
def test_headers_that_never_end_are_408(home: House, first: bytes, partial: bytes) -> None:
    with connect(home) as connection:
        if first:
            connection.sendall(first)
            assert b"200 OK" in connection.recv(65536)
        connection.sendall(partial)
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_says_nothing_is_closed(home: House) -> None:
    with connect(home) as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


def test_many_requests_on_one_connection_and_large_bodies_pass(home: House) -> None:
    for _ in range(30):
        assert home.client.get("/livez", headers={"X-A": "a" * 5000}).status_code == 200
    assert home.client.post("/v1/tasks/none/predict", content=bytes(300_000)).status_code == 404


async def ok(scope: Any, receive: Any, send: Any) -> None:
    """The smallest application: the server does not know what it serves."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Crowded(Server):
    """In the moment before it stops, clients connect and ask: the loop has not seen them, the kernel has."""

    late: list[socket.socket]

    async def on_tick(self, counter: int) -> bool:
        stop = await super().on_tick(counter)
        if stop:
            self.late = [socket.create_connection(address(self), timeout=WAIT) for _ in range(20)]
            for connection in self.late:
                connection.sendall(request())
        return stop


def address(server: Server) -> tuple[str, int]:
    host, port = server.servers[0].sockets[0].getsockname()
    return host, port


@contextmanager
def running(kind: type[Server], **changes: Any) -> Iterator[tuple[Server, threading.Thread]]:
    config = server_config(Settings(**changes), ok)
    config.port = 0
    server = kind(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert until(lambda: server.started)
        yield server, thread
    finally:
        server.should_exit = True
        thread.join(WAIT)


def refuses(place: tuple[str, int]) -> bool:
    try:
        socket.create_connection(place, timeout=WAIT).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_stop_answers_whom_the_kernel_had_connected() -> None:
    with running(Crowded) as (server, thread):
        server.should_exit = True
        thread.join(WAIT)
        assert isinstance(server, Crowded)
        for connection in server.late:
            with connection:
                assert read_all(connection).startswith(b"HTTP/1.1 200 OK")


def test_a_stop_answers_a_request_on_its_way_and_no_further_one() -> None:
    with running(Server) as (server, thread), socket.create_connection(address(server), timeout=WAIT) as connection:
        place = address(server)
        connection.sendall(request())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
        server.should_exit = True
        assert until(lambda: refuses(place))
        connection.sendall(request())
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"connection: close" in answer
        thread.join(WAIT)
        assert not thread.is_alive()


def test_an_idle_connection_does_not_hold_a_stop() -> None:
    with running(Server) as (server, thread), socket.create_connection(address(server), timeout=WAIT) as connection:
        connection.sendall(request())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
        server.should_exit = True
        assert read_all(connection) == b""
        thread.join(WAIT)
        assert not thread.is_alive()
