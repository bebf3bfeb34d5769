"""What readers of a repository see while others write and delete, and when the files of a deleted task go."""

from __future__ import annotations

import itertools
import os
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

from service.errors import UnknownTask, UnknownVersion
from service.store.repository import Repository
from tests.repositories import put, reopened, repository

__all__ = ["repository"]


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
