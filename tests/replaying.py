"""The history of a task, done again from nothing: what it must come to is the task as it is."""

from __future__ import annotations

from collections.abc import Mapping

from service.store.events import TaskEvent
from service.store.manifest import TaskInfo
from service.store.past import Past


def told(past: Past, name: str) -> list[TaskEvent]:
    """Every event of a task, oldest first, asked for in pages of five."""
    events: list[TaskEvent] = []
    after: str | None = None
    while True:
        page = past.of(name, after, 5)
        events += page.events
        if page.next is None:
            return events[::-1]
        after = page.next


def replay(events: list[TaskEvent]) -> tuple[int | None, dict[int, str]]:
    """The active version and each version's digest after these."""
    active: int | None = None
    versions: dict[int, str] = {}
    for event in events:
        if event.version is not None and event.what in ("published", "staged"):
            assert event.version not in versions
            assert event.digest is not None
            versions[event.version] = event.digest
        if event.version is not None and event.what in ("published", "activated"):
            assert versions[event.version] == event.digest
            active = event.version
        if event.what == "deactivated":
            active = None
        if event.what == "version_deleted":
            assert event.version is not None
            del versions[event.version]
        if event.what == "deleted":
            assert event.detail["numbers"] == sorted(versions)[-20:]
            active, versions = None, {}
    return active, versions


def check_history(past: Past, tasks: Mapping[str, TaskInfo]) -> None:
    """Each task is what its history comes to, and the history of all has the same events."""
    every = {name: told(past, name) for name in tasks}
    for name, task in tasks.items():
        assert replay(every[name]) == (task.active, {n: v.digest for n, v in task.versions.items()}), name
    known = {event.id for events in every.values() for event in events if not event.part}
    assert {event.id for event in past.of_all(None, 10_000).events} == known
