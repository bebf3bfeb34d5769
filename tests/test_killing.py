"""Processes of a server killed, stopped and starved, one at a time, while others use it: who notices, and what is left.

The short runs are quick tests; `make torture` kills thirty times and prints its numbers.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from service.cli.serve import STOP_S
from service.engine.remote import GRACE_S
from service.exits import CUT_OFF, FAILED
from service.supervisor import TRIES
from tests import hanging
from tests.children import ENGINE, FRONT_END
from tests.houses import STARTED_S, WAIT, Kit, Process, client_of, photograph, problem, until
from tests.killing import LOST, Client, Load, Rig, answers, kill, samples

SETTINGS = {"MAX_QUEUE_ROWS": 48, "DRAIN_S": 1.0, "READY_FRESH_S": 0.2, "READY_TIMEOUT_S": 1.0, "MAX_UPLOADS": 16}
"""A row of pixels that is not given back is missed soon, and nothing takes long."""
LOST_S = 10.0
"""Longer than a test holds the device up, also where the machine is busy."""
COLD = {"SLOTS": 1, "HOST_CACHE_BYTES": 0, "UPLOAD_TIMEOUT_S": 2, "DEVICE_LOST_S": LOST_S}
SLACK_S = 2.5
"""For a busy machine."""


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a short name: the servers' sockets are in it, and the kernel takes 107 bytes of a path to one."""
    return tmp_path_factory.mktemp("kill")


@contextmanager
def started(
    kit: Kit, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str, **settings: object
) -> Iterator[Process]:
    """Two front ends and one engine with the task ``t``; temporary files of all of them are in ``folder``."""
    (folder / "tmp").mkdir(exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setenv(hanging.FOLDER, str(folder))
    for name, value in (SETTINGS | settings).items():
        monkeypatch.setenv(f"ADAPTSERVE_{name}", str(value))
    given = ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--data-dir", str(folder / "data")]
    with Process([*given, "--threads", "1", "--front-ends", "2", *more], folder / "log", "tests.hanging") as made:
        made.client.put("/v1/tasks/t/adapter", content=kit.file(1)[0]).raise_for_status()
        yield made


def engine(server: Process) -> psutil.Process:
    return server.family(ENGINE)[0]


def ready(server: Process) -> httpx.Response:
    with client_of(server.url) as client:
        return client.get("/readyz")


def ask(server: Process, task: str = "t", deadline_ms: int = 20_000) -> httpx.Response:
    headers = {"X-Deadline-Ms": str(deadline_ms)}
    with client_of(server.url) as client:
        return client.post(f"/v1/tasks/{task}/predict", content=photograph(), headers=headers)


def gauge(server: Process, name: str) -> float:
    with client_of(server.url) as client:
        return samples(client.get("/metrics").text, name)[name]


def ended(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=WAIT)[1]


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=[pytest.mark.torture, pytest.mark.timeout(1800)])])
def test_whoever_is_killed_only_its_own_clients_notice(
    kills: int, kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice, memory, seen_unready = random.Random(kills), list[int](), 0
    with started(kit, tmp_path, monkeypatch) as server:
        rig, ever = Rig(kit, server), set(server.family())
        with Load(rig, pause_s=0.02 if kills < 12 else 0):  # what the clients take, whoever starts again lacks
            for number in range(kills):
                whole = [*server.family(FRONT_END), engine(server)]
                victim = whole[number] if number < len(whole) else dice.choice(whole)
                answered = sum(rig.counts.values())
                assert until(lambda a=answered: sum(rig.counts.values()) > a + 30)  # type: ignore[misc]
                of_engine = victim in server.family(ENGINE)
                kill(rig, victim, front_end=not of_engine)
                if of_engine:
                    assert until(lambda: ready(server).status_code == 503)
                    assert problem(ready(server), 503)["type"] == LOST
                    assert httpx.get(f"{server.url}/v1/tasks", timeout=WAIT).status_code == 200
                    seen_unready += 1
                    assert until(lambda: ready(server).status_code == 200, STARTED_S), server.output
                assert until(lambda v=victim: v not in server.family() and len(server.family()) == 4)  # type: ignore[misc]
                assert until(lambda: server.output.count("is up again") == number + 1, STARTED_S), server.output  # noqa: B023
                ever |= set(server.family())
                memory.append(sum(one.memory_full_info().uss for one in server.family()))
        print(json.dumps({"kills": kills, "front_ends_killed": len(rig.killed), "unready_seen": seen_unready,
                          "answers": dict(sorted(rig.counts.items())), "acknowledged": len(rig.acknowledged),
                          "memory_mib": [m >> 20 for m in memory]}))  # fmt: skip
        assert rig.wrong == []
        assert {name.split()[0] for name in rig.counts if name.endswith((" 200", " 201", " 204"))} >= {
            "predict", "clip", "delete", "list", "slow", "metrics", "upload",
        }  # fmt: skip
        for (task, version), digest in rig.acknowledged.items():
            assert server.client.get(f"/v1/tasks/{task}/versions/{version}").json()["digest"] == digest
        assert until(lambda: gauge(server, "adaptserve_queue_rows") == 0)
        assert until(lambda: gauge(server, 'adaptserve_bank_slots{state="pinned"}') == 0)
        assert until(lambda: list((tmp_path / "data" / "staging").iterdir()) == [])
        numbers = [path.name for path in (tmp_path / "tmp").glob("adaptserve-*/metrics/*")]
        assert len(numbers) <= 2 * 3, numbers  # whoever is replaced counts on in the same files
        if kills > 12:
            assert max(memory[-3:]) < 1.1 * max(memory[kills // 4 :][:3])
        assert server.stop(signal.SIGTERM) == 0, server.output
    assert ended(list(ever))
    assert list((tmp_path / "tmp").glob("adaptserve-*")) == []


@pytest.fixture(scope="module")
def quiet(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One server for the tests that leave it as it was, and for the one after them that ends it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("quiet")
        with started(kit, folder, patch, **COLD) as server:
            yield server


@pytest.fixture
def folder(quiet: Process) -> Path:
    """Where its files are, and those that make it hang."""
    return quiet.log.parent


def test_a_killed_front_end_answers_again_in_a_moment(quiet: Process) -> None:
    victim, other = quiet.family(FRONT_END)
    other.suspend()  # so that none but the new one can answer
    try:
        victim.kill()
        start = time.monotonic()
        assert until(lambda: answers(quiet.url))
        taken = time.monotonic() - start
    finally:
        other.resume()
    print(f"answered again after {taken:.2f} s")
    assert taken < 10


def test_a_stopped_front_end_holds_up_nobody_else(quiet: Process, kit: Kit) -> None:
    rig = Rig(kit, quiet)
    clients = {client.owner: client for client in _connected(rig)}
    stopped, other = quiet.family(FRONT_END)
    stopped.suspend()
    try:
        made = clients[other.pid].ask("PUT", "/v1/tasks/t/adapter", kit.file(2)[0])
        assert made
        for _ in range(5):
            assert ask(quiet).json()["version"] == made[1]["version"]  # a new connection is the other's
    finally:
        stopped.resume()
    seen = clients[stopped.pid].ask("POST", "/v1/tasks/t/predict", photograph())
    assert seen is not None
    assert (seen[0], seen[1]["version"]) == (200, made[1]["version"])
    for client in clients.values():
        client.new()
    assert rig.wrong == []


def _connected(rig: Rig) -> list[Client]:
    """A client on each front end."""
    found: dict[int, Client] = {}

    def look() -> bool:
        client = Client(rig, "one")
        client.ask("GET", "/livez")
        if found.setdefault(client.owner, client) is not client:
            client.new()
        return len(found) == 2

    assert until(look)
    return list(found.values())


def test_no_file_descriptor_to_spare_is_a_failed_attempt_and_no_more(quiet: Process) -> None:
    supervisor, victim = psutil.Process(quiet.process.pid), quiet.family(FRONT_END)[0]
    soft, hard = supervisor.rlimit(resource.RLIMIT_NOFILE)
    supervisor.rlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        victim.kill()
        assert until(lambda: "does not come up again: Too many open files" in quiet.output), quiet.output
    finally:
        supervisor.rlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert until(lambda: len(quiet.family(FRONT_END)) == 2)
    assert until(lambda: quiet.output.rindex("is up again") > quiet.output.rindex("Too many open files")), quiet.output


def test_a_front_end_without_a_file_descriptor_recovers(quiet: Process) -> None:
    starved, other = quiet.family(FRONT_END)
    soft, hard = starved.rlimit(resource.RLIMIT_NOFILE)
    starved.rlimit(resource.RLIMIT_NOFILE, (starved.num_fds() + 2, hard))
    try:
        with ThreadPoolExecutor(16) as pool:  # libuv closes at once what it has no descriptor for
            found = Counter(pool.map(lambda _: ask_or_none(quiet), range(64)))
    finally:
        starved.rlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(found) <= {200, None}
    assert found[200] > 0
    other.suspend()
    try:
        assert until(lambda: answers(quiet.url))
    finally:
        other.resume()
    assert starved in quiet.family(FRONT_END)


def test_a_stopped_engine_is_noticed_answered_for_and_replaced(quiet: Process, folder: Path, kit: Kit) -> None:
    for task in ("cold", "t"):
        quiet.client.put(f"/v1/tasks/{task}/adapter", content=kit.file(len(task))[0]).raise_for_status()
    stopped = engine(quiet)
    stopped.suspend()
    start = time.monotonic()
    problem(ready(quiet), 503)
    assert time.monotonic() - start < SETTINGS["READY_TIMEOUT_S"] + GRACE_S + SLACK_S
    with ThreadPoolExecutor(3) as pool:  # at once, before the engine is given up
        new = pool.submit(httpx.put, f"{quiet.url}/v1/tasks/new/adapter", content=kit.file(5)[0], timeout=WAIT)
        for late in [new, *(pool.submit(ask, quiet, task, 500) for task in ("t", "cold"))]:
            problem(late.result(), 504)
    assert quiet.client.get("/v1/tasks/new").status_code == 404
    assert until(lambda: stopped not in quiet.family(ENGINE)), quiet.output
    assert "no sign of life" in quiet.output
    assert until(lambda: ready(quiet).status_code == 200, STARTED_S), quiet.output
    assert ask(quiet).status_code == ask(quiet, "cold").status_code == 200
    assert until(lambda: list((folder / "data" / "staging").iterdir()) == [])


def test_an_engine_killed_while_it_tries_an_upload(quiet: Process, folder: Path, kit: Kit) -> None:
    url, found = f"{quiet.url}/v1/tasks/new/adapter", list[httpx.Response]()
    thread = threading.Thread(target=lambda: found.append(httpx.put(url, content=kit.file(5)[0], timeout=WAIT)))
    with hanging_device(folder):
        thread.start()
        assert until((folder / "device.reached").exists)
        engine(quiet).kill()
        thread.join()
    assert problem(found[0], 503)["type"] == LOST
    assert until(lambda: list((folder / "data" / "staging").iterdir()) == [])
    assert until(lambda: ready(quiet).status_code == 200, STARTED_S), quiet.output
    made = httpx.put(url, content=kit.file(5)[0], timeout=WAIT)
    assert (made.status_code, made.json()["version"]) == (201, 1)


def test_front_ends_killed_while_the_engine_holds_their_pixels(quiet: Process, folder: Path) -> None:
    expected, before = ask(quiet).json()["predictions"], quiet.output.count("is up again")
    asking = [threading.Thread(target=ask_or_none, args=(quiet,)) for _ in range(12)]
    with hanging_device(folder):
        for thread in asking:
            thread.start()
        assert until(lambda: gauge(quiet, "adaptserve_queue_rows") >= 12)
        for victim in quiet.family(FRONT_END):
            victim.kill()
        for thread in asking:
            thread.join()
        assert until(lambda: quiet.output.count("is up again") == before + 2), quiet.output
    assert until(lambda: gauge(quiet, "adaptserve_queue_rows") == 0)
    assert until(lambda: gauge(quiet, 'adaptserve_bank_slots{state="pinned"}') == 0)
    for _ in range(5):
        assert ask(quiet).json()["predictions"] == expected


def test_front_ends_that_do_not_last_are_started_more_and_more_seldom(quiet: Process, folder: Path) -> None:
    (folder / "short").touch()
    try:
        quiet.family(FRONT_END)[0].kill()
        assert until(lambda: "in 1 s, since it ends again and again" in quiet.output, STARTED_S), quiet.output
    finally:
        (folder / "short").unlink()
    assert until(lambda: quiet.output.rindex("is up again") > quiet.output.rindex("another one is")), quiet.output
    assert until(lambda: len(quiet.family(FRONT_END)) == 2 and ask_or_none(quiet) == 200), quiet.output


@contextmanager
def hanging_device(folder: Path) -> Iterator[None]:
    (folder / "device.reached").unlink(missing_ok=True)
    (folder / "device").touch()
    try:
        yield
    finally:
        (folder / "device").unlink()


def ask_or_none(server: Process) -> int | None:
    """The status; None where the connection broke."""
    try:
        return ask(server).status_code
    except httpx.TransportError:
        return None


def test_front_ends_that_cannot_start_again_end_the_server(quiet: Process, folder: Path) -> None:
    """The last one that has the server: it leaves none behind."""
    family, before = quiet.family(), quiet.output.count("does not come up again")
    (folder / "crash").touch()
    quiet.family(FRONT_END)[0].kill()
    assert quiet.process.wait(60) == FAILED, quiet.output
    assert quiet.output.count("does not come up again") == before + TRIES
    assert "cannot be started again" in quiet.output.splitlines()[-1]
    assert f"exit code {FAILED}" in quiet.output.splitlines()[-1]
    assert ended(family)


@pytest.mark.parametrize(
    "who",
    [
        "an engine",
        pytest.param("nobody", marks=pytest.mark.torture),
        pytest.param("front ends", marks=pytest.mark.torture),
    ],
)
def test_a_stop_during_which_an_engine_is_killed_or_front_ends_are_stopped(
    who: str, kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(kit, tmp_path, monkeypatch, DRAIN_S=3) as server:
        family, found = server.family(), list[int | None]()
        with hanging_device(tmp_path):
            thread = threading.Thread(target=lambda: found.append(ask_or_none(server)))
            thread.start()
            assert until((tmp_path / "device.reached").exists)
            for process in server.family(FRONT_END) if who == "front ends" else ():
                process.suspend()
            start = time.monotonic()
            server.client.close()
            server.process.send_signal(signal.SIGTERM)
            if who == "an engine":
                assert until(lambda: not answers(server.url))  # it drains
                server.family(ENGINE)[0].kill()
            assert server.process.wait(60) == CUT_OFF, server.output
            assert time.monotonic() - start < 3 + STOP_S + SLACK_S
        thread.join()
        assert found == [None if who == "front ends" else 503]
        assert ended(family)  # also those that were stopped


@pytest.mark.torture
def test_what_a_killed_server_leaves_is_swept_and_what_lives_is_not(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    left = tmp_path / "tmp"
    with started(kit, tmp_path, monkeypatch) as server:
        family = server.family()
        (folder,) = left.glob("adaptserve-*")
        family[1].suspend()
        server.stop(signal.SIGKILL)
        assert ended(family[1:])
        assert folder.exists()
    with started(kit, tmp_path, monkeypatch) as server:
        (living,) = left.glob("adaptserve-*")
        assert living != folder
        monkeypatch.setenv("TMPDIR", str(left))
        given = ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--data-dir", str(tmp_path / "other")]
        with Process([*given, "--threads", "1"], tmp_path / "log-2") as second:
            assert len(list(left.glob("adaptserve-*"))) == 2
            assert second.stop(signal.SIGTERM) == 0
        assert ask(server).status_code == 200
        assert list(left.glob("adaptserve-*")) == [living]


@pytest.mark.torture
def test_of_two_engines_one_goes_on_alone(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with started(kit, tmp_path, monkeypatch, "--device", "cpu,cpu") as server:
        seen, stop = Counter[int](), threading.Event()

        def run() -> None:
            while not stop.is_set():
                seen[ask(server).status_code] += 1

        before = {process: process.cpu_times().user for process in server.family(ENGINE)}
        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        assert until(lambda: seen[200] > 60)
        used = [process.cpu_times().user - before[process] for process in server.family(ENGINE)]
        assert min(used) > 0.1 * max(used) > 0, used
        victim = server.family(ENGINE)[0]
        victim.kill()
        answered = seen[200]
        assert until(lambda: seen[200] > answered + 30)
        assert server.output.count("is up again") == 0  # the other one answered
        assert ready(server).status_code == 200
        made = server.client.put("/v1/tasks/meanwhile/adapter", content=kit.file(6)[0])
        assert made.status_code == 201
        assert ask(server, "meanwhile").json()["digest"] == made.json()["digest"]
        assert until(lambda: "is up again" in server.output, STARTED_S)
        stop.set()
        for thread in threads:
            thread.join()
        print(dict(seen))
        assert set(seen) <= {200, 503}
        assert seen[503] <= len(threads)  # its own
        # One that is stopped gets no more than a request from each front end.
        stopped = server.family(ENGINE)[0]
        stopped.suspend()
        try:
            codes = Counter(ask(server, deadline_ms=1000).status_code for _ in range(12))
            assert codes[200] >= 10, codes
            assert ready(server).status_code == 200
        finally:
            stopped.resume()
        # What is deleted leaves the memory of both.
        for task in ("t", "meanwhile"):
            assert server.client.delete(f"/v1/tasks/{task}").status_code == 204
        assert until(lambda: gauge(server, 'adaptserve_bank_slots{state="used"}') == 0)
        assert until(lambda: gauge(server, "adaptserve_host_cache_bytes") == 0)
        assert server.stop(signal.SIGTERM) == 0, server.output
