"""A load belongs to a digest: tasks with the same bytes share it, and none hears of what happened to another's file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters.file import Adapter
from tests.houses import WAIT, House, Kit, house, photograph, problem, until


@pytest.fixture
def home(kit: Kit, tmp_path: Path) -> Iterator[House]:
    """Tasks ``first`` and ``second`` with the same bytes, and one slot that another task holds."""
    with house(kit.settings(data_dir=tmp_path / "data", slots=1, host_cache_bytes=0)) as made:
        for task, number in (("first", 1), ("second", 1), ("other", 2)):
            made.put(task, kit.file(number)[0]).raise_for_status()
        assert made.local.bank.tier(kit.file(1)[1].digest) == "disk"
        yield made


def meanwhile(home: House, act: Callable[[], object]) -> tuple[object, object]:
    """Ask both tasks, ``act`` while their shared load is about to read the first one's file; both responses."""
    gate, reached, read = threading.Event(), threading.Event(), home.local.loading.read

    def slow(path: Path, digest: str = "") -> Adapter:
        reached.set()
        assert gate.wait(WAIT)
        return read(path, digest)

    home.local.loading.read = slow  # type: ignore[method-assign]
    try:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(home.ask, "first", photograph())
            assert reached.wait(WAIT)
            second = pool.submit(home.ask, "second", photograph())
            assert until(lambda: home.local.engine.queued_rows == 2)
            act()
            gate.set()
            return first.result(WAIT), second.result(WAIT)
    finally:
        home.local.loading.read = read  # type: ignore[method-assign]


def path_of(home: House, task: str) -> Path:
    return home.front.catalogue.repository.path(task, 1)


def rot(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def unreadable(path: Path) -> None:
    """A folder in its place: an error of the disk that is none of ours."""
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("what", ["deleted", "changed", "broken", "lost", "unreadable"])
def test_a_task_is_answered_though_another_ones_file_is_gone(home: House, kit: Kit, what: str) -> None:
    path = path_of(home, "first")
    acts: dict[str, Callable[[], object]] = {
        "deleted": lambda: home.client.delete("/v1/tasks/first").raise_for_status(),
        "changed": lambda: rot(path),
        "broken": lambda: path.write_bytes(b"nothing of the kind"),
        "lost": path.unlink,
        "unreadable": lambda: unreadable(path),
    }
    _, second = meanwhile(home, acts[what])
    assert second.status_code == 200, second.text  # type: ignore[attr-defined]
    assert second.json()["digest"] == kit.file(1)[1].digest  # type: ignore[attr-defined]
    assert until(lambda: home.local.bank.stats().pinned == 0)


@pytest.mark.parametrize(("what", "status"), [("deleted", 404), ("changed", 422)])
def test_each_caller_hears_of_its_own_task_alone(home: House, what: str, status: int) -> None:
    paths = [path_of(home, task) for task in ("first", "second")]

    def act() -> None:
        for path in paths:
            path.unlink() if what == "deleted" else rot(path)

    for task, other, response in zip(("first", "second"), ("second", "first"), meanwhile(home, act), strict=True):
        document = problem(response, status)  # type: ignore[arg-type]
        assert document["task"] == task
        assert other not in response.text  # type: ignore[attr-defined]
        assert "version" in str(document["detail"])
    assert home.ask("other", photograph()).status_code == 200
