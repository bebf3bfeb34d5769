"""A server as a family of real processes: what one of them acknowledged all know, and what dies is replaced."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from tests.houses import WAIT, Kit, Process, client_of, photograph, problem, scores_of, until
from tests.killing import samples
from tests.media_samples import clip, scene
from tests.test_views import bytes_of, made

FRONT_ENDS = 2


def start(kit: Kit, folder: Path, *more: str) -> Process:
    given = ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--data-dir", str(folder / "data")]
    return Process([*given, "--threads", "1", *more], folder / "log")


@pytest.fixture(scope="module")
def server(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with start(kit, tmp_path_factory.mktemp("family"), "--front-ends", str(FRONT_ENDS)) as made:
        made.client.put("/v1/tasks/t/adapter", content=kit.file(1)[0]).raise_for_status()
        yield made


def family(server: Process, module: str) -> list[psutil.Process]:
    """The children that run a module."""
    return server.family(module)


def front_ends(server: Process) -> list[psutil.Process]:
    return family(server, "service.web.process")


def engine(server: Process) -> psutil.Process:
    (found,) = family(server, "service.engine.process")
    return found


Clients = Callable[[], list[httpx.Client]]


@pytest.fixture
def each_front_end(server: Process) -> Iterator[Clients]:
    """Makes a client for each: one that has a connection holds its front end to it."""
    with ExitStack() as stack:

        def clients() -> list[httpx.Client]:
            found: dict[int, httpx.Client] = {}

            def look() -> bool:
                before = {process.pid: _clients_ports(process) for process in front_ends(server)}
                client = stack.enter_context(client_of(server.url))
                client.get("/livez").raise_for_status()
                for process in front_ends(server):
                    if _clients_ports(process) - before.get(process.pid, set()):
                        found.setdefault(process.pid, client)
                return len(found) == FRONT_ENDS

            assert until(look)
            return list(found.values())

        yield clients


def _clients_ports(process: psutil.Process) -> set[int]:
    return {c.raddr.port for c in process.net_connections("tcp") if c.raddr and c.status == psutil.CONN_ESTABLISHED}


def ready(server: Process) -> bool:
    try:
        with client_of(server.url) as client:
            return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_examples_that_front_ends_add_at_once_are_seen_by_all(each_front_end: Clients) -> None:
    path, clients = "/v1/tasks/taught/examples", each_front_end()

    def put(number: int) -> None:
        client, label = clients[number % len(clients)], f"label {number % 3}"
        told = client.post(path, params={"label": label}, content=photograph(number)).raise_for_status().json()
        assert client.get(path).json()["counts"][label] >= told["counts"][label]

    with ThreadPoolExecutor(len(clients)) as threads:
        list(threads.map(put, range(12)))
    assert [client.get(path).json()["counts"] for client in clients] == FRONT_ENDS * [
        {f"label {n}": 4 for n in range(3)}
    ]
    assert clients[0].delete("/v1/tasks/taught").status_code == 204
    assert clients[-1].get(path).json()["examples"] == []


def test_the_views_of_a_clip_go_to_the_engine_and_back_one_by_one(server: Process, kit: Kit, tmp_path: Path) -> None:
    adapter, body = made(kit, "crops"), clip(count=20, picture=scene(96, 40))
    server.client.put("/v1/tasks/views/adapter", content=bytes_of(adapter, tmp_path)).raise_for_status()
    expected = kit.alone(adapter, body)
    for _ in range(4):
        answer = server.client.post("/v1/tasks/views/predict", content=body, params={"top_k": 9}).json()
        np.testing.assert_allclose(scores_of(answer), expected, rtol=1e-4, atol=1e-6)


def test_front_ends_are_small_and_know_no_torch(server: Process) -> None:
    for process in front_ends(server):
        loaded = {Path(mapped.path).name for mapped in process.memory_maps()}
        assert not [name for name in loaded if "torch" in name]
        print(f"a front end holds {process.memory_full_info().uss / 2**20:.0f} MiB of its own")
        assert process.memory_full_info().uss < 150 * 2**20


def test_whichever_front_end_is_asked_knows_what_another_acknowledged(
    server: Process, kit: Kit, each_front_end: Clients
) -> None:
    one, other = each_front_end()
    contents = [kit.file(seed)[0] for seed in (11, 12)]
    for turn in range(50):
        task = f"turn-{turn % 5}"
        made = one.put(f"/v1/tasks/{task}/adapter", content=contents[turn % 2]).raise_for_status().json()
        told = other.post(f"/v1/tasks/{task}/predict", content=photograph()).raise_for_status().json()
        assert (told["version"], told["digest"]) == (made["version"], made["digest"])
        assert other.get(f"/v1/tasks/{task}").json()["version"] == made["version"]
        if turn % 10 == 9:
            other.delete(f"/v1/tasks/{task}").raise_for_status()
            problem(one.post(f"/v1/tasks/{task}/predict", content=photograph()), 404)
        one, other = other, one


@pytest.mark.parametrize("at_once", [False, True])
def test_each_front_end_has_its_share_of_the_connections(server: Process, at_once: bool) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    before = {process.pid: _clients_ports(process) for process in front_ends(server)}
    with ExitStack() as stack:
        gate = threading.Barrier(32 if at_once else 1)

        def connect() -> None:
            gate.wait(WAIT)
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=WAIT))
            if not at_once:
                connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")

        with ThreadPoolExecutor(32 if at_once else 1) as pool:
            for done in [pool.submit(connect) for _ in range(32)]:
                done.result()

        def shares() -> list[int]:
            return [len(_clients_ports(process) - before[process.pid]) for process in front_ends(server)]

        assert until(lambda: sum(shares()) == 32), shares()
        assert min(shares()) >= 8, shares()


def test_counts_and_metrics_are_of_all(server: Process, kit: Kit, each_front_end: Clients) -> None:
    one, other = each_front_end()
    one.put("/v1/tasks/counted/adapter", content=kit.file(1)[0]).raise_for_status()
    for client in (one, other, other):
        client.post("/v1/tasks/counted/predict", content=photograph()).raise_for_status()
    for client in (one, other):
        assert until(lambda c=client: c.get("/v1/tasks/counted").json()["requests"]["answered"] == 3)  # type: ignore[misc]
        text = client.get("/metrics").text
        assert text.count("adaptserve_build_info{") == 1
        assert "adaptserve_batch_rows_count" in text
        assert samples(text, "adaptserve_requests_total")['adaptserve_requests_total{code="200",task="counted"}'] >= 3
        tasks = {one["task"]: one for one in client.get("/v1/stats").json()["tasks"]}
        assert tasks["counted"]["requests"] >= 3
        assert tasks["counted"]["seconds"] > 0


def test_a_killed_front_end_is_replaced_and_loses_nothing_acknowledged(
    server: Process, kit: Kit, each_front_end: Clients
) -> None:
    for seed in (21, 22):
        one = each_front_end()[0]
        made = one.put("/v1/tasks/kept/adapter", content=kit.file(seed)[0]).raise_for_status().json()
        victims, start_s = front_ends(server), time.monotonic()
        for victim in victims:
            victim.kill()
        assert until(lambda gone=victims: ready(server) and not set(gone) & set(front_ends(server)))  # type: ignore[misc]
        print(f"answered again after {time.monotonic() - start_s:.2f} s")
        assert until(lambda: len(front_ends(server)) == FRONT_ENDS)
        for client in each_front_end():
            told = client.post("/v1/tasks/kept/predict", content=photograph()).raise_for_status().json()
            assert (told["version"], told["digest"]) == (made["version"], made["digest"])


def test_signals_to_children_cut_nobody_off(server: Process) -> None:
    for process in (engine(server), *front_ends(server)):
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
    assert ready(server)
    server.client.post("/v1/tasks/t/predict", content=photograph()).raise_for_status()


def test_a_server_killed_with_all_its_processes_and_one_stopped_under_load_lose_nothing(
    kit: Kit, tmp_path: Path
) -> None:
    """What was acknowledged before the kill is there for the next one, which answers all that it accepted."""
    with start(kit, tmp_path, "--front-ends", "2") as made:
        told = [
            made.client.put(f"/v1/tasks/t-{seed}/adapter", content=kit.file(seed)[0]).raise_for_status().json()
            for seed in range(5)
        ]
        children = psutil.Process(made.process.pid).children(recursive=True)
        assert len(children) == 3
        assert made.stop(signal.SIGKILL) == -signal.SIGKILL, made.output
        assert not psutil.wait_procs(children, timeout=WAIT)[1]
    with start(kit, tmp_path, "--front-ends", "2") as again:  # the folder is free
        for seed, one in enumerate(told):
            answer = again.client.post(f"/v1/tasks/t-{seed}/predict", content=photograph()).raise_for_status().json()
            assert (answer["version"], answer["digest"]) == (one["version"], one["digest"])
        children = psutil.Process(again.process.pid).children(recursive=True)
        seen, stop = Counter[int](), threading.Event()

        def ask() -> None:
            with client_of(again.url) as client:
                while not stop.is_set():
                    try:
                        seen[client.post("/v1/tasks/t-0/predict", content=photograph()).status_code] += 1
                    except httpx.ConnectError:  # it is gone
                        return

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        assert until(lambda: seen[200] > 20)
        assert again.stop(signal.SIGTERM) == 0, again.output
        stop.set()
        for thread in threads:
            thread.join()
        assert set(seen) <= {200, 503}, seen
        assert not psutil.wait_procs(children, timeout=WAIT)[1]
