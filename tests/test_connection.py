"""Answers that do not await the body, clients that do not read theirs: what becomes of the connection."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.keys import create, dump
from service.web.connection import Connection
from service.web.server import Server, server_config
from tests.houses import House, Kit, house, photograph, sites, until
from tests.models import Spec
from tests.wire import WAIT, Wire, chunked, get, post

MIB = 2**20


class Door(House):
    """A server with keys, and the header of each holder."""

    boss: str
    pets: str


@pytest.fixture(scope="module")
def door(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    boss, pets = create("boss", "admin"), create("pets", "predict", ["pets"])
    settings = kit.settings(
        data_dir=tmp_path_factory.mktemp("data"), keys=dump([boss[1], pets[1]]), max_body_bytes=4 * MIB,
        max_bodies_bytes=100_000, max_adapter_bytes=MIB, keep_alive_s=60,
    )  # fmt: skip
    with house(settings) as made:
        opened = Door(made.url, made.client, made.settings, made.local, made.front)
        opened.boss, opened.pets = f"Authorization: Bearer {boss[0]}", f"Authorization: Bearer {pets[0]}"
        opened.client.headers["Authorization"] = f"Bearer {boss[0]}"
        opened.put("pets", kit.file(1)[0]).raise_for_status()
        yield opened


PREDICT = "/v1/tasks/pets/predict"
EARLY = {
    "no key": (PREDICT, "", 401),
    "another's task": ("/v1/tasks/other/predict", "pets", 403),
    "no such task": ("/v1/tasks/other/predict", "boss", 404),
    "no such address": ("/v2/anything", "boss", 404),
    "no such method": ("/v1/tasks/pets/adapter", "boss", 405),
    "a wrong parameter": (f"{PREDICT}?top_k=0", "boss", 400),
    "too many bytes of all": (PREDICT, "boss", 429),
}


@pytest.mark.parametrize("size", [200, 30_000, 200_000, 5_000_000])
@pytest.mark.parametrize("name", EARLY)
def test_an_early_answer_does_not_spoil_the_next(door: Door, name: str, size: int) -> None:
    path, who, status = EARLY[name]
    if status == 429:
        size = max(size, 110_000)
        status = 429 if size < 4 * MIB else 413
    headers = (getattr(door, who),) if who else ()
    good = post(PREDICT, photograph(), door.boss)
    early = (post(path, bytes(size), *headers), chunked(path, *[bytes(50_000)] * (1 + size // 50_000), headers=headers))
    if name == "too many bytes of all":
        early = (early[0], chunked(path, *[bytes(50_000)] * 3, headers=headers))
    with Wire.to(door.url) as wire:
        for request in early:
            wire.send(request)
            assert wire.answer().problem(status if request is early[0] else EARLY[name][2])
            wire.send(good)
            assert wire.answer().status == 200
            wire.send(request + good + request, good)  # each before the answer to the one before it
            assert [wire.answer().status for _ in range(4)][1::2] == [200, 200]


@pytest.mark.parametrize(
    ("path", "statuses"), [("/v1/tasks/other/predict", (404, 200, 404)), (PREDICT, (413, 200, 429))]
)
def test_a_client_that_listens_only_when_it_has_sent_all_hears_why(
    door: Door, path: str, statuses: tuple[int, ...]
) -> None:
    key = dict([door.boss.split(": ", 1)])
    bodies = (bytes(80 * MIB), photograph(), iter([bytes(MIB)] * 80))
    with closing(http.client.HTTPConnection(door.url.removeprefix("http://"), timeout=WAIT)) as connection:
        for body, status in zip(bodies, statuses, strict=True):
            connection.request("POST", PREDICT if status == 200 else path, body, key)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status


def test_a_client_that_waits_for_the_word_to_go_on_hears_at_once(door: Door) -> None:
    expect = "Expect: 100-continue"
    with Wire.to(door.url) as wire:
        wire.send(post("/v1/tasks/other/predict", b"", expect, door.boss, length=9000))
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (404, "close")  # it may never send that body
    with Wire.to(door.url) as wire:
        wire.send(post(PREDICT, b"", expect, door.boss, length=len(photograph())))
        assert wire.answer().status == 100
        wire.send(photograph())
        assert wire.answer().status == 200
        wire.send(post("/v1/tasks/other/predict", bytes(90_000), expect, door.boss))  # it did not wait
        assert wire.answer().status == 404
        wire.send(post(PREDICT, photograph(), door.boss))
        assert wire.answer().status == 200


def test_a_get_with_a_body_is_answered_and_so_is_the_next(door: Door) -> None:
    head = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n\r\n"
    with Wire.to(door.url) as wire:
        for _ in range(2):
            wire.send(head + bytes(300_000))
            assert wire.answer().status == 200


def test_an_answer_that_closes_is_seen_by_who_still_sends(door: Door) -> None:
    for body in (bytes(3_000_000), photograph()):
        with Wire.to(door.url) as wire:
            wire.send(post("/v1/tasks/other/predict", body, "Connection: close", door.boss))
            assert wire.answer().status == 404
            assert wire.ended()


@pytest.fixture(scope="module")
def strict(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings = kit.settings(
        data_dir=tmp_path_factory.mktemp("data"), max_discard_bytes=500_000, discard_timeout_s=0.4, send_timeout_s=0.4,
        keep_alive_s=60, max_classes=40_000,
    )  # fmt: skip
    with house(settings) as made:
        made.put("pets", kit.file(1)[0]).raise_for_status()
        made.put("large", kit.file(2, Spec(sites(), 40_000, "avg", "trained"))[0]).raise_for_status()
        yield made


def test_a_rest_that_will_not_be_read_ends_the_connection_in_time(strict: House) -> None:
    with Wire.to(strict.url) as wire:  # more is announced than is thrown away
        wire.send(post("/v1/tasks/other/predict", bytes(1000), length=600_000))
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (404, "close")
        assert wire.ended()
    with Wire.to(strict.url) as wire:  # it would be read, but does not come
        wire.send(post("/v1/tasks/other/predict", bytes(1000), length=400_000))
        answer = wire.answer()
        assert answer.status == 404
        assert "connection" not in answer.headers
        assert wire.ended()
    with Wire.to(strict.url) as wire:  # chunks without end
        wire.send(chunked("/v1/tasks/other/predict", bytes(1000), end=b""))
        assert wire.answer().status == 404
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            wire.send(*[b"ffff\r\n" + bytes(65535) + b"\r\n"] * 10_000)


def test_a_rest_that_comes_slowly_is_waited_for_and_one_that_pauses_is_not(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path, discard_timeout_s=60, body_grace_s=0.4)) as made:
        with Wire.to(made.url) as wire:
            wire.send(post("/v1/tasks/other/predict", length=15_000))
            assert wire.answer().status == 404
            for _ in range(15):
                threading.Event().wait(0.1)
                wire.send(bytes(1000))
            wire.send(get("/livez"))
            assert wire.answer().status == 200
        with Wire.to(made.url) as wire:
            wire.send(post("/v1/tasks/other/predict", bytes(100), length=15_000))
            assert wire.answer().status == 404
            assert wire.ended()


def test_what_is_thrown_away_is_not_kept(strict: House) -> None:
    before = psutil.Process().memory_info().rss
    with Wire.to(strict.url) as wire:
        wire.send(chunked("/v1/tasks/other/predict", end=b""))
        assert wire.answer().status == 404
        for _ in range(7):
            wire.send(b"ffff\r\n" + bytes(65535) + b"\r\n")
        assert psutil.Process().memory_info().rss < before + 8 * MIB


def held_files(home: House) -> int:
    folder = str(home.settings.data_dir)
    return sum(
        file.path.startswith(folder) and file.path.endswith(".safetensors") for file in psutil.Process().open_files()
    )


def connections(home: House) -> int:
    """The server's ends."""
    port = int(home.url.rpartition(":")[2])
    found = psutil.Process().net_connections("tcp4")
    return sum(c.laddr.port == port and c.status in ("ESTABLISHED", "CLOSE_WAIT", "FIN_WAIT1") for c in found)


def test_a_client_that_never_reads_is_let_go(strict: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "service.web.connection")
    with Wire.to(strict.url, receive_buffer=4096) as wire:
        wire.send(get("/v1/tasks/large/versions/1/adapter"))
        assert until(lambda: held_files(strict) == 1)
        assert until(lambda: held_files(strict) == 0)
        assert until(lambda: "send_timeout_s" in caplog.text)
        with pytest.raises((EOFError, ConnectionResetError)):
            wire.answer()


def test_a_client_that_reads_slowly_gets_all(kit: Kit) -> None:
    """Over three times ``send_timeout_s`` in all, but something in each."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1500000")]})
        for _ in range(15):
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        await send({"type": "http.response.body"})

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)  # accepted connections inherit it
    server = Server(server_config(kit.settings(send_timeout_s=0.5), app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with Wire.to(f"http://127.0.0.1:{listener.getsockname()[1]}", receive_buffer=4096) as wire:
            start = time.monotonic()
            wire.send(get("/"))
            found = 0
            while found < 1_500_000:
                chunk = wire.connection.recv(20_000)
                assert chunk, f"cut off after {found} bytes"
                found += len(chunk)
                pause = start + found / 1_000_000 - time.monotonic()  # a megabyte a second
                threading.Event().wait(max(0, pause))
            assert time.monotonic() - start > 1.4
    finally:
        server.should_exit = True
        thread.join(WAIT)


def test_a_client_that_asks_on_and_never_reads_holds_nothing(strict: House) -> None:
    before = psutil.Process().memory_info().rss
    with Wire.to(strict.url, receive_buffer=4096) as wire:
        wire.connection.settimeout(0.2)
        with pytest.raises(OSError, match=r"timed out|reset|Broken pipe"):
            wire.send(*[get("/v1/tasks") * 50] * 20_000)
        wire.connection.settimeout(WAIT)
        assert until(lambda: connections(strict) <= 1)  # the fixture's own
    assert psutil.Process().memory_info().rss < before + 32 * MIB


def test_many_early_answers_through_a_pool(door: Door) -> None:
    with httpx.Client(base_url=door.url, headers=dict(door.client.headers), timeout=WAIT) as client:
        for _ in range(20):
            assert client.post("/v1/tasks/other/predict", content=bytes(200_000)).status_code == 404
            assert client.post(PREDICT, content=photograph()).status_code == 200


def test_a_connection_rests_once_the_body_is_thrown_away(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path, keep_alive_s=1)) as made, Wire.to(made.url) as wire:
        wire.send(post("/v1/tasks/other/predict", length=100_000))
        assert wire.answer().status == 404
        wire.send(bytes(60_000))
        wire.send(bytes(40_000))
        start = time.monotonic()
        assert wire.ended()
        assert 0.5 < time.monotonic() - start < 5


def test_an_answer_goes_out_in_one_piece(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write wakes the client, who finds half an answer."""
    written: list[bytes] = []
    inner = Connection.connection_made

    class Transport:
        def __init__(self, real: asyncio.Transport) -> None:
            self._real = real

        def write(self, data: bytes) -> None:
            written.append(data)
            self._real.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    def connection_made(self: Connection, transport: asyncio.Transport) -> None:
        inner(self, Transport(transport))  # type: ignore[arg-type]

    monkeypatch.setattr(Connection, "connection_made", connection_made)
    with Wire.to(door.url) as wire:
        for method in ("GET", "HEAD"):
            wire.send(f"{method} /livez HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert until(lambda: len(written) > 0)
            (whole,) = written
            assert whole.startswith(b"HTTP/1.1 200")
            assert whole.endswith(b'{"status":"live"}' if method == "GET" else b"\r\n\r\n")
            written.clear()
