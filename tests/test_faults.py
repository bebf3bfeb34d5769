"""A device that fails over real HTTP: batches are split, a lost device shows and ends the process, SIGTERM drains."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from adapters.backbone import load_backbone
from adapters.config import SiteConfig
from adapters.file import write_adapter
from adapters.forward.banked import Job
from service.engine.watchdog import TRIES, watching
from service.exits import DEVICE_LOST
from tests import lost_device
from tests.houses import STARTED_S, WAIT, House, Kit, Process, house, photograph, problem, scores_of, until
from tests.models import Spec, random_adapter

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
BROKEN = RuntimeError(lost_device.MESSAGE)
NO_HOST_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")


@pytest.fixture
def home(kit: Kit, tmp_path: Path) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path / "data")) as made:
        made.put("t", kit.file(1)[0]).raise_for_status()
        yield made


@contextmanager
def failing(home: House, fails: Callable[[Sequence[Job]], Exception | None]) -> Iterator[list[int]]:
    """The engine's forward raises what ``fails`` says; yields the sizes of the batches that came."""
    inner, batches = home.local.engine.runner.forward, list[int]()

    def forward(jobs):  # type: ignore[no-untyped-def]
        batches.append(len(jobs))
        error = fails(jobs)
        if error is not None:
            raise error
        return inner(jobs)

    home.local.engine.runner.forward = forward  # type: ignore[assignment]
    try:
        yield batches
    finally:
        home.local.engine.runner.forward = inner


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, NO_HOST_MEMORY, BROKEN], ids=["cuda memory", "memory", "broken"])
def test_a_batch_that_raises_is_split_and_answered(home: House, kit: Kit, error: Exception) -> None:
    gate = threading.Event()

    def too_many(jobs: Sequence[Job]) -> Exception | None:
        assert gate.wait(WAIT)
        return error if len(jobs) > 1 else None

    bodies = [photograph(seed) for seed in range(6)]
    with failing(home, too_many) as batches, ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(home.ask, "t", body) for body in bodies]
        assert until(lambda: home.local.engine.queued_rows == len(bodies))
        gate.set()
        answers = [done.result(WAIT) for done in waiting]
    assert max(batches) > 1
    adapter = kit.file(1)[1]
    for body, answer in zip(bodies, answers, strict=True):
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(scores_of(answer.json()), kit.alone(adapter, body), rtol=1e-4, atol=1e-6)
    failed = sum(size > 1 for size in batches)  # one, unless the first batch was not the first request alone
    assert f"adaptserve_batch_failures_total {failed}.0" in home.client.get("/metrics").text


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [(OUT_OF_MEMORY, 507, "no-room"), (NO_HOST_MEMORY, 507, "no-room"), (BROKEN, 500, "compute-failed")],
)
def test_what_fails_twice_is_answered_with_its_problem(home: House, error: Exception, status: int, kind: str) -> None:
    with failing(home, lambda jobs: error) as batches:
        document = problem(home.ask("t", photograph()), status)
    assert document["type"] == f"urn:adaptserve:problem:{kind}"
    assert batches == [1, 1]  # tried once more, and not for ever
    assert home.ask("t", photograph()).status_code == 200
    assert home.local.engine.queued_rows == 0


def test_a_load_that_the_device_refuses_is_a_problem_of_that_call(
    home: House, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BROKEN

    with monkeypatch.context() as patch:
        patch.setattr(home.local.bank.slabs, "write", refuse)
        assert "adapter" in str(problem(home.put("new", kit.file(2)[0]), 500)["detail"])
    assert home.client.get("/v1/tasks/new").status_code == 404
    assert home.put("new", kit.file(2)[0]).status_code == 201


def test_readyz_tells_of_a_failing_device_at_once(home: House) -> None:
    assert home.client.get("/readyz").status_code == 200
    with failing(home, lambda jobs: BROKEN):
        problem(home.ask("t", photograph()), 500)
        assert "does not compute" in str(problem(home.client.get("/readyz"), 503)["detail"])
        assert "adaptserve_ready 0.0" in home.client.get("/metrics").text
        assert home.client.get("/livez").status_code == 200
    assert home.client.get("/readyz").status_code == 200
    assert "adaptserve_ready 1.0" in home.client.get("/metrics").text


LOST_S = 0.6


@contextmanager
def watched(home: House) -> Iterator[list[str]]:
    said: list[str] = []
    with watching(home.local.engine, home.local.health, LOST_S, said.append):
        yield said


def test_the_watchdog_tells_a_lost_device_once(home: House) -> None:
    with watched(home) as said, failing(home, lambda jobs: BROKEN) as batches:
        start = time.monotonic()
        assert until(lambda: bool(said))
        assert time.monotonic() - start >= LOST_S * (TRIES - 1) / TRIES
        assert len(batches) >= TRIES
        assert not until(lambda: len(said) > 1, LOST_S)
    assert said == [f"the device has computed nothing for {LOST_S:g} s (device_lost_s): RuntimeError: {BROKEN}"]


def test_the_watchdog_tells_a_forward_pass_that_hangs(home: House) -> None:
    gate = threading.Event()
    with watched(home) as said, failing(home, lambda jobs: None if gate.wait(WAIT) else BROKEN):
        assert until(lambda: bool(said))
        gate.set()
    assert "did not end within" in said[0]
    assert until(lambda: home.local.engine.queued_rows == 0)


def slowly(home: House, seconds: float) -> Callable[[Sequence[Job]], None]:
    """A forward pass of that length in which a block is computed every 50 ms."""
    inner = home.local.engine.runner.forward

    def forward(jobs: Sequence[Job]) -> None:
        end, pause = time.monotonic() + seconds, threading.Event()
        while time.monotonic() < end:
            inner(jobs)
            pause.wait(0.05)

    return forward


def test_a_slow_device_is_not_a_lost_one_and_is_ready(kit: Kit, tmp_path: Path) -> None:
    """A batch of three times the time allowed, in which block after block is computed."""
    with house(kit.settings(data_dir=tmp_path / "data", ready_fresh_s=0.3, ready_timeout_s=0.5)) as home:
        home.put("t", kit.file(1)[0]).raise_for_status()
        slow = slowly(home, 3 * LOST_S)
        with watched(home) as said, failing(home, slow), ThreadPoolExecutor(1) as pool:
            asked = pool.submit(home.ask, "t", photograph())
            ages = []
            while not asked.done():
                answer = home.client.get("/readyz")
                assert answer.status_code == 200, answer.text
                ages.append((answer.json()["busy_s"], answer.json()["last_forward_s"]))
            assert asked.result(WAIT).status_code == 200
        assert max(busy for busy, _ in ages) > 2 * LOST_S
        assert max(age for _, age in ages) > 2 * LOST_S
        assert said == []


def test_the_watchdog_tells_a_hang_after_slow_work_in_time(home: House) -> None:
    """Progress before the hang buys no more than the time allowed."""
    slow, hung, gate = slowly(home, LOST_S), list[float](), threading.Event()

    def then_hangs(jobs: Sequence[Job]) -> None:
        slow(jobs)
        hung.append(time.monotonic())
        gate.wait(WAIT)

    with watched(home) as said, failing(home, then_hangs):
        assert until(lambda: bool(said))
        seconds = time.monotonic() - hung[0]
        gate.set()
    assert LOST_S * (TRIES - 2) / TRIES <= seconds <= LOST_S + 0.5


def test_all_who_ask_readyz_share_one_probe(kit: Kit, tmp_path: Path) -> None:
    timeout_s = 1.0
    settings = kit.settings(data_dir=tmp_path / "data", ready_fresh_s=0.05, ready_timeout_s=timeout_s)
    with house(settings) as home, ThreadPoolExecutor(6) as pool:
        gate, asked = threading.Event(), []
        asking = home.local.engine.probe
        home.local.engine.probe = lambda *args: (asked.append(args), asking(*args))[1]  # type: ignore[method-assign]
        with failing(home, lambda jobs: None if gate.wait(WAIT) else BROKEN):
            assert until(lambda: not home.local.health.ready(home.local.engine))
            start = time.monotonic()
            waiting = [pool.submit(httpx.get, f"{home.url}/readyz", timeout=WAIT) for _ in range(6)]
            for done in waiting:
                document = problem(done.result(WAIT), 503)
                assert document["limit"] == timeout_s
            assert time.monotonic() - start < 4 * timeout_s  # one after the other they would take six times as long
            assert len(asked) == 1
            gate.set()
        assert until(lambda: home.client.get("/readyz").status_code == 200)


def test_the_watchdog_tells_an_engine_whose_thread_ended(home: House) -> None:
    home.local.engine.close()
    with watched(home) as said:
        assert until(lambda: bool(said))
    assert "thread has ended" in said[0]


def test_the_watchdog_forgives_a_device_that_comes_back(home: House) -> None:
    asked = []

    def now_and_then(jobs: Sequence[Job]) -> Exception | None:
        asked.append(jobs)
        return None if len(asked) % 4 == 0 else BROKEN  # each probe is tried twice: one fails, the next one is fine

    with watched(home) as said, failing(home, now_and_then):
        assert until(lambda: len(asked) >= 4 * TRIES)
    assert said == []


def test_a_lost_device_ends_its_engine_and_at_last_the_server(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = tmp_path / "lost"
    monkeypatch.setenv(lost_device.LOST, str(sign))
    monkeypatch.setenv("ADAPTSERVE_DEVICE_LOST_S", "2")
    monkeypatch.setenv("ADAPTSERVE_LOG_FORMAT", "json")
    arguments = ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--data-dir", str(tmp_path / "data")]
    with Process(arguments, tmp_path / "log", "tests.lost_device") as server:
        server.client.put("/v1/tasks/t/adapter", content=kit.file(1)[0]).raise_for_status()
        sign.touch()
        problem(server.client.post("/v1/tasks/t/predict", content=photograph()), 500)
        problem(server.client.get("/readyz"), 503)
        assert server.client.get("/v1/tasks").status_code == 200
        assert server.process.wait(3 * STARTED_S) == DEVICE_LOST  # another engine is tried, and computes nothing either
    told = [line for line in map(json.loads, server.output.splitlines()) if line["level"] == "critical"]
    assert [f"exit code {DEVICE_LOST}" in line["message"] for line in told] == [True, True]
    engine, server_itself = (line["message"] for line in told)
    assert lost_device.MESSAGE in engine
    assert "cannot be started again" in server_itself


def test_sigterm_answers_what_was_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty requests are in the queue when the signal comes; each on its own connection, none is lost."""
    monkeypatch.setenv("ADAPTSERVE_MAX_BATCH_ROWS", "1")
    monkeypatch.setenv("ADAPTSERVE_DRAIN_S", "60")
    backbone = load_backbone("vit_tiny_patch16_224", "random:0", "cpu", "float32")
    adapter = random_adapter(backbone, Spec((SiteConfig(site="parallel", blocks=(0,), rank=4),), 5), 1)
    write_adapter(tmp_path / "a.safetensors", adapter.config, adapter.tensors)
    arguments = ["--backbone", "vit_tiny_patch16_224", "--weights", "random:0", "--data-dir", str(tmp_path / "data")]
    content = (tmp_path / "a.safetensors").read_bytes()
    with Process([*arguments, "--threads", "1"], tmp_path / "log") as server:
        server.client.put("/v1/tasks/t/adapter", content=content).raise_for_status()
        connections = _ask_on_many(server.url, 40)
        before: Counter[str] = Counter()

        def taken() -> bool:
            before.clear()
            for line in server.client.get("/metrics").text.splitlines():
                match = re.match(r'adaptserve_(queue_rows|requests_total{code="(?:200|429)",task="t"}) ([\d.]+)', line)
                if match:
                    before[match[1]] += int(float(match[2]))
            return before.total() >= len(connections)

        assert until(taken)
        server.process.send_signal(signal.SIGTERM)
        assert before["queue_rows"] > 0, "all was answered before the signal"
        answers: Counter[bytes] = Counter()
        for connection in connections:
            with connection, connection.makefile("rb") as file:
                answers[file.readline()] += 1
        refused = before['requests_total{code="429",task="t"}']  # on a busy machine some come too late for the queue
        assert answers[b"HTTP/1.1 200 OK\r\n"] == len(connections) - refused
        assert server.process.wait(WAIT) == 0, server.output
        with pytest.raises(httpx.TransportError):
            server.client.get("/livez")


def _ask_on_many(url: str, count: int) -> list[socket.socket]:
    """That many connections, each with one request sent and its answer not read."""
    host, port = url.removeprefix("http://").split(":")
    body = photograph()
    head = f"POST /v1/tasks/t/predict HTTP/1.1\r\nHost: {host}\r\n"
    head += f"X-Deadline-Ms: 60000\r\nContent-Length: {len(body)}\r\n\r\n"
    connections = [socket.create_connection((host, int(port)), timeout=2 * WAIT) for _ in range(count)]
    for connection in connections:
        connection.sendall(head.encode() + body)
    return connections
