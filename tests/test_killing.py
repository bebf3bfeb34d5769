"""Processes of a server killed while others use it, before a stop and during one: who notices, and what is left.

The short runs are quick tests; `make torture` kills thirty times and prints its numbers.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from service.cli.serve import STOP_S
from service.exits import CUT_OFF
from tests.children import ENGINE, FRONT_END
from tests.houses import STARTED_S, WAIT, Kit, Process, problem, until
from tests.killable import SLACK_S, ask, ask_or_none, ended, engine, gauge, hanging_device, ready, started
from tests.killing import LOST, Load, Rig, answers, kill


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a short name: the servers' sockets are in it, and the kernel takes 107 bytes of a path to one."""
    return tmp_path_factory.mktemp("kill")


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
