"""Processes of one server killed, stopped and starved in turn: who notices, how soon, and that it goes on."""

from __future__ import annotations

import resource
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from service.engine.remote import GRACE_S
from service.exits import FAILED
from service.supervisor import TRIES
from tests.children import ENGINE, FRONT_END
from tests.houses import STARTED_S, WAIT, Kit, Process, photograph, problem, until
from tests.killable import SETTINGS, SLACK_S, ask, ask_or_none, ended, engine, gauge, hanging_device, ready, started
from tests.killing import LOST, Client, Rig, answers

LOST_S = 10.0
"""Longer than a test holds the device up, also where the machine is busy."""
COLD = {"SLOTS": 1, "HOST_CACHE_BYTES": 0, "UPLOAD_TIMEOUT_S": 2, "DEVICE_LOST_S": LOST_S}


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
