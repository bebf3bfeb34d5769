"""Lists of tasks and versions over real sockets: pages, filters, no file read, and nothing that holds others up."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import child
from service.keys import create, dump
from service.store import catalogue
from service.store.descriptions import LISTED_LABELS, Description, Summary
from service.store.manifest import About, TaskInfo, VersionInfo, render
from tests.houses import House, Kit, house, pages, photograph, problem, sites
from tests.models import Spec

TASKS = ("apple", "apple-pie", "banana", "cherry", "cherry.2", "cherry_3", "date")


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"), max_page_items=50)) as made:
        for number, name in enumerate(TASKS):
            made.put(name, kit.file(number)[0]).raise_for_status()
        yield made


def names(home: House, **params: Any) -> list[str]:
    return [task["task"] for task in pages(home.client, "/v1/tasks", "tasks", **params)]


@settings(max_examples=30, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.integers(1, 9), st.sampled_from(["", "a", "apple", "cherry", "cherry.", "nothing", "ä", "ZZ", "\x00"]))
def test_every_task_comes_once_under_any_limit_and_prefix(home: House, limit: int, prefix: str) -> None:
    wanted = [name for name in TASKS if name.startswith(prefix)]
    assert names(home, limit=limit, prefix=prefix) == wanted
    first = home.client.get("/v1/tasks", params={"limit": limit, "prefix": prefix}).json()
    assert first["count"] == len(wanted)
    assert len(first["tasks"]) == min(limit, len(wanted))
    assert first["next"] == (wanted[limit - 1] if len(wanted) > limit else None)


@pytest.mark.parametrize("path", ["/v1/tasks", "/v1/tasks/apple/versions"])
def test_a_limit_out_of_bounds_is_refused_and_the_setting_named(home: House, path: str) -> None:
    document = problem(home.client.get(path, params={"limit": 51}), 400)
    assert "max_page_items" in str(document["detail"])
    assert (document["limit"], document["value"]) == (50, 51)
    for bad in (0, -1, "x", "", 10**30):
        problem(home.client.get(path, params={"limit": bad}), 400)
    assert home.client.get(path, params={"limit": 50}).status_code == 200


def test_a_name_longer_than_any_is_refused(home: House) -> None:
    for field in ("after", "prefix"):
        problem(home.client.get("/v1/tasks", params={field: "a" * 65}), 400)
        assert home.client.get("/v1/tasks", params={field: "a" * 64}).status_code == 200
    problem(home.client.get("/v1/tasks/apple/versions", params={"after": "x"}), 400)


def test_without_a_limit_the_settings_say_how_much(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path, page_items=3)) as made:
        for number in range(5):
            made.put("many", kit.file(number)[0]).raise_for_status()
            made.put(f"t{number}", kit.file(number)[0]).raise_for_status()
        first = made.client.get("/v1/tasks").json()
        assert (len(first["tasks"]), first["count"], first["next"]) == (3, 6, "t1")
        shown = made.client.get("/v1/tasks/many/versions").json()
        assert ([v["version"] for v in shown["versions"]], shown["count"], shown["next"]) == ([1, 2, 3], 5, 3)
        shown = made.client.get("/v1/tasks/many/versions", params={"after": 3}).json()
        assert ([v["version"] for v in shown["versions"]], shown["count"], shown["next"]) == ([4, 5], 5, None)
        assert [v["active"] for v in shown["versions"]] == [False, True]
        made.client.delete("/v1/tasks/many/versions/2")
        found = pages(made.client, "/v1/tasks/many/versions", "versions", limit=2)
        assert [v["version"] for v in found] == [1, 3, 4, 5]


def test_a_key_pages_through_what_it_may_see(kit: Kit, tmp_path: Path) -> None:
    boss, boss_key = create("boss", "admin")
    some, some_key = create("some", "predict", [*TASKS[1:6:2], "nosuch"])
    with house(kit.settings(data_dir=tmp_path, keys=dump([boss_key, some_key]))) as made:
        made.client.headers["Authorization"] = f"Bearer {boss}"
        for number, name in enumerate(TASKS):
            made.put(name, kit.file(number)[0]).raise_for_status()
        assert names(made, limit=2) == list(TASKS)
        made.client.headers["Authorization"] = f"Bearer {some}"
        assert names(made, limit=2) == list(TASKS[1:6:2])
        assert names(made, limit=1, prefix="cherry") == ["cherry", "cherry_3"]
        first = made.client.get("/v1/tasks", params={"limit": 2}).json()
        assert (first["count"], first["next"]) == (3, "cherry")


def test_a_list_has_the_first_labels_and_a_task_has_all(home: House, kit: Kit) -> None:
    content, adapter = kit.file(40, Spec(sites(), 300, "avg", "trained"))
    home.put("wide", content).raise_for_status()
    try:
        (listed,) = home.client.get("/v1/tasks", params={"prefix": "wide"}).json()["tasks"]
        whole = home.client.get("/v1/tasks/wide").json()
        assert listed["labels"] == list(adapter.config.labels[:LISTED_LABELS])
        assert whole["labels"] == list(adapter.config.labels)
        assert listed["classes"] == whole["classes"] == 300
        assert listed | {"labels": 0} == whole | {"labels": 0}
    finally:
        home.client.delete("/v1/tasks/wide")


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Every header that is read."""
    read: list[Path] = []
    inner = catalogue.read_header
    with monkeypatch.context() as patched:
        patched.setattr(catalogue, "read_header", lambda path, limits: read.append(path) or inner(path, limits))
        yield read


def test_a_cold_list_reads_no_file(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with house(kit.settings(data_dir=tmp_path)) as made:
        for number, name in enumerate(TASKS):
            made.put(name, kit.file(number)[0]).raise_for_status()
        made.put("date", kit.file(20)[0]).raise_for_status()
        made.client.post("/v1/tasks/date/versions/1/activate").raise_for_status()
        made.put("staged", kit.file(21)[0], activate="false").raise_for_status()
        before = made.client.get("/v1/tasks").json()["tasks"]
    with counted(monkeypatch) as read, house(kit.settings(data_dir=tmp_path)) as made:
        after = made.client.get("/v1/tasks").json()["tasks"]
        assert read == []
        assert [made.client.get(f"/v1/tasks/{task['task']}").json() for task in after] == after
        assert len(read) == len(after)
    assert [t | {"residency": ""} for t in after] == [t | {"residency": ""} for t in before]
    assert next(t["problem"] for t in after if t["task"] == "staged") == "no version is active; activate one"


def test_manifests_from_before_lists_were_kept_are_read_for_ever(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "tasks/old/manifest.json"
    with house(kit.settings(data_dir=tmp_path)) as made:
        for number in (1, 2):
            made.put("old", kit.file(number)[0]).raise_for_status()
        before = made.client.get("/v1/tasks").json()["tasks"]
    manifest.write_text(json.dumps({k: v for k, v in json.loads(manifest.read_text()).items() if k != "about"}))
    with counted(monkeypatch) as read, house(kit.settings(data_dir=tmp_path)) as made:
        for _ in range(3):
            after = made.client.get("/v1/tasks").json()["tasks"]
        assert len(read) == 1
        assert "about" not in json.loads(manifest.read_text())
        made.client.delete("/v1/tasks/old/versions/1").raise_for_status()
        assert json.loads(manifest.read_text())["about"]["classes"] == 5
    assert [t | {"residency": ""} for t in after] == [t | {"residency": ""} for t in before]
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"about": {"digest": "0", "from": "the future"}}))
    with house(kit.settings(data_dir=tmp_path)) as made:
        assert made.client.get("/v1/tasks").json()["tasks"][0]["classes"] == 5


def test_a_task_that_cannot_run_here_says_why_also_from_the_manifest(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with house(kit.settings(data_dir=tmp_path)) as made:
        made.put("wide", kit.file(1, Spec(sites(), 60, "avg", "trained"))[0]).raise_for_status()
        made.put("broken", kit.file(2)[0]).raise_for_status()
    (tmp_path / "tasks/broken/versions/1.safetensors").write_bytes(
        bytes((tmp_path / "tasks/broken/versions/1.safetensors").stat().st_size)
    )
    with counted(monkeypatch) as read, house(kit.settings(data_dir=tmp_path, max_classes=50)) as made:
        listed = {task["task"]: task for task in made.client.get("/v1/tasks").json()["tasks"]}
        assert "60 classes" in listed["wide"]["problem"]
        assert read == []
        whole = made.client.get("/v1/tasks/broken").json()
        assert whole["problem"]
        assert whole["labels"] == []
        problem(made.ask("wide", photograph()), 413)


def test_tasks_come_and_go_while_others_list_them(home: House, kit: Kit) -> None:
    """Every list is whole and none is a 404, whatever is deleted meanwhile."""
    files = [kit.file(number)[0] for number in range(3)]
    stop, rounds = threading.Event(), [0]

    def churn(name: str) -> None:
        with httpx.Client(base_url=home.url, timeout=30) as client:
            while not stop.is_set():
                for number, content in enumerate(files):
                    client.put(f"/v1/tasks/{name}-{number}/adapter", content=content).raise_for_status()
                for number in range(len(files)):
                    client.delete(f"/v1/tasks/{name}-{number}").raise_for_status()
                rounds[0] += 1

    threads = [threading.Thread(target=churn, args=(name,)) for name in ("b", "cherry")]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + 2
        while time.monotonic() < end or rounds[0] < 3:
            for limit in (1, 3, 50):
                found = names(home, limit=limit)
                assert [name for name in found if name in TASKS] == list(TASKS)
                assert found == sorted(set(found))
            assert home.client.get("/metrics").status_code == 200
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert names(home) == list(TASKS)


def test_a_task_deleted_while_its_file_is_read_is_a_404(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with house(kit.settings(data_dir=tmp_path, config_cache_bytes=0)) as made:
        made.put("going", kit.file(1)[0]).raise_for_status()

        def read(path: Path, limits: object) -> None:
            made.front.catalogue.repository.delete_task("going")
            raise FileNotFoundError(path)

        monkeypatch.setattr(catalogue, "read_header", read)
        problem(made.client.get("/v1/tasks/going"), 404)


MANY = 10_000
HOLDS_MS = 10.0


def fill(folder: Path, kit: Kit, real: dict[str, int], count: int) -> None:
    """A data folder of ``count`` tasks as if each had been uploaded; of ``real`` ones, as many versions as it says.

    The others are links to one folder, since no manifest holds a name: they are made and removed ten times as fast.
    """
    content, adapter = kit.file(1)
    about = About(adapter.digest, Summary.of(Description(adapter.config, adapter.parameters, fits=True)).text())
    tasks = folder / "tasks"
    for name, numbers in {"../one": 1, **real}.items():
        (tasks / name / "versions").mkdir(parents=True)
        versions = {}
        for n in range(1, numbers + 1):
            digest = adapter.digest if n == 1 else f"{name} {n}"
            versions[n] = VersionInfo(name, n, digest, len(content), "2026-11-25T17:00:00+00:00")
            (tasks / name / f"versions/{n}.safetensors").write_bytes(content)
        (tasks / name / "manifest.json").write_bytes(render(TaskInfo(name, versions, 1, numbers + 1, about)))
    for number in range(count - len(real)):
        (tasks / f"task-{number:05d}").symlink_to("../one")


class Beat:
    """The processor time that the event loop's thread spends between two turns of the loop, in ms."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest, last = max(self.longest, 1e3 * (now - last)), now


@pytest.fixture
def frozen() -> Iterator[None]:
    """As `adaptserve serve` does before it listens."""
    child.freeze()
    yield
    gc.unfreeze()


def test_the_collector_leaves_alone_what_the_start_made() -> None:
    try:
        child.freeze()
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()


@pytest.mark.usefixtures("frozen")
def test_ten_thousand_tasks_hold_up_nobody(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = {"large": 301} | {f"real-{turn}": 1 for turn in range(5)}
    fill(tmp_path / "data", kit, real, MANY)
    loops: list[asyncio.AbstractEventLoop] = []
    inner = catalogue.Catalogue.names

    def seen(self: catalogue.Catalogue) -> Any:
        loops.append(asyncio.get_running_loop())
        return inner(self)

    monkeypatch.setattr(catalogue.Catalogue, "names", seen)
    with counted(monkeypatch) as read, house(kit.settings(data_dir=tmp_path / "data", max_tasks=MANY + 10)) as made:
        made.client.get("/v1/tasks").raise_for_status()
        beat = Beat()
        beating = asyncio.run_coroutine_threadsafe(beat.run(), loops[0])
        found = pages(made.client, "/v1/tasks", "tasks", limit=1000)
        assert len(found) == MANY
        assert read == []
        for turn in range(5):
            made.client.get("/v1/tasks").raise_for_status()
            made.client.get("/v1/tasks", params={"prefix": "task-09", "after": "task-0911"}).raise_for_status()
            made.client.get("/metrics").raise_for_status()
            made.put(f"new-{turn}", kit.file(2 + turn)[0]).raise_for_status()
            made.ask("task-05000", photograph()).raise_for_status()
            assert len(pages(made.client, "/v1/tasks/large/versions", "versions", limit=1000)) == 301
            made.client.delete(f"/v1/tasks/real-{turn}").raise_for_status()
        made.client.delete("/v1/tasks/large").raise_for_status()
        assert made.client.get("/v1/tasks", params={"limit": 1}).json()["count"] == MANY - 1
        beating.cancel()
        print(f"the longest turn of the loop took {beat.longest:.1f} ms")
        assert beat.longest < HOLDS_MS
        # The bytes that 10,000 tasks share stay resident while one of them is left.
        assert made.local.bank.tier(kit.file(1)[1].digest) == "device"
