"""History: every change of a task has its event, whoever made it; and what was not made has none that is told."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from service.store.events import Actor, TaskEvent
from service.store.repository import Repository


def put(repository: Repository, task: str, content: bytes, by: Actor, *, activate: bool = True) -> None:
    staged = repository.open_staging(1000)
    try:
        staged.write(content)
        repository.publish(task, staged, activate=activate, by=by)
    finally:
        staged.discard()


def lines(root: Path) -> list[TaskEvent]:
    return [
        TaskEvent.parse(line)
        for path in sorted((root / "history").iterdir())
        for line in path.read_bytes().splitlines()
    ]


def test_every_change_of_a_folder_is_told_with_who_made_it(tmp_path: Path) -> None:
    ops, nightly = Actor("ops", "http"), Actor("nightly", "teach")
    with closing(Repository(tmp_path, server="one")) as repository:
        put(repository, "pets", b"a", ops)
        put(repository, "pets", b"b", nightly, activate=False)
        put(repository, "pets", b"b", nightly)
        repository.activate("pets", 1, by=ops)
        repository.activate("pets", 1, by=ops)  # nothing is changed, and nothing told
        repository.deactivate("pets", by=ops)
        repository.delete_version("pets", 2, by=Actor("ops", "cli"))
        repository.delete_task("pets", by=Actor(None, "page"))
        put(repository, "pets", b"c", ops)
    told = [(e.number, e.what, e.version, e.by.key, e.by.origin, dict(e.detail)) for e in lines(tmp_path)]
    assert told == [
        (1, "published", 1, "ops", "http", {}),
        (2, "staged", 2, "nightly", "teach", {}),
        (3, "activated", 2, "nightly", "teach", {"before": 1}),
        (4, "activated", 1, "ops", "http", {"before": 2}),
        (5, "deactivated", None, "ops", "http", {"before": 1}),
        (6, "version_deleted", 2, "ops", "cli", {}),
        (7, "deleted", None, None, "page", {"versions": 1, "numbers": [1]}),
        (8, "published", 3, "ops", "http", {}),
    ]
    assert {e.server for e in lines(tmp_path)} == {"one"}
    assert [e.after for e in lines(tmp_path)][-1] == (1, 2, 3, 4, 5, 6, 7)
