"""A disk that fails at any one system call, or from there on: memory and disk agree, and nothing committed is lost."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import AdaptError
from service.errors import Conflict, StorageFailed, StorageFull, StorageReadOnly, UnknownTask, UnknownVersion
from service.store import recovery, staging
from service.store.repository import Repository
from tests.replaying import check_history

STORAGE = (StorageFailed, StorageFull, StorageReadOnly)
CALLS = ("mkdir", "chmod", "replace", "unlink", "rmdir", "fsync", "open")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS)
MODES = ("before", "after", "from then on")
"""The call fails without effect, once; it fails although it took effect; it and every later one fail."""


@dataclass
class Disk:
    """Counts the calls that change the disk, and fails the one with the number ``at``."""

    at: int
    code: int
    mode: str
    calls: list[str] = field(default_factory=list)

    def call(self, name: str, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if name == "open" and not args[1] & os.O_CREAT:  # reading
            return inner(*args, **kwargs)
        self.calls.append(name)
        number = len(self.calls)
        fails = number == self.at or (number > self.at and self.mode == "from then on")
        if fails and self.mode == "after" and name not in ("open", "fsync"):
            inner(*args, **kwargs)
        if fails:
            raise OSError(self.code, os.strerror(self.code))
        return inner(*args, **kwargs)

    @property
    def failed(self) -> bool:
        return len(self.calls) >= self.at


@contextmanager
def failing(at: int, code: int, mode: str) -> Iterator[Disk]:
    disk = Disk(at, code, mode)

    class File(io.FileIO):
        def write(self, data: Any) -> int:
            written: int = disk.call("write", super().write, data)
            return written

    def fdopen(handle: int, how: str) -> io.BufferedWriter:
        return io.BufferedWriter(File(handle, how))

    inner_write = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        written: int = disk.call("write", inner_write, path, data)
        return written

    def wrapped(name: str) -> Callable[..., Any]:
        inner = getattr(os, name)
        return lambda *args, **kwargs: disk.call(name, inner, *args, **kwargs)

    with ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(patch.object(os, name, wrapped(name)))
        stack.enter_context(patch.object(os, "fdopen", fdopen))
        stack.enter_context(patch.object(Path, "write_bytes", write_bytes))
        yield disk


def put(repository: Repository, task: str, content: bytes, activate: bool = True) -> None:
    staged = repository.open_staging(1000)
    try:
        staged.write(content)
        repository.publish(task, staged, activate=activate)
    finally:
        with suppress(AdaptError):
            staged.discard()


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Thousands of changes: none is synced for real, and the reserve is small."""
    with patch.object(os, "fsync", lambda handle: None), patch.object(staging, "RESERVE_BYTES", 64):
        yield


def settle(repository: Repository) -> None:
    """Wait until the files of a deleted task are gone, or could not be removed."""
    if repository._removal is not None:
        repository._removal.result()


Change = Callable[[Repository], object]
CHANGES: dict[str, Change] = {
    "a new task": lambda r: put(r, "cats", b"one"),
    "a task that was deleted": lambda r: put(r, "gone", b"again"),
    "a new version": lambda r: put(r, "dogs", b"three"),
    "a staged version": lambda r: put(r, "dogs", b"three", activate=False),
    "the same bytes": lambda r: put(r, "dogs", b"two"),
    "the same bytes as an older version": lambda r: put(r, "dogs", b"one"),
    "activate": lambda r: r.activate("dogs", 1),
    "delete a version": lambda r: r.delete_version("dogs", 1),
    "delete a task": lambda r: r.delete_task("dogs"),
}


def filled(root: Path) -> Repository:
    repository = Repository(root)
    assert repository.recover() == []
    put(repository, "dogs", b"one")
    put(repository, "dogs", b"two")
    put(repository, "gone", b"one")
    repository.delete_task("gone")
    settle(repository)
    return repository


def state(repository: Repository) -> dict[str, tuple[int | None, dict[int, str]]]:
    return {t.name: (t.active, {n: v.digest for n, v in t.versions.items()}) for t in repository.tasks()}


def check_whole(repository: Repository) -> None:
    """What it says it has is there, and its indexes are in step."""
    versions = [v for task in repository.tasks() for v in task.versions.values()]
    for version in versions:
        path = repository.path(version.task, version.number)
        assert path.stat().st_size == version.size
        assert path in repository.paths(version.digest, 1000)
    assert list(repository.names) == sorted({version.task for version in versions})
    assert set(repository._digests) == {v.digest for v in versions}
    assert sum(map(len, repository._digests.values())) == len(versions)


def restarted(repository: Repository, copy: Path) -> Repository:
    """Another server on the folder as it is now."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(repository.root, copy)
    again = Repository(copy)
    again.recover()
    return again


def check_restart(repository: Repository, copy: Path) -> None:
    again = restarted(repository, copy)
    assert state(again) == state(repository)
    check_whole(again)
    check_history(again.past, again._tasks)
    again.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CHANGES)
def test_a_failure_at_any_call_leaves_the_old_state_or_the_new_one(tmp_path: Path, name: str, mode: str) -> None:
    change = CHANGES[name]
    with closing(filled(tmp_path / "fine")) as fine, failing(1 << 30, 0, "before"):
        before = state(fine)
        change(fine)
        after = state(fine)
    ends = set()
    for code in (errno.EIO, errno.ENOSPC):
        for at in range(1, 100):
            folder = tmp_path / f"{code}-{at}"
            with closing(filled(folder)) as repository:
                error: AdaptError | None = None
                with failing(at, code, mode) as disk:
                    try:
                        change(repository)
                    except STORAGE as raised:
                        error = raised
                    settle(repository)
                found = state(repository)
                if error is None:
                    assert found == after
                elif error.facts.get("changed"):
                    assert found == after
                    assert "was made" in error.message
                else:
                    assert found == before
                check_whole(repository)
                check_restart(repository, tmp_path / "copy")
                ends.add((error is not None, found == after))
                # The disk is well again: what was asked for is done when it is asked for once more.
                with suppress(UnknownTask, UnknownVersion, Conflict):
                    change(repository)
                assert state(repository) == after or (error is None and name.startswith("delete"))
                assert not repository._unconfirmed
                check_restart(repository, tmp_path / "copy")
            shutil.rmtree(folder)
            if not disk.failed:
                break
        else:
            pytest.fail("there was no end of calls")
    if name != "the same bytes":
        assert {(True, False), (False, True)} <= ends  # some failures came before the commit


def test_a_folder_sync_that_fails_after_the_rename_takes_nothing_back(tmp_path: Path) -> None:
    with closing(filled(tmp_path / "data")) as repository:
        with (
            patch("service.store.files.sync_folder", side_effect=[None, OSError(errno.EIO, "Input/output error")]),
            pytest.raises(StorageFailed, match="may not outlast a power cut: ask for it again") as raised,
        ):
            put(repository, "dogs", b"three")
        assert raised.value.facts == {"changed": True}
        assert repository.version("dogs").number == 3
        assert repository.path("dogs", 3).read_bytes() == b"three"
        check_restart(repository, tmp_path / "copy")
        synced: list[Path] = []
        with patch("service.store.files.sync_folder", side_effect=synced.append):
            put(repository, "dogs", b"three")
        assert synced == [repository.root / "tasks/dogs"]  # the same bytes again: now it is sure
        with patch("service.store.files.sync_folder", side_effect=synced.append):
            put(repository, "dogs", b"three")
        assert len(synced) == 1


def test_a_deletion_that_was_not_confirmed_is_written_again_when_asked_again(tmp_path: Path) -> None:
    with closing(filled(tmp_path / "data")) as repository:
        with patch("service.store.files.sync_folder", side_effect=OSError(errno.EIO, "Input/output error")):
            with pytest.raises(StorageFailed, match="was made"):
                repository.delete_version("dogs", 1)
            assert repository.path("dogs", 1).exists()  # a power cut may bring the old manifest back
            with pytest.raises(StorageFailed):
                repository.delete_version("dogs", 1)
        synced: list[Path] = []
        with pytest.raises(UnknownVersion), patch("service.store.files.sync_folder", side_effect=synced.append):
            repository.delete_version("dogs", 1)
        assert synced == [repository.root / "tasks/dogs"]


def test_a_manifest_that_cannot_be_read_back_counts_as_written(tmp_path: Path) -> None:
    """A rename that failed, or did not: who cannot tell must not remove what it may name."""
    broken = OSError(errno.EIO, "Input/output error")
    inner = Path.replace

    def replace(path: Path, to: Path) -> Path:
        if to.name == "manifest.json":
            inner(path, to)
            raise broken
        return inner(path, to)

    with closing(filled(tmp_path / "data")) as repository:
        with (
            patch.object(Path, "replace", replace),
            patch.object(Path, "read_bytes", side_effect=broken),
            pytest.raises(StorageFailed, match="was made"),
        ):
            put(repository, "dogs", b"three")
        assert repository.version("dogs").number == 3
        check_restart(repository, tmp_path / "copy")


def test_an_interrupt_after_the_commit_takes_nothing_back(tmp_path: Path) -> None:
    with closing(filled(tmp_path / "data")) as repository:
        with (
            pytest.raises(KeyboardInterrupt),
            patch("service.store.files.sync_folder", side_effect=[None, KeyboardInterrupt]),
        ):
            put(repository, "dogs", b"three")
        again = restarted(repository, tmp_path / "copy")
        assert again.version("dogs").number == 3
        check_whole(again)
        again.close()


def test_a_task_that_could_not_be_read_at_the_start_is_not_written_over(tmp_path: Path) -> None:
    filled(tmp_path / "data").close()
    inner = recovery._manifest

    def manifest(folder: str) -> bytes:
        if folder.endswith("/dogs"):
            raise OSError(errno.EIO, "Input/output error")
        return inner(folder)

    for start in (Repository.recover, Repository.load):
        with closing(Repository(tmp_path / "data")) as repository:
            with patch.object(recovery, "_manifest", manifest):
                (said,) = start(repository)
                assert "task 'dogs' is not served" in said
                assert "Input/output error" in said
                with pytest.raises(UnknownTask):
                    repository.task("dogs")
                with pytest.raises(StorageFailed, match="cannot be changed"):
                    put(repository, "dogs", b"other")
                put(repository, "cats", b"one")
            assert repository.path("dogs", 1).read_bytes() == b"one"
            repository.activate("dogs", 1)  # the disk is well again
            repository.activate("dogs", 2)
            assert repository.recover() == []
            assert repository.version("dogs").number == 2


NAMES, CONTENTS = st.sampled_from("ab"), st.sampled_from([b"1", b"2", b"3"])
STEPS = st.one_of(
    st.tuples(st.just("put"), NAMES, CONTENTS, st.booleans()),
    st.tuples(st.just("activate"), NAMES, st.integers(1, 4)),
    st.tuples(st.just("delete version"), NAMES, st.integers(1, 4)),
    st.tuples(st.just("delete task"), NAMES),
)
FAULTS = st.tuples(st.integers(1, 14), st.sampled_from(ERRORS), st.sampled_from(MODES))


def run(repository: Repository, step: tuple[Any, ...]) -> None:
    match step:
        case ("put", name, content, activate):
            put(repository, name, content, activate)
        case ("activate", name, number):
            repository.activate(name, number)
        case ("delete version", name, number):
            repository.delete_version(name, number)
        case ("delete task", name):
            repository.delete_task(name)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(STEPS, st.none() | FAULTS), max_size=12))
def test_any_history_of_changes_and_failures_can_be_restarted(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[tuple[Any, ...], tuple[int, int, str] | None]]
) -> None:
    folder = tmp_path_factory.mktemp("history")
    used: dict[str, int] = {}
    with closing(Repository(folder / "data")) as repository:
        for step, fault in history:
            before = state(repository)
            with failing(*(fault or (1 << 30, 0, "before"))):
                try:
                    run(repository, step)
                    settle(repository)
                except (UnknownTask, UnknownVersion, Conflict):
                    assert state(repository) == before
                except STORAGE as raised:
                    changed = raised.facts.get("changed")
                    assert fault is not None and (changed or state(repository) == before)  # noqa: PT018
            for name, (active, versions) in state(repository).items():
                fresh = [n for n in versions if n not in before.get(name, (None, {}))[1]]
                assert all(n > used.get(name, 0) for n in fresh)  # numbers only grow
                used[name] = max([used.get(name, 0), *fresh])
                assert active is not None or before.get(name, (None,))[0] is None  # and no active one is lost
            check_whole(repository)
            check_restart(repository, folder / "copy")
    shutil.rmtree(folder)
