"""One folder, several processes: what is acknowledged is everywhere, numbers are unique, a killed one does no harm."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from mmap import mmap
from pathlib import Path
from typing import Any, Protocol

import pytest

from service.errors import Conflict, UnknownTask, UnknownVersion
from service.store.files import TaskFiles
from service.store.journal import Journal
from service.store.locks import FolderLock
from service.store.recovery import recover
from service.store.repository import Repository, VersionInfo

TIMEOUT_S = 60


def journal_of(root: Path) -> Journal:
    with root.with_name("journal").open("r+b") as file:
        return Journal(mmap(file.fileno(), Journal.SIZE))


def opened(root: Path, owner: str = "", **bounds: int) -> Repository:
    return Repository(root, journal_of(root), owner=owner, **bounds)


def put(repository: Repository, task: str, content: bytes, *, activate: bool = True) -> VersionInfo:
    staging = repository.open_staging(10_000)
    try:
        staging.write(content)
        return repository.publish(task, staging, activate=activate)[0]
    finally:
        staging.discard()


def state(repository: Repository) -> dict[str, Any]:
    """All that one sees, in JSON's types."""
    return {t.name: [t.active, {str(n): v.digest for n, v in t.versions.items()}] for t in repository.tasks()}


def check(repository: Repository) -> None:
    """What it sees is on the disk, and its indexes agree."""
    versions = [v for task in repository.tasks() for v in task.versions.values()]
    for version in versions:
        path = repository.path(version.task, version.number)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == version.digest
        assert path in repository.paths(version.digest, 1000)
    assert list(repository.names) == sorted({version.task for version in versions})
    assert sum(map(len, repository._digests.values())) == len(versions)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A data folder as a supervisor has it before it starts the others."""
    root = tmp_path / "data"
    (tmp_path / "journal").write_bytes(bytes(Journal.SIZE))
    with FolderLock(root), closing(opened(root, "supervisor")) as repository:
        assert repository.recover() == []
        yield root


class Worker:
    """A process that runs one of the functions below; lines go in and out."""

    def __init__(self, root: Path, work: str, *arguments: object) -> None:
        code = f"import sys; from {__name__} import {work}; {work}(*sys.argv[1:])"
        command = [sys.executable, "-c", code, str(root), *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
        )

    def hear(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=TIMEOUT_S)

    def close(self) -> None:
        self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode == 0


class Start(Protocol):
    """Makes a worker."""

    def __call__(self, root: Path, work: str, *arguments: object) -> Worker: ...


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts workers, of which none outlives the test."""
    with ExitStack() as stack:

        def started(root: Path, work: str, *arguments: object) -> Worker:
            made = Worker(root, work, *arguments)
            stack.callback(made.kill)
            return made

        yield started


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


@contextmanager
def worker(root: str, owner: str) -> Iterator[Repository]:
    """In a worker: nothing that these tests kill loses what the kernel has, so the disk is not waited for."""
    os.fsync = lambda handle: None
    with closing(opened(Path(root), owner)) as repository:
        repository.load()
        yield repository


def publish_many(root: str, owner: str, count: str) -> None:
    """Versions of a task that others publish to, and of an own one; in the end, once asked, all that it sees."""
    with worker(root, owner) as repository:
        say("ready")
        sys.stdin.readline()
        for number in range(int(count)):
            infos = [put(repository, task, f"{owner} {number}".encode()) for task in ("both", f"only-{owner}")]
            for info in infos:
                assert repository.version(info.task, info.number) == info
            say([[info.task, info.number, info.digest] for info in infos])
        sys.stdin.readline()
        repository.follow()
        say(state(repository))


def test_two_that_publish_at_once_lose_nothing_and_see_all(root: Path, start: Start) -> None:
    workers = [start(root, "publish_many", owner, 100) for owner in "ab"]
    for each in workers:
        assert each.hear() == "ready"
    for each in workers:
        each.tell()
    acknowledged = [version for each in workers for _ in range(100) for version in each.hear()]
    for each in workers:
        each.tell()
    views = [each.hear() for each in workers]
    for each in workers:
        each.close()
    numbers: dict[str, list[int]] = {}
    for task, number, _ in acknowledged:
        numbers.setdefault(task, []).append(number)
    assert {task: sorted(found) for task, found in numbers.items()} == {
        "both": list(range(1, 201)), "only-a": list(range(1, 101)), "only-b": list(range(1, 101)),
    }  # fmt: skip
    with closing(opened(root, "c")) as third:
        assert third.load() == []
        check(third)
        assert views == [state(third)] * 2
        for task, number, digest in acknowledged:
            assert third.version(task, number).digest == digest


def change_at_random(root: str, owner: str, steps: str) -> None:
    """Everything that can be done to a few tasks, by somebody who is told of nothing."""
    chance = random.Random(owner)
    with worker(root, owner) as repository:
        for step in range(int(steps)):
            task, number = chance.choice("xyz"), chance.randint(1, 30)
            with suppress(UnknownTask, UnknownVersion, Conflict):
                match chance.randrange(8):
                    case 0:
                        repository.delete_task(task)
                    case 1:
                        repository.delete_version(task, number)
                    case 2:
                        repository.activate(task, number)
                    case _:
                        put(repository, task, f"{owner} {step // 2}".encode(), activate=chance.random() < 0.7)
        say("done")
        sys.stdin.readline()
        repository.follow()
        check(repository)
        say(state(repository))


def test_any_changes_of_three_at_once_leave_one_truth_that_all_see(root: Path, start: Start) -> None:
    workers = [start(root, "change_at_random", owner, 150) for owner in "abc"]
    for each in workers:
        assert each.hear() == "done"
    for each in workers:
        each.tell()
    views = [each.hear() for each in workers]
    for each in workers:
        each.close()
    with closing(opened(root)) as again:
        assert again.load() == []
        assert views == [state(again)] * 3
        again.follow()
    assert recover(root).said == []  # nothing lies about


def publish_when_told(root: str) -> None:
    with worker(root, "writer") as repository:
        say("ready")
        while sys.stdin.readline():
            info = put(repository, "dogs", os.urandom(8))
            if info.number > 3:
                repository.delete_version("dogs", info.number - 3)
            say([info.number, info.digest])


def test_what_another_acknowledged_is_seen_a_thousand_times(root: Path, start: Start) -> None:
    writer = start(root, "publish_when_told")
    assert writer.hear() == "ready"
    with closing(opened(root, "reader")) as repository:
        repository.load()
        for turn in range(1, 1001):
            assert not repository.behind
            writer.tell()
            number, digest = writer.hear()
            assert repository.behind
            repository.follow()
            assert (repository.version("dogs").number, repository.version("dogs").digest) == (number, digest)
            assert number == turn
            assert not repository.behind
        check(repository)
    writer.close()


def turn_over(root: str, owner: str) -> None:
    """A task that is never without an active version, though each is deleted soon."""
    with worker(root, owner) as repository:
        first = put(repository, owner, b"first")
        say("ready")
        for number in range(300):
            second = put(repository, owner, b"%d" % number, activate=False)
            repository.activate(owner, second.number)
            repository.delete_version(owner, first.number)
            first = second
        say("done")


def test_a_follower_never_sees_half_a_change(root: Path, start: Start) -> None:
    workers = [start(root, "turn_over", owner) for owner in "ab"]
    for each in workers:
        assert each.hear() == "ready"
    stop, failures, last = threading.Event(), [], {"a": 0, "b": 0}
    with closing(opened(root, "reader")) as repository:
        repository.load()

        def read() -> None:
            try:
                while not stop.is_set():
                    repository.follow()
                    for name in "ab":
                        seen, now = last[name], repository.version(name).number  # there always is one
                        last[name] = max(last[name], now)
                        assert now >= seen
                    assert repository.names == ("a", "b")
            except BaseException as error:
                failures.append(error)

        readers = [threading.Thread(target=read, daemon=True) for _ in range(2)]
        for reader in readers:
            reader.start()
        for each in workers:
            assert each.hear() == "done"
            each.close()
        stop.set()
        for reader in readers:
            reader.join(TIMEOUT_S)
        assert failures == []
        repository.follow()
        assert {name: repository.version(name).number for name in "ab"} == {"a": 301, "b": 301}
        check(repository)


def stop_inside(root: str, seam: str, change: str) -> None:
    """Come to one point inside a write, and stay there."""

    def stay(*_: object, **__: object) -> None:
        say("here")
        signal.pause()

    write = TaskFiles.write_manifest

    def written(self: TaskFiles, task: Any) -> None:
        write(self, task)
        stay()

    with worker(root, "killed") as repository:
        match seam:
            case "before the file is placed":
                TaskFiles.place = stay  # type: ignore[method-assign]
            case "before the manifest":
                TaskFiles.write_manifest = stay  # type: ignore[method-assign]
            case "after the manifest":
                TaskFiles.write_manifest = written  # type: ignore[method-assign]
            case "in the journal":
                Journal.begin = lambda self, name: None if name else stay()  # type: ignore[method-assign]
            case "after the write":
                repository._remove = lambda *_: None  # type: ignore[method-assign]
        if change == "publish":
            put(repository, "dogs", b"killed")
        else:
            repository.delete_task("dogs")
        stay()


SEAMS = ("before the file is placed", "before the manifest", "after the manifest", "in the journal", "after the write")


@pytest.mark.parametrize(("change", "healer"), [("publish", "a write"), ("publish", "a start"), ("delete", "a start")])
@pytest.mark.parametrize("seam", SEAMS)
def test_kill_9_inside_a_write_leaves_the_lock_free_and_the_folder_whole(
    root: Path, start: Start, seam: str, change: str, healer: str
) -> None:
    committed = seam in SEAMS[2:] or (change == "delete" and seam == SEAMS[0])
    with closing(opened(root, "front")) as repository, closing(opened(root, "supervisor")) as other:
        repository.load()
        put(repository, "dogs", b"one")
        killed = start(root, "stop_inside", seam, change)
        assert killed.hear() == "here"
        killed.kill()
        with closing(opened(root, "killed")) as again:  # it is started again
            if healer == "a start":
                assert all("upload that never ended" in s or "deleted task" in s for s in again.load())
                assert not [p for p in (root / "staging").iterdir() if p.name.startswith("killed.")]
            else:
                put(other, "cats", b"one")
            repository.follow()
            if change == "publish":
                assert (repository.version("dogs").number == 2) == committed
            else:
                assert ("dogs" in repository.names) != committed
            number = put(repository, "dogs", b"three").number
            assert number == (3 if committed and change == "publish" else 2)
            again.follow()
            other.follow()
            for each in (again, other, repository):
                check(each)
                assert state(each) == state(repository)
    found = recover(root)
    assert {name: task.active for name, task in found.tasks.items()}["dogs"] == number


def upload(root: str, owner: str) -> None:
    with worker(root, owner) as repository:
        staging = repository.open_staging(1000)
        staging.write(b"half")
        say(staging.path.name)
        sys.stdin.readline()
        staging.write(b" and half")
        repository.publish("dogs", staging)
        say("done")


def test_a_start_under_a_running_server_leaves_others_uploads_alone(root: Path, start: Start) -> None:
    killed, going = start(root, "upload", "a"), start(root, "upload", "b")
    left, kept = killed.hear(), going.hear()
    assert (left.split(".")[0], kept.split(".")[0]) == ("a", "b")
    killed.kill()
    with closing(opened(root, "a")) as repository:
        assert repository.load() == [f"removed an upload that never ended: {left}"]
        assert [path.name for path in (root / "staging").iterdir()] == [kept]
        going.tell()
        assert going.hear() == "done"
        going.close()
        repository.follow()
        assert repository.path("dogs", 1).read_bytes() == b"half and half"
