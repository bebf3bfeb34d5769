"""`adaptserve store`: what is damaged is told, what is moved is whole, and what is named is never removed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from service.store.locks import FolderLock
from service.store.mirror import Mirror
from service.store.objects import open_objects
from service.store.repository import Repository
from service.store.truth import Truth
from tests.s3 import Bucket, options, s3

STORE = "s3://bucket/kept"
DAYS = 86400.0


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with s3() as (bucket, url):
        for name, value in options(url).items():
            monkeypatch.setenv(name, value)
        yield bucket


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["store", *arguments])


def put(repository: Repository, task: str, content: bytes) -> None:
    staging = repository.open_staging(10**6)
    staging.write(content)
    repository.publish(task, staging, about='{"seen": 1}')


def filled(root: Path) -> Path:
    """A data folder with a task of two versions, one of one, and one that was deleted after three."""
    with closing(Repository(root)) as repository:
        repository.recover()
        for number in range(3):
            put(repository, "gone", bytes([number]))
        repository.delete_task("gone")
        put(repository, "two", b"1")
        put(repository, "two", b"2")
        repository.activate("two", 1)
        put(repository, "one", b"2")
    return root


def shared(tmp_path: Path) -> Mirror:
    truth = Truth(open_objects(STORE, timeout_s=5, retries=0))
    truth.identity()
    mirror = Mirror(tmp_path / "mirror", truth)
    mirror.heard(0)
    return mirror


def test_a_folder_goes_into_a_store_and_back_whole(bucket: Bucket, tmp_path: Path) -> None:
    data = filled(tmp_path / "data")
    done = run("copy", str(data), STORE)
    assert (done.exit_code, "3 of 3 tasks are in" in done.output) == (0, True), done.output
    assert run("check", STORE).exit_code == 0
    again = run("copy", str(data), STORE)
    assert again.exit_code == 0, "what is there is no fault"
    assert "two: " not in again.output
    back = tmp_path / "back"
    assert run("copy", STORE, str(back)).exit_code == 0
    assert run("check", str(back)).exit_code == 0
    with closing(Repository(data)) as before, closing(Repository(back)) as after:
        assert before.recover() == after.recover() == []
        assert [(t.versions, t.active, t.next, t.about) for t in before.tasks()] == [
            (t.versions, t.active, t.next, t.about) for t in after.tasks()
        ]
        put(after, "gone", b"9")
        assert after.version("gone").number == 4, "numbers go on"


def test_a_copy_overwrites_nothing_and_says_so(bucket: Bucket, tmp_path: Path) -> None:
    data = filled(tmp_path / "data")
    with closing(shared(tmp_path)) as mirror:
        put(mirror, "one", b"other")
    done = run("copy", str(data), STORE)
    assert done.exit_code == 1
    assert "task 'one' is not copied" in done.output
    assert "2 of 3 tasks" in done.output
    with closing(shared(tmp_path)) as mirror:
        mirror.look("one")
        assert mirror.version("one").size == 5


def test_a_damaged_file_is_told_and_not_copied(bucket: Bucket, tmp_path: Path) -> None:
    data = filled(tmp_path / "data")
    (data / "tasks/two/versions/2.safetensors").write_bytes(b"x")
    (data / "tasks/one/versions/1.safetensors").unlink()
    done = run("check", str(data))
    assert done.exit_code == 1
    assert "3 files checked, 2 wrong" in done.output
    assert "version 2 of 'two': its file has other bytes" in done.output
    assert "version 1 of 'one': its file is not there" in done.output
    done = run("copy", str(data), STORE)
    assert (done.exit_code, "1 of 3 tasks" in done.output) == (1, True)
    assert bucket.keys("kept/tasks") == ["kept/tasks/gone.json"]


def test_check_reads_every_file_of_a_shared_store(bucket: Bucket, tmp_path: Path) -> None:
    run("copy", str(filled(tmp_path / "data")), STORE)
    first, second = bucket.keys("kept/blobs")
    bucket.put(first, b"rotten")
    del bucket.objects[second]
    bucket.put("kept/tasks/odd.json", b"{")
    done = run("check", STORE)
    assert done.exit_code == 1
    assert "3 files checked, 3 wrong" in done.output
    assert "'odd' cannot be read" in done.output


def test_gc_removes_what_nothing_names_and_is_older_than_a_day(bucket: Bucket, tmp_path: Path) -> None:
    with closing(shared(tmp_path)) as mirror:
        for number in range(4):
            put(mirror, "t", bytes([number]))
        for number in (1, 2):
            mirror.delete_version("t", number)
        old, young, *named = (f"kept/blobs/{v}" for v in _digests(4))
        for key in (old, *named):
            bucket.age(key, 2 * DAYS)
        bucket.put("kept/probe/left", b"1", age_s=2 * DAYS)
        before = bucket.keys()
        assert "2 objects would be removed" in run("gc", STORE, "--dry-run").output
        assert bucket.keys() == before
        assert "2 objects removed" in run("gc", STORE).output
        assert set(before) - set(bucket.keys()) == {old, "kept/probe/left"}
        put(mirror, "t", bytes([0]))  # the same bytes as those that were removed
        assert {old, young} <= set(bucket.keys())


def _digests(count: int) -> list[str]:
    return [hashlib.sha256(bytes([number])).hexdigest() for number in range(count)]


def test_gc_removes_nothing_while_a_manifest_cannot_be_read(bucket: Bucket, tmp_path: Path) -> None:
    run("copy", str(filled(tmp_path / "data")), STORE)
    for key in bucket.keys("kept/blobs"):
        bucket.age(key, 2 * DAYS)
    bucket.put("kept/tasks/two.json", b"{")
    before = bucket.keys()
    done = run("gc", STORE)
    assert (done.exit_code, "cannot be read" in done.output) == (1, True)
    assert bucket.keys() == before


def test_gc_keeps_the_end_of_the_log(bucket: Bucket, tmp_path: Path) -> None:
    Truth(open_objects(STORE, timeout_s=5, retries=0)).identity()
    for number in range(1, 1101):
        bucket.put(f"kept/log/{number:016}", b"t", age_s=2 * DAYS)
    assert "100 objects removed" in run("gc", STORE).output
    assert bucket.keys("kept/log")[0].endswith("0101")
    assert Truth(open_objects(STORE, timeout_s=5, retries=0)).last() == 1100


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("check", "ftp://x"), 1, "no store that is known"),
        (("check", STORE), 1, "no store of adaptserve"),
        (("check", "nowhere"), 1, "no data folder"),
        (("gc", STORE), 1, "no store of adaptserve"),
        (("gc", "somewhere"), 2, "tidied by its server"),
        (("copy", "a", "a"), 2, "the same store"),
        (("copy", "nowhere", STORE), 1, "no data folder"),
    ],
)
def test_what_cannot_be_done_is_one_line(bucket: Bucket, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = run(*arguments)
    assert (done.exit_code, said in done.output) == (code, True), done.output


def test_a_folder_in_use_gets_no_copy(bucket: Bucket, tmp_path: Path) -> None:
    run("copy", str(filled(tmp_path / "data")), STORE)
    with FolderLock(tmp_path / "used"):
        done = run("copy", STORE, str(tmp_path / "used"))
    assert (done.exit_code, "another server owns" in done.output) == (1, True)
