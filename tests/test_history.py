"""History: every change of a task has its event, whoever made it; and what was not made has none that is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from service.errors import BadRequest, StorageFailed, UnknownTask
from service.store import care, packs
from service.store.events import Actor, Cause, TaskEvent
from service.store.manifest import parse, render
from service.store.mirror import Mirror
from service.store.objects import open_objects
from service.store.packs import SharedHistory
from service.store.repository import Repository
from service.store.truth import Truth
from tests.replaying import check_history, replay, told
from tests.s3 import Bucket, options, s3

STORE, OTHER = "s3://bucket/kept", "s3://bucket/other"
OPS, NIGHTLY = Actor("ops", "http"), Actor("nightly", "teach")
DAYS = 86400.0
Open = Callable[[str], Repository]


@pytest.fixture(scope="module")
def server() -> Iterator[Bucket]:
    with s3() as (bucket, url), pytest.MonkeyPatch.context() as patch:
        for name, value in options(url).items():
            patch.setenv(name, value)
        yield bucket


@pytest.fixture
def bucket(server: Bucket) -> Bucket:
    server.objects.clear()
    return server


@pytest.fixture(params=["folder", "s3"])
def opened(request: pytest.FixtureRequest, bucket: Bucket, tmp_path: Path) -> Iterator[Open]:
    """A server's repository by the server's name; all are of one store."""
    with ExitStack() as stack:

        def open_one(name: str) -> Repository:
            if request.param == "folder":
                repository = Repository(tmp_path / "data", server=name, owner=name, history_file_bytes=1000)
                repository.recover()
                return stack.enter_context(closing(repository))
            return stack.enter_context(closing(shared(tmp_path / name, name)))

        yield open_one


def shared(folder: Path, name: str = "", url: str = STORE) -> Mirror:
    truth = Truth(open_objects(url, timeout_s=5, retries=0))
    truth.identity()
    mirror = Mirror(folder, truth, server=name)
    mirror.heard(0)
    for task, _ in truth.marks():
        mirror.look(task)
    return mirror


def put(repository: Repository, task: str, content: bytes, by: Actor = OPS, *, activate: bool = True) -> None:
    staged = repository.open_staging(1000)
    try:
        staged.write(content)
        repository.publish(task, staged, activate=activate, by=by)
    finally:
        staged.discard()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["store", *arguments])


def test_every_change_is_told_with_who_made_it(opened: Open) -> None:
    repository = opened("one")
    put(repository, "pets", b"a")
    put(repository, "pets", b"b", NIGHTLY, activate=False)
    put(repository, "pets", b"b", NIGHTLY)
    repository.activate("pets", 1, by=OPS)
    repository.activate("pets", 1, by=OPS)  # nothing is changed, and nothing told
    repository.deactivate("pets", by=OPS)
    repository.delete_version("pets", 2, by=Actor("ops", "cli"))
    repository.delete_task("pets", by=Actor(None, "page"))
    events = told(repository.past, "pets")
    assert [(e.id, e.what, e.version, e.by.key, e.by.origin, dict(e.detail)) for e in events] == [
        ("1", "published", 1, "ops", "http", {}),
        ("2", "staged", 2, "nightly", "teach", {}),
        ("3", "activated", 2, "nightly", "teach", {"before": 1}),
        ("4", "activated", 1, "ops", "http", {"before": 2}),
        ("5", "deactivated", None, "ops", "http", {"before": 1}),
        ("6", "version_deleted", 2, "ops", "cli", {}),
        ("7", "deleted", None, None, "page", {"versions": 1, "numbers": [1]}),
    ]
    assert {event.server for event in events} == {"one"}
    assert sorted(event.time for event in events) == [event.time for event in events]
    with pytest.raises(UnknownTask, match="never was"):
        repository.past.of("never", None, 5)
    with pytest.raises(BadRequest, match="id of an event"):
        repository.past.of("pets", "x1", 5)


def test_many_changes_of_many_tasks_come_in_pages_newest_first(opened: Open) -> None:
    repository = opened("one")
    for number in range(40):
        put(repository, f"task-{number % 3}", bytes([number]))
    repository.delete_task("task-1", by=OPS)
    put(repository, "task-1", b"again")
    check_history(repository.past, {name: repository.ever(name) for name in ("task-0", "task-1", "task-2")})
    page = repository.past.of_all(None, 4)
    assert [event.number for event in page.events] == [42, 41, 40, 39]
    assert page.next == "39"
    assert [event.number for event in repository.past.of_all("3", 4).events] == [2, 1]
    again = opened("two")
    again.activate("task-0", 1, by=NIGHTLY)
    assert [(e.what, e.server) for e in again.past.of("task-0", None, 2).events] == [
        ("activated", "two"), ("published", "one"),
    ]  # fmt: skip
    check_history(again.past, {name: again.ever(name) for name in ("task-0", "task-1", "task-2")})


def test_a_change_that_was_announced_and_not_made_is_not_told(tmp_path: Path, bucket: Bucket) -> None:
    with closing(Repository(tmp_path / "data")) as repository, pytest.MonkeyPatch.context() as patch:
        repository.recover()
        put(repository, "pets", b"a")
        patch.setattr(repository._files, "write_manifest", lambda task: (_ for _ in ()).throw(OSError(5, "broken")))
        with pytest.raises(StorageFailed):
            repository.deactivate("pets", by=OPS)
        patch.undo()
        put(repository, "pets", b"b")
        assert [(e.number, e.what) for e in told(repository.past, "pets")] == [(1, "published"), (3, "published")]
        check_history(repository.past, {"pets": repository.task("pets")})
    with closing(shared(tmp_path / "mirror")) as mirror:
        put(mirror, "pets", b"a")
        task = mirror.task("pets")
        line = Cause(OPS).event(task, replace(task, active=None)).line()
        mirror.truth.announce("pets", task.generation, line)  # and killed
        put(mirror, "pets", b"b")
        assert [(e.number, e.what) for e in told(mirror.past, "pets")] == [(1, "published"), (3, "published")]
        check_history(mirror.past, {"pets": mirror.task("pets")})


@pytest.mark.parametrize("cut", ["half", "whole", "a number"])
def test_a_line_that_was_cut_off_is_passed_over_and_its_number_not_given_again(tmp_path: Path, cut: str) -> None:
    with closing(Repository(tmp_path)) as repository:
        repository.recover()
        put(repository, "pets", b"a")
    (file,) = (tmp_path / "history").iterdir()
    line = replace(TaskEvent.parse(file.read_bytes()), number=2, what="deleted").line()
    with file.open("ab") as end:
        end.write({"half": line[:40], "whole": line[:-1], "a number": line[:8]}[cut])
    with closing(Repository(tmp_path)) as repository:
        repository.recover()
        put(repository, "pets", b"b")
        repository.activate("pets", 1)
        events = told(repository.past, "pets")
        assert [e.what for e in events] == ["published", "published", "activated"]
        check_history(repository.past, {"pets": repository.task("pets")})
    assert run("check", str(tmp_path)).exit_code == 0


def test_a_folder_from_before_there_was_a_history_goes_on_with_one(tmp_path: Path) -> None:
    with closing(Repository(tmp_path)) as repository:
        repository.recover()
        put(repository, "pets", b"a")
    for file in (tmp_path / "history").iterdir():
        file.unlink()
    manifest = tmp_path / "tasks/pets/manifest.json"
    manifest.write_bytes(render(replace(parse("pets", manifest.read_bytes()), log=())))
    with closing(Repository(tmp_path)) as repository:
        repository.recover()
        assert repository.past.of("pets", None, 5) == ([], None)
        repository.deactivate("pets", by=OPS)
        assert [e.what for e in told(repository.past, "pets")] == ["deactivated"]
    assert run("check", str(tmp_path)).exit_code == 0


def test_the_oldest_file_goes_when_all_are_too_large(tmp_path: Path) -> None:
    with closing(Repository(tmp_path, history_file_bytes=1000, max_history_bytes=4000)) as repository:
        repository.recover()
        for number in range(60):
            put(repository, "pets", bytes([number]))
        files = sorted((tmp_path / "history").iterdir())
        assert sum(file.stat().st_size for file in files) < 4000 + 2 * 1500
        assert 5 < len(told(repository.past, "pets")) < 30
        assert len(repository.past.of_all(None, 100).events) == len(told(repository.past, "pets"))
    assert run("check", str(tmp_path)).exit_code == 0


def test_history_costs_no_request_more(bucket: Bucket, tmp_path: Path) -> None:
    with closing(shared(tmp_path / "mirror")) as mirror:
        put(mirror, "pets", b"a")
        put(mirror, "pets", b"b")
        bucket.asked.clear()
        mirror.activate("pets", 1, by=OPS)
        assert dict(bucket.asked) == {f"PUT kept/log/{3:016}": 1, "PUT kept/tasks/pets.json": 1}


def test_a_disk_that_does_not_give_the_history_is_an_error_in_words(tmp_path: Path) -> None:
    with closing(Repository(tmp_path)) as repository:
        repository.recover()
        put(repository, "pets", b"a")
        (file,) = (tmp_path / "history").iterdir()
        file.unlink()
        file.mkdir()
        with pytest.raises(StorageFailed, match="disk failed"):
            repository.past.of("pets", None, 5)
        with pytest.raises(StorageFailed, match="disk failed"):
            repository.deactivate("pets", by=OPS)
        assert repository.version("pets").number == 1, "what cannot be told is not done"


def test_gc_packs_old_events_and_nothing_of_the_history_is_lost(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(care, "KEPT_LOG", 7)
    monkeypatch.setattr(packs, "PACKED", 10)
    with closing(shared(tmp_path / "mirror")) as mirror:
        for number in range(40):
            put(mirror, f"task-{number % 3}", bytes([number]))
            if number % 5 == 0:
                mirror.truth.announce("task-0", mirror.store_seen)  # and killed
        mirror.delete_task("task-2", by=NIGHTLY)
        tasks = {name: mirror.ever(name) for name in ("task-0", "task-1", "task-2")}
        before = {name: told(mirror.past, name) for name in tasks}
        for key in bucket.keys("kept/log"):
            bucket.age(key, 2 * DAYS)
        dry = run("gc", STORE, "--dry-run")
        assert ("42 objects would be removed" in dry.output, bucket.keys("kept/history")) == (True, [])
        assert run("gc", STORE).exit_code == 0
        assert len(bucket.keys("kept/log")) == 7
        assert len(bucket.keys("kept/history")) == 5
        assert {name: told(mirror.past, name) for name in tasks} == before
        check_history(mirror.past, tasks)
        assert run("check", STORE).exit_code == 0
        mirror.activate("task-1", 1, by=OPS)  # it goes on
        assert [e.what for e in told(mirror.past, "task-1")] == ["published"] * 13 + ["activated"]
        content = b"".join(bucket.objects[key].content for key in bucket.keys("kept/history"))
        numbers = [TaskEvent.parse(line).number for line in content.splitlines()]
        assert numbers == sorted(numbers)
        assert len(numbers) < 42, "what was announced and not made is not packed"


def test_a_copy_takes_the_history_along_through_three_stores(bucket: Bucket, tmp_path: Path) -> None:
    with closing(Repository(tmp_path / "data", server="one")) as repository:
        repository.recover()
        for number in range(20):
            put(repository, "pets", bytes([number]))
        put(repository, "gone", b"a", NIGHTLY)
        repository.delete_task("gone", by=OPS)
        before = told(repository.past, "pets")
    assert run("copy", str(tmp_path / "data"), STORE).exit_code == 0
    assert run("copy", STORE, str(tmp_path / "back")).exit_code == 0
    with closing(shared(tmp_path / "mirror")) as mirror, closing(Repository(tmp_path / "back")) as back:
        back.recover()
        for repository, copies in ((mirror, 1), (back, 2)):
            put(repository, "pets", b"new")
            events = told(repository.past, "pets")
            assert len({event.id for event in events}) == len(events)
            assert [replace(e, number=0, part=0) for e in events[:20]] == [replace(e, number=0) for e in before]
            assert [e.what for e in events[20:]] == ["copied"] * copies + ["published"]
            assert replay(events)[0] == 21
            assert [e.what for e in told(repository.past, "gone")] == ["published", "deleted"] + ["copied"] * copies
    assert run("check", STORE).exit_code == run("check", str(tmp_path / "back")).exit_code == 0


def test_check_tells_of_a_history_that_has_lost_something(bucket: Bucket, tmp_path: Path) -> None:
    with closing(shared(tmp_path / "mirror")) as mirror:
        for number in range(30):
            put(mirror, "pets", bytes([number]))
        known = mirror.task("pets")
        del bucket.objects[f"kept/log/{9:016}"]
        done = run("check", STORE)
        assert (done.exit_code, "has lost 1 changes, the last of them 9" in done.output) == (1, True), done.output
        event = SharedHistory(mirror.truth).read([12])[12]
        wrong = replace(event, digest=known.versions[1].digest).line()
        bucket.put(f"kept/log/{12:016}", b"pets\n" + wrong)
        assert "another digest for version 12" in run("check", STORE).output


def test_a_log_that_older_servers_wrote_is_read_on(bucket: Bucket, tmp_path: Path) -> None:
    with closing(shared(tmp_path / "mirror")) as mirror:
        for number in range(3):
            put(mirror, "pets", bytes([number]))
            bucket.put(f"kept/log/{number + 1:016}", b"pets")
        put(mirror, "pets", b"new")
        assert [(e.number, e.after) for e in told(mirror.past, "pets")] == [(4, (1, 2, 3))]
        assert mirror.truth.announced(1) == mirror.truth.announced(4) == "pets"
        check = run("check", STORE)
        assert check.exit_code == 0, check.output
