"""The process of sources in a real family: every front end has what it brings, and it is started again when it dies."""

from __future__ import annotations

import asyncio
import hashlib
import re
import signal
from pathlib import Path
from random import Random
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.messages import ALIVE, BRING, BROUGHT, DECLARED, Told
from service.settings import Settings
from service.sources.keeper import SourcesKeeper
from tests.houses import Kit, Process, client_of, photograph, until

SOURCES = "service.sources.process"


@pytest.mark.timeout(240)
def test_a_family_with_sources(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTSERVE_WATCH_EVERY_S", "0.1")
    folder, content = tmp_path / "watched", kit.file(40)[0]
    folder.mkdir()
    (tmp_path / "local.safetensors").write_bytes(content)
    tasks = "tasks:\n  - {name: first, source: local.safetensors, pinned: true}\n"
    tasks += "  - {name: later, source: local.safetensors, load: first-use}\n"
    (tmp_path / "tasks.yaml").write_text(tasks)
    given = ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--data-dir", str(tmp_path / "data")]
    given += ["--watch", str(folder), "--tasks-file", str(tmp_path / "tasks.yaml"), "--threads", "1"]
    with Process([*given, "--front-ends", "2"], tmp_path / "log") as server:
        assert re.search(r"^tasks +first +\(in", server.output, re.MULTILINE)  # before anybody was served
        (process,) = server.family(SOURCES)
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
        for task in ("first", "later"):
            for _ in range(4):  # each connection is one front end's
                with client_of(server.url) as client:
                    assert client.post(f"/v1/tasks/{task}/predict", content=photograph()).status_code == 200, task
        assert 'adaptserve_uploads_total{outcome="created"} 2.0' in server.client.get("/metrics").text
        process.kill()
        (folder / "cats.safetensors").write_bytes(content)
        assert until(lambda: server.client.get("/v1/tasks/cats").status_code == 200), server.output
        (another,) = server.family(SOURCES)
        assert another.pid != process.pid
        assert "the sources process was killed by signal 9; another one is started in 1 s" in server.output
        assert server.client.get("/readyz").status_code == 200
        assert server.stop(signal.SIGTERM) == 0
        assert not another.is_running()


@pytest.mark.torture
@pytest.mark.timeout(600)
def test_files_that_come_while_the_process_is_killed(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state of each file is a version once, in its order, and the last one is active."""
    monkeypatch.setenv("ADAPTSERVE_WATCH_EVERY_S", "0.1")
    folder, random, contents = tmp_path / "watched", Random(7), [kit.file(seed)[0] for seed in range(60, 66)]
    folder.mkdir()
    given = ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--data-dir", str(tmp_path / "data")]
    with Process([*given, "--watch", str(folder), "--threads", "1", "--front-ends", "1"], tmp_path / "log") as server:
        for content in contents:
            for task in (f"t{number}" for number in range(10)):
                (tmp_path / "beside").write_bytes(content)
                (tmp_path / "beside").replace(folder / f"{task}.safetensors")
            if random.random() < 0.7:
                assert until(lambda: bool(server.family(SOURCES)))
                Event().wait(random.random())
                for process in server.family(SOURCES):
                    process.kill()
            wanted = hashlib.sha256(content).hexdigest()

            def active(task: str, wanted: str = wanted) -> bool:
                answer = server.client.get(f"/v1/tasks/{task}")
                return answer.status_code == 200 and answer.json()["digest"] == wanted

            assert until(lambda: all(active(f"t{number}") for number in range(10)), 60), server.output
        for number in range(10):
            found = server.client.get(f"/v1/tasks/t{number}/versions").json()["versions"]
            assert [one["digest"] for one in sorted(found, key=lambda one: one["version"])] == [
                hashlib.sha256(content).hexdigest() for content in contents
            ]
        assert not list(folder.glob("*.error.txt"))
        assert server.output.count("the sources process was killed by signal 9") >= 2


def test_the_keeper_hands_on_what_is_of_tasks_alone() -> None:
    """A sign of life that is handed on would be answered, and handed on, for ever."""
    told: list[Told] = []
    asked: list[Told] = []
    process = SimpleNamespace(name="sources", channel=SimpleNamespace(send=asked.append), up=None, built=None)

    async def start() -> Any:
        process.up, process.built = (asyncio.get_running_loop().create_future() for _ in range(2))
        process.ended = asyncio.get_running_loop().create_future()
        process.up.set_result({})
        process.built.set_result(None)
        return process

    async def begun() -> SourcesKeeper:
        keeper = SourcesKeeper(Settings(), start, told.append)
        (await keeper.begin()).close()
        return keeper

    keeper, front_end = asyncio.run(begun()), SimpleNamespace(name="front end 1")
    for name in (ALIVE, DECLARED, BROUGHT, "up"):
        keeper.heard(process, Told(name, None))
    for name in (ALIVE, DECLARED, BRING, "counted"):
        keeper.heard(front_end, Told(name, "x"))
    assert [message.name for message in told] == [DECLARED, BROUGHT]
    assert [message.name for message in asked] == [DECLARED, BRING]


def test_a_tasks_file_with_mistakes_keeps_the_server_from_starting(tmp_path: Path) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text("tasks:\n  - name: Cats\n    source: x\n")
    done = CliRunner().invoke(app, ["serve", "--tasks-file", str(file), "--data-dir", str(tmp_path / "data")])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {file}:2: 'Cats' is no task's name")
    assert not (tmp_path / "data").exists()


def test_sources_check(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "right.safetensors").write_bytes(kit.file(41)[0])
    (tmp_path / "wrong.safetensors").write_bytes(b"junk")
    file = tmp_path / "tasks.yaml"
    file.write_text("tasks:\n  - {name: a, source: right.safetensors}\n  - {name: b, source: wrong.safetensors}\n")

    def checked(*more: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, ["sources", "check", str(file), *more])
        return done.exit_code, done.stdout, done.stderr

    assert checked() == (0, "2 tasks are declared; --fetch fetches their files\n", "")
    code, said, complained = checked("--fetch")
    assert (code, complained) == (1, "error: b: the file has 4 bytes, too few for safetensors (wrong.safetensors)\n")
    assert re.match(r"a: 5 labels, for \S+, \d+ bytes, sha256 [0-9a-f]{64}\n1 of 2 files are right\n$", said), said
    file.write_text("tasks:\n  - {name: A, source: x}\n  - {name: b}\n")
    code, said, complained = checked()
    assert (code, said) == (1, "")
    found = [line.removeprefix(f"error: {file}:").partition(":")[0] for line in complained.splitlines()]
    assert found == ["2", "3"]
