"""The bounds on headers: bytes and seconds, on the first request and on later ones of a connection."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.houses import House, Kit, house


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
