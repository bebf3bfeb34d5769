"""Versions on disk: whole or not there, also after kill -9; the folder is the truth."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest

from adapters.errors import AdapterTooLarge, NoRoom
from service.errors import (
    BadTaskName,
    Conflict,
    StorageFull,
    StorageReadOnly,
    UnknownTask,
    UnknownVersion,
)
from service.store.locks import FolderLock
from service.store.repository import Repository, VersionInfo


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    made = Repository(tmp_path / "data", max_tasks=3, max_versions=4)
    assert made.recover() == []
    yield made
    made.close()


def put(repository: Repository, task: str, content: bytes, activate: bool = True) -> tuple[VersionInfo, bool]:
    staging = repository.open_staging(1000)
    try:
        staging.write(content)
        return repository.publish(task, staging, activate=activate)
    finally:
        staging.discard()


def reopened(repository: Repository) -> Repository:
    repository.close()
    again = Repository(repository.root)
    again.recover()
    return again


def test_numbers_grow_and_the_newest_is_active(repository: Repository) -> None:
    first, created = put(repository, "dogs", b"one")
    second, _ = put(repository, "dogs", b"two")
    assert created
    assert (first.number, second.number) == (1, 2)
    assert repository.version("dogs") == second
    assert repository.path("dogs", 1).read_bytes() == b"one"
    assert list((repository.root / "staging").iterdir()) == []


def test_the_same_bytes_are_the_same_version(repository: Repository) -> None:
    first, _ = put(repository, "dogs", b"one")
    put(repository, "dogs", b"two")
    again, created = put(repository, "dogs", b"one")
    assert again == first
    assert not created
    assert repository.version("dogs") == first
    assert len(repository.task("dogs").versions) == 2


def test_staged_versions_wait_for_activation_also_over_a_restart(repository: Repository) -> None:
    put(repository, "dogs", b"one", activate=False)
    with pytest.raises(UnknownVersion, match="no active version"):
        repository.version("dogs")
    again = reopened(repository)
    with pytest.raises(UnknownVersion, match="no active version"):
        again.version("dogs")
    again.activate("dogs", 1)
    assert again.version("dogs").number == 1
    again.close()


def test_roll_back_and_forward(repository: Repository) -> None:
    put(repository, "dogs", b"one")
    put(repository, "dogs", b"two")
    repository.activate("dogs", 1)
    again = reopened(repository)
    assert again.version("dogs").number == 1
    again.close()


def test_a_task_is_deactivated_and_keeps_its_versions(repository: Repository) -> None:
    for content in (b"one", b"two"):
        put(repository, "dogs", content)
    repository.deactivate("dogs")
    repository.deactivate("dogs")  # it is so already
    again = reopened(repository)
    with pytest.raises(UnknownVersion, match="no active version"):
        again.version("dogs")
    assert (again.version("dogs", 1).number, again.task("dogs").shown.number) == (1, 2)
    with pytest.raises(UnknownTask):
        again.deactivate("cats")
    assert put(again, "dogs", b"one")[1] is False
    assert again.version("dogs").number == 1
    again.close()


def test_deleting(repository: Repository) -> None:
    put(repository, "dogs", b"one")
    put(repository, "dogs", b"two")
    with pytest.raises(Conflict, match="version 2 of 'dogs' is active"):
        repository.delete_version("dogs", 2)
    repository.delete_version("dogs", 1)
    assert not repository.path("dogs", 1).exists()
    with pytest.raises(UnknownVersion, match="no version 1; it has 2"):
        repository.version("dogs", 1)
    repository.delete_task("dogs")
    with pytest.raises(UnknownTask):
        repository.task("dogs")
    assert repository.tasks() == []
    assert put(repository, "dogs", b"three")[0].number == 3


def test_the_folder_is_the_truth(repository: Repository, tmp_path: Path) -> None:
    put(repository, "dogs", b"one")
    put(repository, "dogs", b"two")
    put(repository, "cats", b"three")
    shutil.copytree(repository.root, tmp_path / "copy")
    copy = Repository(tmp_path / "copy")
    assert copy.recover() == []
    assert copy.tasks() == repository.tasks()
    assert copy.path("cats", 1).read_bytes() == b"three"
    copy.close()


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", "a" * 65, ".hidden", "a\x00b", ".."])
def test_names_never_become_paths(repository: Repository, name: str) -> None:
    with pytest.raises(BadTaskName):
        put(repository, name, b"x")
    with pytest.raises(BadTaskName):
        repository.path(name, 1)
    with pytest.raises(UnknownTask):
        repository.task(name)


def test_bounds(repository: Repository) -> None:
    staging = repository.open_staging(3)
    with pytest.raises(AdapterTooLarge, match="the limit is 3"):
        staging.write(b"four")
    staging.discard()
    for task in "abc":
        put(repository, task, b"x")
    with pytest.raises(NoRoom, match="max_tasks"):
        put(repository, "d", b"x")
    for n in range(3):
        put(repository, "a", b"y%d" % n)
    with pytest.raises(NoRoom, match="max_versions_per_task"):
        put(repository, "a", b"z")


def test_one_server_per_folder(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "data"):
        for _ in range(2):
            with pytest.raises(Conflict, match="another server owns"):
                FolderLock(tmp_path / "data")
    FolderLock(tmp_path / "data").close()


@pytest.mark.parametrize(("code", "error"), [(28, StorageFull), (30, StorageReadOnly), (122, StorageFull)])
def test_a_sick_disk_is_our_error_and_leaves_what_was(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]
) -> None:
    first, _ = put(repository, "dogs", b"one")

    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    for seam in ("os.fsync", "pathlib.Path.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(seam, fail)
            with pytest.raises(error):
                put(repository, "dogs", b"two")
        assert repository.version("dogs") == first
    again = reopened(repository)
    assert [v.digest for v in again.task("dogs").versions.values()] == [first.digest]
    assert put(again, "dogs", b"two")[0].number == 2
    again.close()


def test_recovery_sets_aside_what_no_manifest_names(repository: Repository) -> None:
    put(repository, "dogs", b"one")
    tasks = repository.root / "tasks"
    (tasks / "dogs/versions/7.safetensors").write_bytes(b"half")
    (tasks / "dogs/versions/x.tmp").write_bytes(b"half")
    (tasks / "never").mkdir()
    (tasks / "Bad Name").mkdir()
    (tasks / "broken").mkdir()
    (tasks / "broken/manifest.json").write_text('{"next": 1')
    (repository.root / "staging/left.part").write_bytes(b"half")
    repository.close()
    again = Repository(repository.root)
    said = again.recover()
    assert len(said) == 6
    assert [t.name for t in again.tasks()] == ["dogs"]
    assert list(again.task("dogs").versions) == [1]
    assert len(list((again.root / "quarantine").iterdir())) == 5
    assert list((again.root / "staging").iterdir()) == []
    again.path("dogs", 1).unlink()
    assert "missing or has another size" in (again.recover())[0]
    with pytest.raises(UnknownTask):
        again.task("dogs")
    again.close()


WRITER = """
import sys
from pathlib import Path
from service.store.locks import FolderLock
from service.store.repository import Repository
repository = Repository(Path(sys.argv[1]))
repository.recover()
start = int(sys.argv[2])
for n in range(start, start + 10_000):
    staging = repository.open_staging(10_000)
    staging.write(b"%d " % n * 1000)
    info, _ = repository.publish(f"task-{n % 3}", staging)
    print(info.task, info.number, info.digest, flush=True)
"""


def test_kill_9_loses_nothing_acknowledged_and_shows_nothing_else(tmp_path: Path) -> None:
    chance = random.Random(0)
    acknowledged: dict[tuple[str, int], str] = {}
    in_doubt = 0
    for turn in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "data"), str(turn * 10_000)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for _ in range(chance.randint(1, 12)):
            task, number, digest = process.stdout.readline().split()
            acknowledged[task, int(number)] = digest
        process.send_signal(signal.SIGKILL)
        for line in process.stdout.read().splitlines():
            task, number, digest = line.split()
            acknowledged[task, int(number)] = digest
        process.wait()
        process.stdout.close()
        in_doubt += 1
    repository = Repository(tmp_path / "data")
    repository.recover()
    found = {(t.name, n): v.digest for t in repository.tasks() for n, v in t.versions.items()}
    assert acknowledged.items() <= found.items()
    assert len(found) - len(acknowledged) <= in_doubt  # committed, and killed before it could say so
    for (task, number), digest in found.items():
        assert hashlib.sha256(repository.path(task, number).read_bytes()).hexdigest() == digest
    assert all(json.loads(p.read_text()) for p in (tmp_path / "data/tasks").glob("*/manifest.json"))
    repository.close()


def test_reading_never_fails_while_others_write(repository: Repository) -> None:
    """For two seconds: tasks come, change and go on one thread while the others list, look up and page."""
    repository.close()
    repository = Repository(repository.root)  # with room for many
    put(repository, "kept", b"kept")
    kept = repository.version("kept").digest
    stop, failures = threading.Event(), []

    def write(name: str) -> None:
        for turn in itertools.count():
            if stop.is_set():
                return
            put(repository, name, b"%d" % turn)
            put(repository, f"{name}-{turn % 7}", b"kept")
            repository.learn(name, repository.version(name).digest, "{}")
            if turn % 3 == 2:
                repository.delete_task(name)

    def read() -> None:
        while not stop.is_set():
            names = repository.names
            assert list(names) == sorted(names)
            assert "kept" in names
            assert {task.name for task in repository.tasks()} >= {"kept"}
            assert all(task.versions and task.shown for task in repository.tasks())
            assert repository.path("kept", 1) in repository.paths(kept, 1000)
            assert repository.version("kept").digest == kept
            for name in names:
                with suppress(UnknownTask, UnknownVersion):
                    assert repository.holds(repository.version(name).digest) or name != "kept"

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
            stop.set()

    writers = [partial(write, name) for name in ("a", "b")]
    threads = [threading.Thread(target=guarded, args=(work,)) for work in (*writers, read, read)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads meet in the middle of everything
    try:
        with patch.object(os, "fsync", lambda handle: None):
            for thread in threads:
                thread.start()
            stop.wait(2)
            stop.set()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    again = reopened(repository)
    assert [t.versions for t in again.tasks()] == [t.versions for t in repository.tasks()]
    again.close()


def test_a_reader_keeps_what_it_took(repository: Repository) -> None:
    put(repository, "dogs", b"one")
    names, task, versions = repository.names, repository.task("dogs"), repository.task("dogs").versions
    put(repository, "cats", b"one")
    put(repository, "dogs", b"two")
    repository.delete_task("dogs")
    assert names == ("dogs",)
    assert (list(versions), task.active) == ([1], 1)
    assert repository.names == ("cats",)
    with pytest.raises(TypeError):
        versions[3] = versions[1]  # type: ignore[index]


def test_the_files_of_a_digest(repository: Repository) -> None:
    for name in ("dogs", "cats"):
        put(repository, name, b"same")
    digest = repository.version("dogs").digest
    assert set(repository.paths(digest, 9)) == {repository.path("dogs", 1), repository.path("cats", 1)}
    repository.delete_task("dogs")
    assert repository.paths(digest, 9) == [repository.path("cats", 1)]
    assert repository.holds(digest)
    put(repository, "cats", b"other")
    repository.delete_version("cats", 1)
    assert repository.paths(digest, 9) == []
    assert not repository.holds(digest)


def test_a_task_of_many_versions_is_deleted_in_one_commit_and_may_come_back_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository(tmp_path / "data")
    for number in range(30):
        put(repository, "dogs", b"%d" % number)
    staging = repository.open_staging(1000)
    staging.write(b"back")
    commits: list[Path] = []
    go, replace, iterdir = threading.Event(), Path.replace, Path.iterdir

    def note(path: Path, to: Path) -> Path:
        commits.extend([to] if to.name == "manifest.json" else [])
        return replace(path, to)

    def wait(folder: Path) -> Iterator[Path]:
        assert not folder.name.endswith(".deleted") or go.wait(20)
        return iterdir(folder)

    monkeypatch.setattr(Path, "replace", note)
    monkeypatch.setattr(Path, "iterdir", wait)
    repository.delete_task("dogs")  # does not wait for its files
    assert commits == [repository.root / "tasks/dogs/manifest.json"]
    assert repository.publish("dogs", staging)[0].number == 31  # they are not in the way, and no lock is held
    threading.Timer(0.05, go.set).start()
    repository.open_staging(1000).discard()  # an upload finds the room that they had
    assert list((repository.root / "staging").iterdir()) == []
    again = reopened(repository)
    assert again.path("dogs", 31).read_bytes() == b"back"
    again.close()


def test_where_files_cannot_be_moved_the_task_may_still_come_back(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(repository, "dogs", b"one")
    staging = repository.open_staging(1000)
    staging.write(b"two")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "mkdtemp", fail)
        patched.setattr("service.store.files.shutil.rmtree", lambda *_, **__: None)  # it cannot be removed either
        repository.delete_task("dogs")
    repository.publish("dogs", staging)
    repository.open_staging(1000).discard()  # whatever was to be removed is
    assert repository.path("dogs", 2).read_bytes() == b"two"


def test_what_a_stop_leaves_of_a_deleted_task_the_next_start_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository(tmp_path / "data")
    for number in range(3):
        put(repository, "dogs", b"%d" % number)
    with monkeypatch.context() as patched:
        patched.setattr(Repository, "_remove", lambda *_: None)
        repository.delete_task("dogs")
    repository.close()
    again = Repository(tmp_path / "data")
    assert [sentence.split(":")[0] for sentence in again.recover()] == ["removed the files of a deleted task"]
    assert list((again.root / "staging").iterdir()) == []
    assert list((again.root / "quarantine").iterdir()) == []
    again.close()


def test_what_lists_show_is_kept_and_belongs_to_the_version_shown(repository: Repository) -> None:
    for content, about in ((b"one", '{"n": 1}'), (b"two", '{"n": 2}')):
        staging = repository.open_staging(1000)
        staging.write(content)
        repository.publish("dogs", staging, about=about)
    assert repository.task("dogs").told == '{"n": 2}'
    repository.activate("dogs", 1)
    assert repository.task("dogs").told is None  # unknown, and not another version's
    repository.learn("dogs", repository.task("dogs").versions[2].digest, '{"n": 2}')
    assert repository.task("dogs").told is None
    repository.learn("dogs", repository.version("dogs").digest, '{"n": 1}')
    assert repository.task("dogs").told == '{"n": 1}'
    repository.delete_version("dogs", 2)  # writes the manifest
    again = reopened(repository)
    assert again.task("dogs").told == '{"n": 1}'
    again.delete_task("dogs")
    again.learn("dogs", "gone", "{}")
    again.close()


def test_files_of_a_digest_are_told_while_others_come_and_go(tmp_path: Path) -> None:
    """As a reader whose allocation lets a writer in: the iteration runs Python code in its midst."""
    repository = Repository(tmp_path)
    digest, stop = "d" * 64, threading.Event()
    shared: dict[tuple[str, int], None] = {("always", 1): None}

    class Yielding(tuple[str, int]):
        __slots__ = ()

        def __hash__(self) -> int:
            time.sleep(0)
            return super().__hash__()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            shared[Yielding(("other", number))] = None
            if number > 3:
                del shared[Yielding(("other", number - 3))]

    repository._digests[digest] = shared
    thread = threading.Thread(target=change)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(3000):
            found = repository.paths(digest, 4)
            assert repository.path("always", 1) in found
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
        repository.close()
