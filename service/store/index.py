"""What is known of tasks, in memory: lookups take no lock, and see each task as it was before a change or after it.

It knows no disk; ``service.store.repository`` says what to know.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from service.errors import UnknownTask, UnknownVersion
from service.store.manifest import NO_VERSIONS, TaskInfo, VersionInfo


class Index:
    """Writers, one at a time, replace values and never change one that a reader may hold."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskInfo] = {}  # deleted ones too: their numbers go on
        self._names: tuple[str, ...] = ()  # of those with versions, in order
        self._digests: dict[str, dict[tuple[str, int], None]] = {}
        self._sealed: dict[str, str] = {}  # tasks that could not be read, and why: nobody writes over them
        self.ruled: dict[str, TaskInfo] = {}
        """Those whose requests concern more versions than the active one; for looks, and copies."""

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks that have a version, in order, as of now; one of them may be gone a moment later."""
        return self._names

    def had(self, name: str | None = None) -> bool:
        """True once that task, or any, was ever published here, also when it was deleted."""
        return bool(self._tasks or self._sealed) if name is None else name in self._tasks or name in self._sealed

    def ever(self, name: str) -> TaskInfo:
        """The task, deleted or not. Raises UnknownTask where it never was, or cannot be read."""
        info = self._tasks.get(name)
        if info is None:
            raise UnknownTask(f"there never was a task '{name[:80]}' here; GET /v1/tasks lists them", task=name[:80])
        return info

    def log_of(self, name: str) -> tuple[int, ...]:
        """The numbers of its last changes; none of a task that is not known."""
        info = self._tasks.get(name)
        return info.log if info is not None else ()

    def tasks(self) -> list[TaskInfo]:
        """In the order of their names."""
        found = (self._tasks.get(name) for name in self._names)
        return [task for task in found if task is not None and task.versions]

    def task(self, name: str) -> TaskInfo:
        """Raises UnknownTask."""
        info = self._tasks.get(name)
        if info is None or not info.versions:
            raise UnknownTask(f"there is no task '{name[:80]}'; GET /v1/tasks lists them", task=name[:80])
        return info

    def version(self, name: str, number: int | None = None) -> VersionInfo:
        """The version of that number, or the active one. Raises UnknownTask or UnknownVersion."""
        info = self.task(name)
        wanted = info.active if number is None else number
        if wanted is None:
            raise UnknownVersion(f"task '{name}' has no active version; activate one", task=name)
        if wanted not in info.versions:
            raise UnknownVersion(
                f"task '{name}' has no version {wanted}; it has {_numbers(info)}", task=name, version=wanted
            )
        return info.versions[wanted]

    def holds(self, digest: str) -> bool:
        """True while any version of any task has those bytes."""
        return digest in self._digests

    def _remember_all(self, tasks: dict[str, TaskInfo], sealed: Mapping[str, str]) -> None:
        """Forget what was known for this."""
        digests: dict[str, dict[tuple[str, int], None]] = {}
        for task in tasks.values():
            for version in task.versions.values():
                digests.setdefault(version.digest, {})[task.name, version.number] = None
        self._tasks, self._digests, self._sealed = tasks, digests, dict(sealed)
        self._names = tuple(name for name, task in sorted(tasks.items()) if task.versions)
        self.ruled = {name: task for name, task in tasks.items() if task.is_ruled}

    def _remember(self, task: TaskInfo) -> None:
        """Replace what readers see. The index by digest is never short of a version that they see."""
        old = self._tasks.get(task.name)
        before = old.versions if old is not None else NO_VERSIONS
        was, now = ({(n, v.digest) for n, v in versions.items()} for versions in (before, task.versions))
        for number, digest in now - was:
            self._digests.setdefault(digest, {})[task.name, number] = None
        self._tasks[task.name] = task
        if task.is_ruled:
            self.ruled[task.name] = task
        else:
            self.ruled.pop(task.name, None)
        if bool(task.versions) != bool(before):
            at = bisect_left(self._names, task.name)
            middle, rest = ((task.name,), at) if task.versions else ((), at + 1)
            self._names = (*self._names[:at], *middle, *self._names[rest:])
        for number, digest in was - now:
            del self._digests[digest][task.name, number]
            if not self._digests[digest]:
                del self._digests[digest]


def _numbers(info: TaskInfo) -> str:
    return ", ".join(str(n) for n in list(info.versions)[-20:])
