"""Changes of a task as pure steps: the task as it is -> as it is to be, however often others are first.

The same task means that there is nothing to do. They know no disk and no store; ``service.store.truth`` takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

from service.errors import Conflict
from service.store.index import Index
from service.store.manifest import About, TaskInfo, VersionInfo

Step = Callable[[TaskInfo], TaskInfo]
"""A task as it is -> as it is to be; the very same object for no change. Raises why it cannot be."""


class Publish:
    """Add a version, unless the task has those bytes; ``created`` says which, after the last call."""

    def __init__(
        self, name: str, digest: str, size: int, activate: bool, about: str | None, room: Callable[[TaskInfo], None]
    ) -> None:
        """``room`` raises NoRoom."""
        self._name, self._digest, self._size, self._activate, self._room = name, digest, size, activate, room
        self._told = None if about is None else About(digest, about)
        self.created = False

    def __call__(self, task: TaskInfo) -> TaskInfo:
        same = self._same(task)
        self.created = same is None
        if same is not None:
            active = same.number if self._activate else task.active
            return task if active == task.active else replace(task, active=active).telling(self._told)
        self._room(task)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        info = VersionInfo(self._name, task.next, self._digest, self._size, when)
        versions = MappingProxyType({**task.versions, info.number: info})
        active = info.number if self._activate else task.active
        return replace(task, versions=versions, active=active, next=task.next + 1).telling(self._told)

    def version_of(self, task: TaskInfo) -> VersionInfo:
        """The version with those bytes. Raises Conflict if somebody deleted it since."""
        found = self._same(task)
        if found is None:
            raise Conflict(
                f"the version was published, and another server deleted it since; see '{self._name}'", task=self._name
            )
        return found

    def _same(self, task: TaskInfo) -> VersionInfo | None:
        return next((v for v in task.versions.values() if v.digest == self._digest), None)


def activated(task: TaskInfo, number: int, about: str | None) -> TaskInfo:
    """Raises UnknownTask or UnknownVersion."""
    info = only(task).version(task.name, number)
    told = None if about is None else About(info.digest, about)
    return replace(task, active=number).telling(told) if task.active != number else task


def deactivated(task: TaskInfo) -> TaskInfo:
    """Raises UnknownTask."""
    only(task).task(task.name)
    return replace(task, active=None) if task.active is not None else task


class DeleteVersion:
    """Take out a version that is not active; ``gone`` is what it was."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.gone: VersionInfo

    def __call__(self, task: TaskInfo) -> TaskInfo:
        """Raises UnknownTask, UnknownVersion, or Conflict on the active version."""
        self.gone = only(task).version(task.name, self._number)
        if task.active == self._number:
            raise Conflict(
                f"version {self._number} of '{task.name}' is active; activate another one first",
                task=task.name, version=self._number,
            )  # fmt: skip
        return task.without([self._number])


class DeleteTask:
    """Take out all versions; ``gone`` is what it was."""

    def __init__(self) -> None:
        self.gone: TaskInfo

    def __call__(self, task: TaskInfo) -> TaskInfo:
        """Raises UnknownTask."""
        self.gone = only(task).task(task.name)
        return task.emptied()


def only(task: TaskInfo) -> Index:
    """An index of that task alone, for its words about what is not there."""
    index = Index()
    index._remember(task)
    return index
