"""Tasks that a file declares, at a server: there at the start or when first asked for, once, and never in the way."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service.errors import BadTasksFile
from service.sources import declaring
from service.sources.fetching import Fetcher
from tests.houses import House, Kit, house, photograph, problem, until
from tests.places import Answer, Place, Registry, served

SAFETENSORS = "application/vnd.docker.ai.safetensors"


@dataclass
class Deep:
    """A folder with a tasks file, and a registry whose artifacts it names."""

    kit: Kit
    folder: Path
    registry: Registry
    place: Place
    stalled: dict[str, threading.Event] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.folder / "tasks.yaml"

    def push(self, name: str, seed: int, tag: str = "v1") -> str:
        """An adapter in the registry; its digest."""
        content = self.kit.file(seed)[0]
        self.registry.push(name, tag, (SAFETENSORS, f"{name}.safetensors", content))
        return hashlib.sha256(content).hexdigest()

    def declare(self, *tasks: str, hurry: bool = True) -> None:
        """Flow mappings, one a line; {} stands for the registry. The file's time is now, or an hour ago."""
        beside = self.folder / "beside.yaml"
        beside.write_text("tasks:\n" + "".join(f"  - {{{one}}}\n" for one in tasks).replace("REG", self.place.host))
        if not hurry:
            os.utime(beside, (time.time() - 3600,) * 2)
        beside.replace(self.file)

    def asked(self, name: str) -> int:
        return sum(f"/v2/{name}/blobs/" in path for path in self.place.asked)

    @contextmanager
    def server(self, data: str = "data", **changes: Any) -> Iterator[House]:
        given = {
            "data_dir": self.folder / data, "tasks_file": str(self.file), "source_retry_s": 0.5, "source_wait_s": 5.0,
        }  # fmt: skip
        with house(self.kit.settings(**given | changes)) as home:
            yield home


@pytest.fixture
def deep(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deep]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setattr(declaring, "LOOK_S", 0.05)
    registry = Registry()
    stalled: dict[str, threading.Event] = {}

    def answer(path: str, headers: Any) -> Answer:
        found = registry.answer(path, headers)
        found.stall = next((event for name, event in stalled.items() if f"/v2/{name}/blobs/" in path), None)
        return found

    with served(Place(answer)) as place:
        yield Deep(kit, tmp_path, registry, place, stalled)


def version(home: House, task: str) -> int | None:
    answer = home.client.get(f"/v1/tasks/{task}")
    return answer.json()["version"] if answer.status_code == 200 else None


def test_at_the_start_and_at_first_use(deep: Deep) -> None:
    for seed, name in enumerate(("start", "later", "never"), 20):
        deep.push(name, seed)
    deep.declare(
        "name: start, source: 'oci://REG/start:v1', pinned: true",
        "name: later, source: 'oci://REG/later:v1', load: first-use",
        "name: never, source: 'oci://REG/never:v1', load: first-use",
    )
    with deep.server() as home:
        assert (version(home, "start"), version(home, "later")) == (1, None)
        (digest,) = home.local.bank.residents  # pinned, before anybody was served
        assert digest == home.client.get("/v1/tasks/start").json()["digest"]
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: home.ask("later", photograph()).status_code, range(8)))
        assert answers == [200] * 8
        assert (deep.asked("later"), deep.asked("never")) == (1, 0)
        problem(home.ask("unheard", photograph()), 404)
        assert home.client.post("/v2/models/never/infer", json={}).status_code == 400  # other protocols bring it too
        assert version(home, "never") == 1


def test_a_source_that_fails_is_not_asked_again_at_once(deep: Deep) -> None:
    deep.push("good", 23)
    deep.declare(
        "name: lost, source: 'oci://REG/lost:v1'", "name: wrong, source: junk.safetensors, load: first-use",
        "name: good, source: 'oci://REG/good:v1'",
    )  # fmt: skip
    (deep.folder / "junk.safetensors").write_bytes(b"junk")
    with deep.server(source_retry_s=30.0) as home:
        assert version(home, "good") == 1  # one that fails keeps nobody from starting
        for _ in range(3):
            answer = home.ask("lost", photograph())
            detail = problem(answer, 503)["detail"]
            assert detail == (
                "task 'lost' is declared and cannot be brought in: the registry has no lost of v1 that this server may "
                "read"
            )
            assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert sum("/v2/lost/" in path for path in deep.place.asked) == 1
        assert "too few for safetensors" in str(problem(home.ask("wrong", photograph()), 503)["detail"])
        assert home.ask("good", photograph()).status_code == 200
        deep.push("lost", 24)
        deep.declare("name: lost, source: 'oci://REG/lost:v1', sha256: " + deep.push("lost", 24))
        assert until(lambda: version(home, "lost") == 1)  # a change of the file is no reason to wait


def test_it_is_tried_again_by_itself(deep: Deep) -> None:
    deep.declare("name: late, source: 'oci://REG/late:v1'")
    with deep.server(source_retry_s=0.2) as home:
        problem(home.ask("late", photograph()), 503)
        deep.push("late", 25)
        assert until(lambda: version(home, "late") == 1)


def test_a_slow_source_holds_up_nobody_else(deep: Deep) -> None:
    deep.push("slow", 26)
    deep.stalled["slow"] = threading.Event()
    deep.declare("name: slow, source: 'oci://REG/slow:v1', load: first-use")
    with deep.server(source_wait_s=0.3) as home, ThreadPoolExecutor(1) as threads:
        home.put("here", deep.kit.file(27)[0]).raise_for_status()
        waiting = threads.submit(home.ask, "slow", photograph())
        assert until(lambda: deep.asked("slow") == 1)
        assert home.ask("here", photograph()).status_code == 200
        answer = waiting.result()
        assert "takes longer than 0.3 s (source_wait_s)" in str(problem(answer, 503)["detail"])
        assert answer.headers["retry-after"] == "2"
        deep.stalled["slow"].set()
        assert until(lambda: version(home, "slow") == 1)
        assert deep.asked("slow") == 1


def test_what_is_pinned_by_its_digest(deep: Deep) -> None:
    digest = deep.push("pinned", 28)
    deep.declare(f"name: pinned, source: 'oci://REG/pinned:v1', sha256: {'0' * 64}, load: first-use")
    with deep.server() as home:
        said = str(problem(home.ask("pinned", photograph()), 503)["detail"])
        assert f"the file's sha256 is {digest}, and {'0' * 64} is declared" in said
        assert version(home, "pinned") is None
    with deep.server() as home:
        home.put("known", deep.kit.file(28)[0]).raise_for_status()
        asked = len(deep.place.asked)
        deep.declare(f"name: known, source: 'oci://REG/pinned:v1', sha256: {digest}")
        record = deep.folder / "data/sources/tasks.json"
        assert until(lambda: record.exists() and "known" in record.read_text())
        assert len(deep.place.asked) == asked  # nothing is fetched that is there
        assert version(home, "known") == 1


def test_a_restart_fetches_nothing_twice_and_undoes_nothing(deep: Deep) -> None:
    for seed, name in enumerate(("changed", "deleted"), 30):
        deep.push(name, seed)
    tasks = [f"name: {name}, source: 'oci://REG/{name}:v1'" for name in ("changed", "deleted")]
    deep.declare(*tasks)
    with deep.server() as home:
        home.put("changed", deep.kit.file(32)[0]).raise_for_status()
        home.client.delete("/v1/tasks/deleted").raise_for_status()
        problem(home.ask("deleted", photograph()), 404)
    asked = len(deep.place.asked)
    with deep.server() as home:
        assert (version(home, "changed"), version(home, "deleted")) == (2, None)
        assert len(deep.place.asked) == asked
        digest = deep.push("changed", 33, "v2")
        deep.declare("name: changed, source: 'oci://REG/changed:v2'", tasks[1])
        assert until(lambda: version(home, "changed") == 3)
        assert home.client.get("/v1/tasks/changed").json()["digest"] == digest
        deep.declare("name: changed, source: 'oci://REG/changed:v1'")  # back, by the file
        assert until(lambda: version(home, "changed") == 1)
        deep.declare()
        assert (version(home, "changed"), home.ask("changed", photograph()).status_code) == (1, 200)
    (deep.folder / "data/sources/tasks.json").unlink()  # as a server that never saw the file
    deep.declare(*tasks, hurry=False)
    with deep.server() as home:
        assert (version(home, "changed"), version(home, "deleted")) == (1, None)


def test_a_file_that_breaks_leaves_what_was_declared(deep: Deep, caplog: pytest.LogCaptureFixture) -> None:
    deep.push("kept", 35)
    deep.declare("name: kept, source: 'oci://REG/kept:v1', load: first-use")
    with deep.server() as home:
        deep.file.write_text("tasks:\n  - name: Kept\n")
        assert until(lambda: "tasks.yaml:2: 'Kept' is no task's name" in caplog.text)
        deep.file.unlink()
        assert home.ask("kept", photograph()).status_code == 200
    deep.file.write_text("tasks: 7\n")
    with pytest.raises(BadTasksFile, match="begins with 'tasks:'"), deep.server():
        pass


def test_a_mistake_of_ours_is_a_503_too(deep: Deep, monkeypatch: pytest.MonkeyPatch) -> None:
    deep.declare("name: odd, source: x, load: first-use")

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Fetcher, "fetch", fail)
    with deep.server() as home:
        assert "by a mistake of the server's own" in str(problem(home.ask("odd", photograph()), 503)["detail"])
