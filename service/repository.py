"""Tasks and versions on disk: atomic publish, recovery at start, lookups from memory. The folder is the truth.

A version exists if and only if its task's ``manifest.json`` names it; the manifest is replaced in one rename,
which is the only commit point. Files are opaque bytes here: it knows no tensors and no HTTP.

    root/tasks/<task>/manifest.json          {"next": 3, "active": 2, "versions": {"1": {...}, "2": {...}}}
    root/tasks/<task>/versions/<n>.safetensors
    root/staging/                            uploads in progress
    root/quarantine/                         what recovery set aside
    root/reserve                             given up on a full disk, so that tasks can be deleted
    root/lock                                held by the one server that owns the folder
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

from adapters.config import is_task_name
from adapters.errors import NoRoom
from service.errors import BadTaskName, Conflict, UnknownTask, UnknownVersion
from service.staging import Reserve, Staging, disk_errors, sync_folder

__all__ = ["Repository", "Staging", "TaskInfo", "VersionInfo"]


@dataclass(frozen=True)
class VersionInfo:
    """An immutable file of a task: its number only grows; ``created`` is ISO 8601 in UTC."""

    task: str
    number: int
    digest: str
    size: int
    created: str


@dataclass(frozen=True)
class TaskInfo:
    """A task's versions by number, the active one (None before the first activation), the next number."""

    name: str
    versions: Mapping[int, VersionInfo]
    active: int | None
    next: int


class Repository:
    """Blocking; callers on an event loop use threads. Lookups read memory only and take no lock."""

    def __init__(self, root: Path, *, max_tasks: int = 10_000, max_versions: int = 1000) -> None:
        self.root, self._max_tasks, self._max_versions = root, max_tasks, max_versions
        self._writing = threading.Lock()
        self._tasks: dict[str, TaskInfo] = {}
        with disk_errors():
            self._lock_file = _prepare(root)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock_file.close()
            raise Conflict(
                f"another server owns the folder {root}; stop it or choose another --data-dir", folder=str(root)
            ) from error
        self._reserve = Reserve(root / "reserve")

    def close(self) -> None:
        self._lock_file.close()

    def recover(self) -> list[str]:
        """Read the folder; what no manifest names is set aside. Returns one sentence per thing found wrong."""
        said = []
        with disk_errors():
            for left in sorted((self.root / "staging").iterdir()):
                said.append(_tidied(left.unlink, f"removed an upload that never ended: {left.name}"))
            for folder in sorted((self.root / "tasks").iterdir()):
                said += self._recover_task(folder)
        return said

    def open_staging(self, max_bytes: int) -> Staging:
        with disk_errors():
            return Staging(self.root / "staging", max_bytes)

    def tasks(self) -> list[TaskInfo]:
        return sorted((t for t in self._tasks.values() if t.versions), key=lambda info: info.name)

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
        return self._folder(name) / "versions" / f"{number}.safetensors"

    def paths(self, digest: str) -> list[Path]:
        """Every file that holds those bytes now."""
        versions = [version for task in tuple(self._tasks.values()) for version in task.versions.values()]
        return [self.path(version.task, version.number) for version in versions if version.digest == digest]

    def publish(self, name: str, staging: Staging, *, activate: bool = True) -> tuple[VersionInfo, bool]:
        """Make a staged file a version, durable before this returns; True if it is new.

        The same bytes again are the version they already are. Raises NoRoom, BadTaskName or storage errors.
        """
        folder = self._folder(name)
        digest = staging.finish()
        with self._writing, disk_errors():
            old = self._tasks.get(name) or TaskInfo(name, {}, None, 1)
            same = next((v for v in old.versions.values() if v.digest == digest), None)
            if same is not None:
                staging.discard()
                if activate and old.active != same.number:
                    self._commit(replace(old, active=same.number))
                return same, False
            self._check_room(old)
            info = VersionInfo(name, old.next, digest, staging.size, datetime.now(UTC).isoformat(timespec="seconds"))
            active = info.number if activate else old.active
            versions = MappingProxyType({**old.versions, info.number: info})
            try:
                (folder / "versions").mkdir(parents=True, exist_ok=True)
                staging.path.chmod(0o644)
                staging.path.replace(self.path(name, info.number))
                for changed in (folder / "versions", folder, folder.parent):
                    sync_folder(changed)
                self._commit(TaskInfo(name, versions, active, old.next + 1))
            except BaseException:
                self._take_back(info, whole_task=name not in self._tasks)
                raise
            return info, True

    def activate(self, name: str, number: int) -> VersionInfo:
        """Roll back or forward. Raises UnknownTask or UnknownVersion."""
        with self._writing, disk_errors():
            info = self.version(name, number)
            self._reserve.spend(lambda: self._commit(replace(self.task(name), active=number)))
            self._reserve.fill()
            return info

    def delete_version(self, name: str, number: int) -> VersionInfo:
        """Raises Conflict on the active version. A request that is still loading the file has it open or fails."""
        with self._writing, disk_errors():
            gone, task = self.version(name, number), self.task(name)
            if task.active == number:
                raise Conflict(
                    f"version {number} of '{name}' is active; activate another one first", task=name, version=number
                )
            versions = {n: v for n, v in task.versions.items() if n != number}
            self._reserve.spend(lambda: self._commit(replace(task, versions=MappingProxyType(versions))))
            self.path(name, number).unlink(missing_ok=True)
            self._reserve.fill()
            return gone

    def delete_task(self, name: str) -> TaskInfo:
        """Remove all versions. The manifest stays, so that numbers go on growing if the task comes back."""
        with self._writing, disk_errors():
            gone = self.task(name)
            self._reserve.spend(lambda: self._commit(replace(gone, versions=MappingProxyType({}), active=None)))
            shutil.rmtree(self._folder(name) / "versions", ignore_errors=True)
            self._reserve.fill()
            return gone

    def _folder(self, name: str) -> Path:
        if not is_task_name(name):
            raise BadTaskName(
                f"'{name[:80]}' is not a task name; use 1 to 64 of a-z, 0-9, '.', '_' and '-', first a letter or digit",
                field="task", got=name[:80],
            )  # fmt: skip
        return self.root / "tasks" / name

    def _check_room(self, task: TaskInfo) -> None:
        if not task.versions and sum(bool(t.versions) for t in self._tasks.values()) >= self._max_tasks:
            raise NoRoom(
                f"the server holds {self._max_tasks} tasks, its limit (max_tasks); delete one",
                field="max_tasks", limit=self._max_tasks,
            )  # fmt: skip
        if len(task.versions) >= self._max_versions:
            raise NoRoom(
                f"task '{task.name}' has {self._max_versions} versions, the limit (max_versions_per_task); delete some",
                field="max_versions_per_task", limit=self._max_versions,
            )  # fmt: skip

    def _take_back(self, info: VersionInfo, *, whole_task: bool) -> None:
        """Remove what a publish left behind that failed before its manifest was there."""
        path = self.path(info.task, info.number)
        with suppress(OSError):
            path.unlink(missing_ok=True)
            if whole_task:
                path.parent.rmdir()
                path.parent.parent.rmdir()

    def _commit(self, info: TaskInfo) -> None:
        """Replace the manifest in one durable rename, then the memory."""
        folder = self._folder(info.name)
        versions = {str(n): {k: v for k, v in asdict(x).items() if k not in ("task", "number")}
                    for n, x in info.versions.items()}  # fmt: skip
        text = json.dumps({"next": info.next, "active": info.active, "versions": versions}, indent=1)
        handle, temporary = tempfile.mkstemp(dir=self.root / "staging", suffix=".manifest")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(folder / "manifest.json")
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(folder)
        self._tasks[info.name] = info

    def _recover_task(self, folder: Path) -> list[str]:
        if not is_task_name(folder.name) or not folder.is_dir():
            return [self._set_aside(folder, "it is not a task's folder")]
        manifest = folder / "manifest.json"
        try:
            task = _parse(folder.name, manifest.read_bytes())
        except FileNotFoundError:
            return [self._set_aside(folder, "it has no manifest, so nothing in it was ever published")]
        except ValueError as error:
            return [self._set_aside(folder, f"its manifest cannot be read ({error})")]
        said = []
        for number, info in task.versions.items():
            path = self.path(task.name, number)
            if not path.is_file() or path.stat().st_size != info.size:
                said.append(f"version {number} of '{task.name}' is missing or has another size; it is not served")
                task = replace(task, versions={n: v for n, v in task.versions.items() if n != number})
        for path in sorted((folder / "versions").iterdir()) if (folder / "versions").is_dir() else []:
            match = re.fullmatch(r"([1-9]\d*)\.safetensors", path.name)
            if match is None or int(match[1]) not in task.versions:
                said.append(self._set_aside(path, "no manifest names it"))
        active = task.active if task.active in task.versions else None
        self._tasks[task.name] = replace(task, versions=MappingProxyType(dict(task.versions)), active=active)
        return said

    def _set_aside(self, path: Path, why: str) -> str:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        aside = self.root / "quarantine" / f"{stamp}-{path.parent.name}-{path.name}"[:200]
        return _tidied(lambda: path.replace(aside), f"set aside {path.relative_to(self.root)}: {why}")


def _prepare(root: Path) -> TextIO:
    """Make the folders and open the lock; a read-only disk that has them already will do for serving."""
    try:
        for folder in ("tasks", "staging", "quarantine"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        return (root / "lock").open("w")
    except OSError as error:
        if error.errno != errno.EROFS or not (root / "tasks").is_dir():
            raise
        return (root / "lock").open()


def _tidied(action: Callable[[], object], sentence: str) -> str:
    """The sentence for something found wrong at start, or that the disk did not let it be mended."""
    try:
        action()
    except OSError as error:
        return f"should have {sentence}; but the disk refuses ({error.strerror})"
    return sentence


def _parse(name: str, raw: bytes) -> TaskInfo:
    """Raises ValueError for anything that is not a manifest."""
    try:
        data = json.loads(raw)
        versions = {int(n): VersionInfo(task=name, number=int(n), **fields) for n, fields in data["versions"].items()}
        return TaskInfo(name, versions, data["active"], int(data["next"]))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _numbers(info: TaskInfo) -> str:
    return ", ".join(str(n) for n in list(info.versions)[-20:])
