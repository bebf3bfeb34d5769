"""Bodies that come slowly: bounds of their own, and a deadline that begins when they are there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.web.caller import Caller
from tests.houses import House, Kit, house, photograph, until
from tests.test_app_load import Held
from tests.wire import Wire, chunked, post

PREDICT = "/v1/tasks/t/predict"
UPLOAD = "/v1/tasks/t/adapter"


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings = kit.settings(
        data_dir=tmp_path_factory.mktemp("data"), deadline_s=0.6, upload_timeout_s=1, body_grace_s=0.5,
        min_body_rate=2000, body_timeout_s=3,
    )  # fmt: skip
    with house(settings) as made:
        made.put("t", kit.file(1)[0]).raise_for_status()
        yield made


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)  # the client's own slowness, nothing that is waited for


def slowly(wire: Wire, request: bytes, seconds: float, steps: int = 20) -> None:
    """All of it in so many seconds."""
    step = -(-len(request) // steps)
    for i in range(0, len(request), step):
        wire.send(request[i : i + step])
        pause(seconds / steps)


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_slow_sender_has_its_deadline_from_the_last_byte_on(home: House, kit: Kit, method: str) -> None:
    body = photograph(size=(400, 300)) if method == "POST" else kit.file(2)[0]
    request = post(PREDICT if method == "POST" else UPLOAD, body).replace(b"POST", method.encode(), 1)
    assert len(body) > 5000  # over min_body_rate, below
    with Wire.to(home.url) as wire:
        start = time.monotonic()
        slowly(wire, request, 1.6)
        answer = wire.answer()
        assert answer.status in (200, 201), answer.body
        assert time.monotonic() - start > 1.5  # beyond deadline_s and upload_timeout_s
        wire.send(post(PREDICT, photograph()))
        assert wire.answer().status == 200


def test_the_time_a_client_names_counts_from_the_last_byte_too(home: House) -> None:
    with Wire.to(home.url) as wire:
        slowly(wire, post(PREDICT, photograph(size=(400, 300)), "X-Deadline-Ms: 600"), 0.9)
        assert wire.answer().status == 200
    with Held(home) as held, ThreadPoolExecutor(1) as pool:
        first = pool.submit(home.client.post, PREDICT, content=photograph(), headers={"X-Deadline-Ms": "20000"})
        assert held.entered.wait(20)
        with Wire.to(home.url) as wire:
            slowly(wire, post(PREDICT, photograph(size=(400, 300)), "X-Deadline-Ms: 300"), 0.6)
            start = time.monotonic()
            wire.answer().problem(504)
            assert 0.1 < time.monotonic() - start < 5
        held.gate.set()
        assert first.result(20).status_code == 200


TRICKLES = {
    "nothing": (post(PREDICT, length=5000), b"", 0.1),
    "a byte now and then": (post(PREDICT, length=5000), b"x", 0.05),
    "chunks of a byte": (chunked(PREDICT, b"x", end=b""), b"1\r\nx\r\n", 0.05),
    "fast, then a trickle": (post(PREDICT, bytes(200_000), length=300_000), b"x", 0.05),
    "an upload": (post(UPLOAD, bytes(3000), length=9000).replace(b"POST", b"PUT", 1), b"x", 0.05),
}


@pytest.mark.parametrize("name", TRICKLES)
def test_a_trickle_ends_in_a_problem_that_names_the_setting(home: House, name: str) -> None:
    first, drop, every = TRICKLES[name]
    stop = threading.Event()
    with Wire.to(home.url) as wire:
        wire.send(first)
        start = time.monotonic()

        def trickle() -> None:
            while not stop.wait(every):
                try:
                    wire.send(drop)
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            answer = wire.answer()
        finally:
            stop.set()
            thread.join()
        document = answer.problem(408)
        assert document["field"] == "min_body_rate"
        assert "body_grace_s" in document["detail"]
        assert answer.headers["connection"] == "close"
        assert 0.4 < time.monotonic() - start < 5
    assert until(lambda: home.built.bodies.held == 0)
    assert 'code="408",task="t"' in home.metrics()


def test_a_pause_within_the_grace_is_forgiven(home: House) -> None:
    request = post(PREDICT, photograph(size=(400, 300)))
    with Wire.to(home.url) as wire:
        for at in range(0, len(request), 3000):
            wire.send(request[at : at + 3000])
            pause(0.2)
        assert wire.answer().status == 200


def test_no_body_takes_longer_than_its_time(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path, body_timeout_s=1)) as home, Wire.to(home.url) as wire:
        home.put("t", kit.file(1)[0]).raise_for_status()
        wire.send(post(PREDICT, length=10_000_000))
        ended = threading.Event()

        def send() -> None:
            while not ended.wait(0.05):
                try:
                    wire.send(bytes(1000))
                except OSError:
                    return

        thread = threading.Thread(target=send)
        thread.start()
        try:
            assert wire.answer().problem(408)["field"] == "body_timeout_s"
        finally:
            ended.set()
            thread.join()


def test_a_body_that_found_the_server_busy_meanwhile_is_refused_before_it_is_decoded(home: House) -> None:
    """Room is asked for twice: before the body is read, as if it were there, and when it is."""
    asked: list[float] = []
    inner = home.built.answers.check_room

    async def noted(digests: Sequence[str], caller: Caller) -> None:
        asked.append(caller.left)
        await inner(digests, caller)

    home.built.answers.check_room = noted
    try:
        with Wire.to(home.url) as wire:
            slowly(wire, post(PREDICT, photograph(size=(400, 300))), 1)
            assert wire.answer().status == 200
    finally:
        home.built.answers.check_room = inner
    assert len(asked) == 2
    assert min(asked) > 0.5
