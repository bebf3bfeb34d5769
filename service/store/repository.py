"""Tasks and versions on disk: atomic publish, recovery at start, lookups from memory. The folder is the truth.

A version exists if and only if its task's ``manifest.json`` names it; the manifest is replaced in one rename,
which is the only commit point: before it a failure leaves what was, after it nothing is taken back. Files are opaque
bytes here: it knows no tensors and no HTTP.

    root/tasks/<task>/manifest.json          as ``service.store.manifest`` tells
    root/tasks/<task>/versions/<n>.safetensors
    root/staging/                            uploads in progress, and the files of deleted tasks for a moment
    root/quarantine/                         what recovery set aside
    root/reserve                             given up on a full disk, so that tasks can be deleted
    root/demo                                whether the demo's tasks were published
    root/lock                                held by the one server that owns the folder
"""

from __future__ import annotations

import fcntl
import logging
import threading
from bisect import bisect_left
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from adapters.errors import NoRoom
from service.errors import Conflict, StorageFailed, UnknownTask, UnknownVersion
from service.store.files import NotConfirmed, TaskFiles
from service.store.manifest import About, TaskInfo, VersionInfo
from service.store.recovery import recover
from service.store.staging import Reserve, Staging, disk_errors

__all__ = ["Repository", "Staging", "TaskInfo", "VersionInfo"]

log = logging.getLogger(__name__)

_NONE: MappingProxyType[int, VersionInfo] = MappingProxyType({})


class Repository:
    """Blocking; callers on an event loop use threads. Lookups read memory only and take no lock.

    Writers replace values and never change one that a reader may hold, so that a reader sees each task as it was
    before a change or as it is after it.
    """

    def __init__(self, root: Path, *, max_tasks: int = 10_000, max_versions: int = 1000) -> None:
        self.root, self._max_tasks, self._max_versions = root, max_tasks, max_versions
        self._writing = threading.Lock()
        self._tasks: dict[str, TaskInfo] = {}  # deleted ones too: their numbers go on
        self._names: tuple[str, ...] = ()  # of those with versions, in order
        self._digests: dict[str, dict[tuple[str, int], None]] = {}
        self._sealed: dict[str, str] = {}
        self._unconfirmed: set[str] = set()
        self._remover = ThreadPoolExecutor(1, "remover")
        self._removal: Future[None] | None = None  # the last one; those before it are done when it is
        self._closed = False
        with disk_errors():
            self._files = TaskFiles(root)
            self._lock_file = self._files.prepare()
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock_file.close()
            raise Conflict(
                f"another server owns the folder {root}; stop it or choose another --data-dir", folder=str(root)
            ) from error
        self._reserve = Reserve(root / "reserve")

    def close(self) -> None:
        """Let another server own the folder."""
        self._closed = True
        self._remover.shutdown()
        self._lock_file.close()

    def recover(self) -> list[str]:
        """Read the folder; what no manifest names is set aside. Returns one sentence per thing found wrong."""
        with self._writing, disk_errors():
            found = recover(self.root)
            digests: dict[str, dict[tuple[str, int], None]] = {}
            for task in found.tasks.values():
                for version in task.versions.values():
                    digests.setdefault(version.digest, {})[task.name, version.number] = None
            self._tasks, self._digests, self._sealed = found.tasks, digests, found.sealed
            self._names = tuple(name for name, task in sorted(found.tasks.items()) if task.versions)
        return found.said

    def open_staging(self, max_bytes: int) -> Staging:
        """A file to write an upload into. What was deleted before has made room by then."""
        if self._removal is not None:
            self._removal.result()
        with disk_errors():
            return Staging(self.root / "staging", max_bytes)

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks that have a version, in order, as of now; one of them may be gone a moment later."""
        return self._names

    def had(self, name: str | None = None) -> bool:
        """True once that task, or any, was ever published here, also when it was deleted."""
        return bool(self._tasks or self._sealed) if name is None else name in self._tasks or name in self._sealed

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

    def path(self, name: str, number: int) -> Path:
        """Where a version's file is; ``name`` is checked, so it cannot leave the folder."""
        return self._files.path(name, number)

    def holds(self, digest: str) -> bool:
        """True while any version of any task has those bytes."""
        return digest in self._digests

    def paths(self, digest: str) -> list[Path]:
        """Every file with those bytes, of whatever task; each may be deleted a moment later."""
        return [self.path(name, number) for name, number in list(self._digests.get(digest, ()))]

    def publish(
        self, name: str, staging: Staging, *, activate: bool = True, about: str | None = None
    ) -> tuple[VersionInfo, bool]:
        """Make a staged file a version, durable before this returns; True if it is new.

        The same bytes again are the version they already are. ``about``, the JSON text of an object, is kept for lists.
        Raises NoRoom, BadTaskName or a storage error; where its fact ``changed`` is True, the version is there.
        """
        digest = staging.finish()
        told = None if about is None else About(digest, about)
        with self._writing, disk_errors():
            old = self._settled(name) or TaskInfo(name, _NONE, None, 1)
            same = next((v for v in old.versions.values() if v.digest == digest), None)
            if same is not None:
                if activate and old.active != same.number:
                    self._commit(replace(old, active=same.number).telling(told))
                return same, False
            self._check_room(old)
            info = VersionInfo(name, old.next, digest, staging.size, datetime.now(UTC).isoformat(timespec="seconds"))
            versions = MappingProxyType({**old.versions, info.number: info})
            active = info.number if activate else old.active
            new = replace(old, versions=versions, active=active, next=old.next + 1)
            try:
                self._files.place(staging, info, first=not old.versions)
                self._commit(new.telling(told))
            except NotConfirmed:
                raise
            except BaseException:
                self._files.take_back(info, whole_task=name not in self._tasks)
                raise
            return info, True

    def learn(self, name: str, digest: str, about: str) -> None:
        """Keep what was found out about the version that lists show; it is written when the task next changes."""
        with self._writing:
            task = self._tasks.get(name)
            if task is not None and task.versions:
                self._tasks[name] = task.telling(About(digest, about))

    def activate(self, name: str, number: int, about: str | None = None) -> VersionInfo:
        """Roll back or forward. Raises UnknownTask or UnknownVersion."""
        with self._writing, disk_errors():
            self._settled(name)
            info = self.version(name, number)
            told = None if about is None else About(info.digest, about)
            self._change(replace(self.task(name), active=number).telling(told))
            self._reserve.fill()
            return info

    def delete_version(self, name: str, number: int) -> VersionInfo:
        """Raises Conflict on the active version. A request that is still loading the file has it open or fails."""
        with self._writing, disk_errors():
            self._settled(name)
            gone, task = self.version(name, number), self.task(name)
            if task.active == number:
                raise Conflict(
                    f"version {number} of '{name}' is active; activate another one first", task=name, version=number
                )
            versions = {n: v for n, v in task.versions.items() if n != number}
            self._change(replace(task, versions=MappingProxyType(versions)))
            try:
                self.path(name, number).unlink(missing_ok=True)
            except OSError as error:
                log.warning("version %d of '%s' is deleted, but its file is left (%s)", number, name, error.strerror)
            self._reserve.fill()
            return gone

    def delete_task(self, name: str) -> TaskInfo:
        """Remove all versions. The manifest stays, so that numbers go on growing if the task comes back.

        The files go after this returns, beside whatever comes next.
        """
        with self._writing, disk_errors():
            self._settled(name)
            gone = self.task(name)
            self._change(replace(gone, versions=_NONE, active=None, about=None))
            aside = self._files.move_away(name)
            if aside is not None:
                with suppress(RuntimeError):  # the server stops; the next start removes them
                    self._removal = self._remover.submit(self._remove, name, aside)
        return gone

    def _remove(self, name: str, folder: Path) -> None:
        """The files of a deleted task, however many; what a stop leaves of them the next start removes."""
        try:
            for file in folder.iterdir():
                if self._closed:
                    return
                file.unlink(missing_ok=True)
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("task '%s' is deleted, but files of it are left in %s (%s)", name, folder, error.strerror)
        with self._writing:
            self._reserve.fill()

    def _settled(self, name: str) -> TaskInfo | None:
        """The task before a change, deleted or not; a change that the disk never confirmed is written again first."""
        self._files.folder(name)
        if name in self._sealed:
            raise StorageFailed(f"task '{name}' cannot be changed: {self._sealed[name]}; see the log's first lines")
        task = self._tasks.get(name)
        if task is not None and name in self._unconfirmed:
            try:
                self._change(task)
            except NotConfirmed as error:  # that change; the one asked for now was not even begun
                raise OSError(error.errno, error.strerror) from error
        return task

    def _check_room(self, task: TaskInfo) -> None:
        if not task.versions and len(self._names) >= self._max_tasks:
            raise NoRoom(
                f"the server holds {self._max_tasks} tasks, its limit (max_tasks); delete one",
                field="max_tasks", limit=self._max_tasks,
            )  # fmt: skip
        if len(task.versions) >= self._max_versions:
            raise NoRoom(
                f"task '{task.name}' has {self._max_versions} versions, the limit (max_versions_per_task); delete some",
                field="max_versions_per_task", limit=self._max_versions,
            )  # fmt: skip

    def _change(self, task: TaskInfo) -> None:
        """Commit what must work on a full disk too."""
        self._reserve.spend(lambda: self._commit(task))

    def _commit(self, task: TaskInfo) -> None:
        """Replace the manifest, then the memory, which agrees with the disk also where that failed after the rename."""
        try:
            self._files.write_manifest(task)
        except NotConfirmed:
            self._remember(task)
            self._unconfirmed.add(task.name)
            raise
        self._remember(task)
        self._unconfirmed.discard(task.name)

    def _remember(self, task: TaskInfo) -> None:
        """Replace what readers see. The index by digest is never short of a version that they see."""
        old = self._tasks.get(task.name)
        before = old.versions if old is not None else _NONE
        for number in task.versions.keys() - before.keys():
            self._digests.setdefault(task.versions[number].digest, {})[task.name, number] = None
        self._tasks[task.name] = task
        if bool(task.versions) != bool(before):
            at = bisect_left(self._names, task.name)
            middle, rest = ((task.name,), at) if task.versions else ((), at + 1)
            self._names = (*self._names[:at], *middle, *self._names[rest:])
        for number in before.keys() - task.versions.keys():
            digest = before[number].digest
            del self._digests[digest][task.name, number]
            if not self._digests[digest]:
                del self._digests[digest]


def _numbers(info: TaskInfo) -> str:
    return ", ".join(str(n) for n in list(info.versions)[-20:])
