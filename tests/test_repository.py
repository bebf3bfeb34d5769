"""Versions on disk: whole or not there, also after kill -9; the folder is the truth."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.errors import AdapterTooLarge, NoRoom
from service.errors import BadTaskName, Conflict, StorageFull, StorageReadOnly, UnknownTask, UnknownVersion
from service.store.locks import FolderLock
from service.store.repository import Repository
from tests.repositories import put, reopened, repository

__all__ = ["repository"]


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
