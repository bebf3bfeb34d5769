"""The server over real sockets with many requests at once: bounds, deadlines, swaps in flight, shared batches."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from service.settings import Settings
from tests.houses import WAIT, House, Kit, client_of, house, photograph, problem, scores_of, sites, until
from tests.models import Spec


class Held:
    """The engine's forward behind a gate, so that requests pile up where a test wants them."""

    def __init__(self, made: House) -> None:
        self.gate, self.entered = threading.Event(), threading.Event()
        inner = made.local.engine.runner.forward

        def forward(jobs):  # type: ignore[no-untyped-def]
            self.entered.set()
            assert self.gate.wait(WAIT)
            return inner(jobs)

        self._put = lambda f: setattr(made.local.engine.runner, "forward", f)
        self._inner, self._held = inner, forward

    def __enter__(self) -> Held:
        self._put(self._held)
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self._put(self._inner)


@pytest.fixture
def small(kit: Kit, tmp_path: Path) -> Iterator[House]:
    """A server with tight bounds, for tests of overload."""
    tight: Settings = kit.settings(data_dir=tmp_path / "data", max_queue_rows=4, deadline_s=20, max_body_bytes=50_000)
    with house(tight) as made:
        made.put("t", kit.file(1)[0]).raise_for_status()
        yield made


def test_a_full_queue_is_429_and_says_when(small: House) -> None:
    with Held(small) as held, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(small.ask, "t", photograph(i)) for i in range(4)]
        assert until(lambda: small.local.engine.queued_rows == 4)
        refused = small.ask("t", photograph())
        assert problem(refused, 429)["limit"] == 4
        assert int(refused.headers["retry-after"]) >= 1
        held.gate.set()
        assert [w.result(WAIT).status_code for w in waiting] == [200] * 4
    assert small.ask("t", photograph()).status_code == 200


def test_a_deadline_fires_on_time_and_takes_its_rows_back(small: House) -> None:
    with Held(small) as held, ThreadPoolExecutor(4) as pool:
        first = pool.submit(small.ask, "t", photograph())
        assert held.entered.wait(WAIT)
        start = time.monotonic()
        late = small.client.post("/v1/tasks/t/predict", content=photograph(), headers={"X-Deadline-Ms": "300"})
        problem(late, 504)
        assert time.monotonic() - start < 3
        assert until(lambda: small.local.engine.queued_rows == 1)
        held.gate.set()
        assert first.result(WAIT).status_code == 200


def test_a_client_that_leaves_takes_its_rows_along(small: House) -> None:
    host, port = small.url.removeprefix("http://").split(":")
    body = photograph()
    with Held(small) as held, ThreadPoolExecutor(4) as pool:
        first = pool.submit(small.ask, "t", photograph())
        assert held.entered.wait(WAIT)
        with socket.create_connection((host, int(port))) as raw:
            head = f"POST /v1/tasks/t/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            raw.sendall(head.encode() + body)
            assert until(lambda: small.local.engine.queued_rows == 2)
        assert until(lambda: small.local.engine.queued_rows == 1)
        held.gate.set()
        assert first.result(WAIT).status_code == 200
    assert until(lambda: small.local.bank.stats().pinned == 0)


def test_a_body_over_its_bound_is_413_however_it_comes(small: House) -> None:
    for content in (bytes(60_000), iter([bytes(30_000), bytes(30_000)])):
        assert problem(small.client.post("/v1/tasks/t/predict", content=content), 413)["limit"] == 50_000
    assert small.ask("t", photograph()).status_code == 200


def test_all_bodies_together_are_bounded(kit: Kit, tmp_path: Path) -> None:
    body = photograph()
    with house(kit.settings(data_dir=tmp_path / "data", max_bodies_bytes=20_000)) as made:
        made.put("t", kit.file(1)[0]).raise_for_status()
        host, port = made.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            head = "POST /v1/tasks/t/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000\r\n\r\n"
            slow.sendall(head.encode() + bytes(20_000 - len(body) + 1))
            assert until(lambda: made.built.bodies.held > 20_000 - len(body))
            refused = made.ask("t", body)
            assert problem(refused, 429)["field"] == "max_bodies_bytes"
            assert int(refused.headers["retry-after"]) >= 1
        assert until(lambda: made.built.bodies.held == 0)
        assert made.ask("t", body).status_code == 200
        problem(made.ask("t", body + bytes(20_000)), 429)
        assert until(lambda: made.built.bodies.held == 0)


def test_answers_stay_right_while_their_tasks_are_replaced(kit: Kit, tmp_path: Path) -> None:
    """8 clients on 10 tasks in 6 slots, 3 tasks replaced every 100 ms: each answer equals its digest's own."""
    body = photograph(7)
    files = [kit.file(100 + i, Spec(sites(), 3 + i % 5, "avg", "trained")) for i in range(19)]
    expected = {adapter.digest: kit.alone(adapter, body) for _, adapter in files}
    stop, answers, failures = threading.Event(), [], []  # type: ignore[var-annotated]
    with house(kit.settings(data_dir=tmp_path / "data", slots=6)) as made:
        for i in range(10):
            made.put(f"task-{i}", files[i][0]).raise_for_status()

        def ask(number: int) -> None:
            with client_of(made.url) as client:
                turn = number
                while not stop.is_set():
                    turn += 3
                    response = client.post(f"/v1/tasks/task-{turn % 10}/predict?top_k=100", content=body)
                    (answers if response.status_code == 200 else failures).append(response.json())

        def replace() -> None:
            with client_of(made.url) as client:
                turn = 0
                while not stop.wait(0.1):
                    for i in range(3):
                        content = files[(10 + turn + i * 3) % 19][0]
                        client.put(f"/v1/tasks/task-{i}/adapter", content=content).raise_for_status()
                    turn += 1

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)] + [threading.Thread(target=replace)]
        for thread in threads:
            thread.start()
        stop.wait(2)
        assert until(lambda: len(answers) > 100 and len({a["digest"] for a in answers}) > 10, 90)
        stop.set()
        for thread in threads:
            thread.join(WAIT)
        assert until(lambda: made.local.bank.stats().pinned == 0)
    assert not failures
    for answer in answers:
        np.testing.assert_allclose(scores_of(answer), expected[answer["digest"]], rtol=1e-3, atol=1e-5)


def test_concurrent_tasks_share_batches(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path / "data")) as made:
        for i in range(10):
            made.put(f"task-{i}", kit.file(200 + i)[0]).raise_for_status()
        seen: list[int] = []
        inner = made.local.engine.runner.on_batch
        made.local.engine.runner.on_batch = lambda report: (seen.append(report.adapters), inner(report))[1]
        with Held(made) as held, ThreadPoolExecutor(11) as pool:
            first = pool.submit(made.ask, "task-0", photograph())
            assert held.entered.wait(WAIT)
            rest = [pool.submit(made.ask, f"task-{i}", photograph(i)) for i in range(10)]
            assert until(lambda: made.local.engine._scheduler.waiting_rows == 10)
            held.gate.set()
            assert all(f.result(WAIT).status_code == 200 for f in [first, *rest])
        assert seen == [1, 10]
