"""Changes of a task as pure steps: the task as it is -> as it is to be, however often others are first.

The same task means that there is nothing to do. They know no disk and no store; ``service.store.truth`` takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

from service.errors import Conflict
from service.store.index import Index
from service.store.manifest import About, TaskInfo, VersionInfo
from service.store.traffic import MAX_WEIGHTED, Guard, RolledBack, Shadow, Traffic

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
            return task if active == task.active else task.activating(active).telling(self._told)
        self._room(task)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        info = VersionInfo(self._name, task.next, self._digest, self._size, when)
        versions = MappingProxyType({**task.versions, info.number: info})
        new = replace(task, versions=versions, next=task.next + 1)
        return (new.activating(info.number) if self._activate else new).telling(self._told)

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
    return task.activating(number).telling(told) if task.active != number else task


def deactivated(task: TaskInfo) -> TaskInfo:
    """Raises UnknownTask."""
    only(task).task(task.name)
    return task.activating(None)


class DeleteVersion:
    """Take out a version that is not active; ``gone`` is what it was."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.gone: VersionInfo

    def __call__(self, task: TaskInfo) -> TaskInfo:
        """Raises UnknownTask, UnknownVersion, or Conflict on the active version."""
        self.gone = only(task).version(task.name, self._number)
        check_idle(task, self._number)
        return task.without([self._number])


def check_idle(task: TaskInfo, number: int) -> None:
    """Whether nothing needs that version. Raises Conflict."""
    why = None
    if task.active == number:
        why = "is active; activate another one first"
    elif task.traffic is not None and number in task.traffic.weights:
        why = f"has a part of the traffic; take it out first: DELETE /v1/tasks/{task.name}/traffic"
    elif task.shadow is not None and task.shadow.version == number:
        why = f"is the shadow; take it out first: DELETE /v1/tasks/{task.name}/shadow"
    if why is not None:
        raise Conflict(f"version {number} of '{task.name}' {why}", task=task.name, version=number)


class DeleteTask:
    """Take out all versions; ``gone`` is what it was."""

    def __init__(self) -> None:
        self.gone: TaskInfo

    def __call__(self, task: TaskInfo) -> TaskInfo:
        """Raises UnknownTask."""
        self.gone = only(task).task(task.name)
        return task.emptied()


def directed(task: TaskInfo, weights: Mapping[int, int], guard: Guard | None) -> TaskInfo:
    """Versions share the traffic by their weights; the active one alone is no rule. A shadow that answers is none.

    The same rule again changes nothing. Raises UnknownTask, UnknownVersion, or Conflict.
    """
    known = only(task)
    active = known.task(task.name).active
    for number in weights:
        known.version(task.name, number)
    if active is None:
        raise Conflict(f"task '{task.name}' has no active version to share with; activate one", task=task.name)
    if active not in weights:
        raise Conflict(
            f"version {active} of '{task.name}' is active and has no weight; give it one, or activate another first",
            task=task.name, version=active,
        )  # fmt: skip
    if len(weights) > MAX_WEIGHTED:
        raise Conflict(f"{len(weights)} versions would share the traffic, the limit is {MAX_WEIGHTED}", task=task.name)
    if len(weights) == 1:
        return undirected(task)
    ordered, old = dict(sorted(weights.items())), task.traffic
    if old is not None and (dict(old.weights), old.guard) == (ordered, guard):
        return task
    shadow = task.shadow if task.shadow is not None and task.shadow.version not in weights else None
    traffic = Traffic(MappingProxyType(ordered), guard, precisely_now())
    return replace(task, traffic=traffic, shadow=shadow, rolled_back=None)


def undirected(task: TaskInfo) -> TaskInfo:
    """The active version answers all. Raises UnknownTask."""
    only(task).task(task.name)
    return task if task.traffic is None and task.rolled_back is None else replace(task, traffic=None, rolled_back=None)


def shadowed(task: TaskInfo, number: int, share: float) -> TaskInfo:
    """A version sees that share of the traffic and answers nobody. Raises UnknownTask, UnknownVersion or Conflict."""
    only(task).version(task.name, number)
    if task.active == number or (task.traffic is not None and number in task.traffic.weights):
        raise Conflict(
            f"version {number} of '{task.name}' answers already; a shadow is a version that answers nobody",
            task=task.name, version=number,
        )  # fmt: skip
    old = task.shadow
    if old is not None and (old.version, old.share) == (number, share):
        return task
    since = old.since if old is not None and old.version == number else precisely_now()  # what was seen counts on
    return replace(task, shadow=Shadow(number, share, since))


def unshadowed(task: TaskInfo) -> TaskInfo:
    """No version is a shadow. Raises UnknownTask."""
    only(task).task(task.name)
    return task if task.shadow is None else replace(task, shadow=None)


class RollBack:
    """The active version answers all, because of ``version``, unless the traffic of ``since`` has ended already.

    ``made`` says which, after the last call.
    """

    def __init__(self, since: str, version: int, why: str) -> None:
        self._since, self._version, self._why = since, version, why
        self.made = False

    def __call__(self, task: TaskInfo) -> TaskInfo:
        self.made = task.traffic is not None and task.traffic.since == self._since
        if not self.made:
            return task
        return replace(task, traffic=None, rolled_back=RolledBack(self._version, self._why, precisely_now()))


def precisely_now() -> str:
    """ISO 8601 in UTC; no two rules of a task are made in the same microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def only(task: TaskInfo) -> Index:
    """An index of that task alone, for its words about what is not there."""
    index = Index()
    index._remember(task)
    return index
