"""Two repositories over one folder, as in two processes: each sees what the other did once it follows, not before."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from adapters.errors import NoRoom
from service.errors import Conflict, StorageFailed, StorageReadOnly, UnknownTask, UnknownVersion
from service.store import recovery
from service.store.files import TaskFiles
from service.store.journal import RING, Journal
from service.store.repository import Repository
from service.store.staging import Reserve

EIO = OSError(errno.EIO, "Input/output error")


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Repository, Repository]]:
    journal = Journal(bytearray(Journal.SIZE))
    with (
        closing(Repository(tmp_path, journal, max_tasks=3, max_versions=3, owner="a")) as a,
        closing(Repository(tmp_path, journal, max_tasks=3, max_versions=3, owner="b")) as b,
    ):
        assert a.recover() == []
        assert b.load() == []
        yield a, b


def put(repository: Repository, task: str, content: bytes, about: str | None = None, *, activate: bool = True) -> int:
    staging = repository.open_staging(1000)
    try:
        staging.write(content)
        return repository.publish(task, staging, about=about, activate=activate)[0].number
    finally:
        staging.discard()


def test_each_sees_what_the_other_did_once_it_follows(both: tuple[Repository, Repository]) -> None:
    a, b = both
    changes: list[Callable[[], object]] = [
        lambda: put(a, "dogs", b"one"),
        lambda: put(a, "dogs", b"two"),
        lambda: put(a, "cats", b"one"),
        lambda: a.activate("dogs", 1),
        lambda: a.delete_version("dogs", 2),
        lambda: a.delete_task("dogs"),
        lambda: put(a, "dogs", b"three"),
    ]
    for change in changes:
        before = b.tasks()
        change()
        assert (a.behind, b.behind, b.tasks()) == (False, True, before)
        b.follow()
        assert not b.behind
        assert (b.tasks(), b.names, b._digests) == (a.tasks(), a.names, a._digests)
    assert b.version("dogs").number == 3


def test_a_writer_knows_first_what_others_wrote(both: tuple[Repository, Repository]) -> None:
    a, b = both
    assert [put(each, "dogs", content) for each, content in ((a, b"1"), (b, b"2"), (a, b"3"))] == [1, 2, 3]
    with pytest.raises(NoRoom, match="max_versions_per_task"):
        put(b, "dogs", b"4")
    with pytest.raises(Conflict):
        b.delete_version("dogs", 3)
    put(a, "cats", b"1")
    put(b, "cows", b"1")
    with pytest.raises(NoRoom, match="max_tasks"):
        put(a, "pigs", b"1")
    b.delete_task("dogs")
    with pytest.raises(UnknownTask):
        a.activate("dogs", 1)
    assert put(a, "dogs", b"1") == 4
    assert put(b, "dogs", b"1") == 4  # the same bytes are the version they are


def test_what_was_learned_outlives_a_change_by_another(both: tuple[Repository, Repository]) -> None:
    a, b = both
    put(a, "dogs", b"one")
    b.follow()
    b.learn("dogs", b.version("dogs").digest, '{"n": 1}')
    put(a, "dogs", b"two", activate=False)
    b.follow()
    assert b.task("dogs").told == '{"n": 1}'
    put(a, "dogs", b"three", '{"n": 3}')
    b.follow()
    assert b.task("dogs").told == '{"n": 3}'


@pytest.mark.parametrize("changes", [RING, RING + 1])
def test_one_that_is_far_behind_reads_everything(both: tuple[Repository, Repository], changes: int) -> None:
    a, b = both
    put(a, "dogs", b"one")
    put(a, "cats", b"one")
    b.follow()
    a.delete_task("cats")
    put(a, "cows", b"one")
    for _ in range(changes):
        b._journal.append("dogs")
    a.follow()
    b.follow()
    assert not b.behind
    assert b.names == a.names == ("cows", "dogs")
    assert b.had("cats")
    assert b._digests == a._digests
    with pytest.raises(UnknownTask):
        b.task("cats")


def test_what_the_disk_did_not_confirm_to_one_the_other_writes_again(both: tuple[Repository, Repository]) -> None:
    a, b = both
    put(a, "dogs", b"one")
    with patch("service.store.files.sync_folder", side_effect=[None, EIO]), pytest.raises(StorageFailed) as raised:
        put(a, "dogs", b"two")
    assert raised.value.facts == {"changed": True}
    b.follow()
    assert b.version("dogs").number == 2
    synced: list[Path] = []
    with patch("service.store.files.sync_folder", side_effect=synced.append):
        assert put(b, "dogs", b"two") == 2
    assert synced == [b.root / "tasks/dogs"]
    with closing(Repository(b.root, b._journal)) as later:
        later.load()
        with patch("service.store.files.sync_folder", side_effect=synced.append):
            assert put(later, "dogs", b"two") == 2  # it cannot know, so it makes sure
    assert len(synced) == 2


@pytest.mark.parametrize("broken", ["unreadable", "no manifest"])
def test_a_task_that_cannot_be_read_is_sealed_until_it_can(both: tuple[Repository, Repository], broken: str) -> None:
    a, b = both
    put(a, "dogs", b"one")
    put(a, "cats", b"one")
    b.follow()
    inner = recovery._manifest

    def manifest(folder: str) -> bytes:
        if not folder.endswith("/dogs"):
            return inner(folder)
        if broken == "unreadable":
            raise EIO
        return b"{"

    put(a, "dogs", b"two")
    with patch.object(recovery, "_manifest", manifest):
        b.follow()
        assert b.names == ("cats",)
        assert b.had("dogs")
        with pytest.raises(UnknownTask):
            b.version("dogs")
        with pytest.raises(StorageFailed, match="task 'dogs' cannot be changed"):
            put(b, "dogs", b"three")
        put(b, "cats", b"two")  # the others go on
    put(a, "cats", b"three")
    b.follow()  # whatever made it read again
    assert b.version("dogs").number == 2
    assert put(b, "dogs", b"three") == 3


def test_a_folder_that_cannot_be_listed_leaves_it_behind(both: tuple[Repository, Repository]) -> None:
    a, b = both
    put(a, "dogs", b"one")
    for _ in range(RING):
        a._journal.append("dogs")
    with patch.object(Path, "iterdir", side_effect=EIO), pytest.raises(StorageFailed):
        b.follow()
    assert b.behind
    b.follow()
    assert b.names == ("dogs",)


def test_a_version_that_is_deleted_while_its_manifest_is_read_was_never_there(
    both: tuple[Repository, Repository],
) -> None:
    """The active one of the old manifest, and its file gone: what is read is the new manifest, not half of each."""
    a, b = both
    put(a, "dogs", b"one")
    put(a, "dogs", b"two", activate=False)
    inner = recovery._manifest
    reads: list[str] = []

    def manifest(folder: str) -> bytes:
        raw = inner(folder)
        reads.append(folder)
        if len(reads) == 1:
            with patch.object(recovery, "_manifest", inner):
                a.activate("dogs", 2)
                a.delete_version("dogs", 1)
        return raw

    with patch.object(recovery, "_manifest", manifest):
        assert b.load() == []
    assert len(reads) == 2
    assert b.version("dogs").number == 2
    b.follow()
    assert b.tasks() == a.tasks()


@pytest.mark.parametrize("read", [Repository.follow, Repository.load])
def test_what_changes_while_it_reads_is_there_to_follow(
    both: tuple[Repository, Repository], read: Callable[[Repository], object]
) -> None:
    a, b = both
    put(a, "cats", b"one")
    put(a, "dogs", b"one")
    b.follow()
    put(a, "dogs", b"two")
    inner = recovery._manifest

    def manifest(folder: str) -> bytes:
        if folder.endswith("/dogs"):
            with patch.object(recovery, "_manifest", inner):
                put(a, "cats", b"two")
        return inner(folder)

    with patch.object(recovery, "_manifest", manifest):
        read(b)
    assert b.behind
    assert (b.version("cats").number, b.version("dogs").number) == (1, 2)
    b.follow()
    assert b.version("cats").number == 2


def test_a_start_moves_nothing(tmp_path: Path) -> None:
    with closing(Repository(tmp_path)) as repository:
        put(repository, "dogs", b"one")
        put(repository, "lost", b"one")
        repository.path("lost", 1).unlink()
    (tmp_path / "tasks/dogs/versions/2.safetensors").write_bytes(b"placed, and not yet named")
    (tmp_path / "tasks/new/versions").mkdir(parents=True)
    (tmp_path / "tasks/broken").mkdir()
    (tmp_path / "tasks/broken/manifest.json").write_text("{")
    (tmp_path / "tasks/Bad Name").mkdir()
    for name in ("x.part", "b.x.part", "a.x.part", "ab.x.part"):
        (tmp_path / "staging" / name).touch()
    (tmp_path / "staging/a.y.deleted/versions").mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    with closing(Repository(tmp_path, owner="a")) as repository:
        said = repository.load()
        assert sorted(sentence.split(":")[0] for sentence in said) == [
            "removed an upload that never ended",
            "removed the files of a deleted task",
            "task 'broken' is not served",
            "version 1 of 'lost' is missing or has another size; it is not served",
        ]
        assert repository.names == ("dogs",)
    gone = {path.relative_to(tmp_path).as_posix() for path in before - set(tmp_path.rglob("*"))}
    assert gone == {"staging/a.x.part", "staging/a.y.deleted", "staging/a.y.deleted/versions"}


@pytest.mark.parametrize("owner", ["a.b", "a/b"])
def test_an_owner_that_others_could_be_taken_for_is_refused(tmp_path: Path, owner: str) -> None:
    with pytest.raises(ValueError, match="a dot or a slash"):
        Repository(tmp_path, owner=owner)


STEPS = ((Reserve, "fill"), (Reserve, "spend"), *((TaskFiles, n) for n in ("place", "take_back", "write_manifest")))


def test_whatever_changes_the_folder_holds_its_lock(tmp_path: Path) -> None:
    seen: list[str] = []

    def guarded(kind: type, name: str) -> Callable[..., Any]:
        inner = getattr(kind, name)

        def step(*args: Any, **kwargs: Any) -> Any:
            with (tmp_path / "writing").open("r+") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seen.append(name)
            return inner(*args, **kwargs)

        return step

    with pytest.MonkeyPatch.context() as monkeypatch:
        for kind, name in STEPS:
            monkeypatch.setattr(kind, name, guarded(kind, name))
        with closing(Repository(tmp_path)) as repository:
            repository.recover()
            for content in (b"one", b"two", b"three"):
                put(repository, "dogs", content)
            with patch("service.store.files.replacing", side_effect=EIO), pytest.raises(StorageFailed):
                put(repository, "dogs", b"four")
            repository.activate("dogs", 1)
            repository.delete_version("dogs", 2)
            repository.delete_task("dogs")
            assert repository._removal is not None
            repository._removal.result()
            with suppress(UnknownVersion, UnknownTask):
                repository.delete_version("dogs", 1)
    assert set(seen) == {name for _, name in STEPS}
    with (tmp_path / "writing").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is free again


def test_a_folder_that_cannot_be_written_is_served(tmp_path: Path) -> None:
    with closing(Repository(tmp_path)) as repository:
        put(repository, "dogs", b"one")
    (tmp_path / "writing").unlink()  # as an older release left it
    inner = os.open

    def read_only(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & (os.O_CREAT | os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return inner(path, flags, *rest, **more)

    refused = OSError(errno.EROFS, os.strerror(errno.EROFS))
    for start in (Repository.recover, Repository.load):
        with (
            patch.object(os, "open", read_only),
            patch.object(Path, "touch", side_effect=refused),
            closing(Repository(tmp_path)) as repository,
        ):
            assert start(repository) == []
            repository.learn("dogs", repository.version("dogs").digest, "{}")
            assert repository.task("dogs").told == "{}"
            with pytest.raises(StorageReadOnly):
                repository.delete_task("dogs")
            assert repository.version("dogs").number == 1
