"""Stocks: tasks and their versions' bytes, in a folder of one server or a store that several share, for care of them.

``service.store.care`` says what is done with them.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from adapters.config import is_task_name
from service.errors import StorageFailed
from service.store.events import COPIED, Actor, Cause, TaskEvent
from service.store.files import TaskFiles
from service.store.history import HistoryFiles
from service.store.manifest import NO_VERSIONS, TaskInfo, VersionInfo, parse
from service.store.objects import CHUNK_BYTES, Missing, Preceded, is_remote, open_objects
from service.store.packs import SharedHistory
from service.store.past import Announced
from service.store.staging import Staging, disk_errors
from service.store.truth import Truth

TIMEOUT_S, RETRIES = 60.0, 5
"""Of one request: nobody waits for it but whoever typed the command."""


class Stock(Protocol):
    """Tasks and their versions' bytes, wherever they are."""

    def names(self) -> list[str]:
        """Every task that ever was."""
        ...

    def task(self, name: str) -> TaskInfo | None:
        """None where it never was. Raises StorageFailed where it cannot be read."""
        ...

    def read(self, version: VersionInfo) -> Iterator[bytes]:
        """The bytes of a version, unchecked. Raises Missing."""
        ...

    @property
    def announced(self) -> Announced:
        """What was done to them."""
        ...

    def add(self, task: TaskInfo, files: dict[int, Path], past: Sequence[TaskEvent]) -> None:
        """Have a task that never was here, with its past, oldest first. Raises Preceded where it was."""
        ...


class FolderStock:
    """The data folder of one server; ``add`` is for the holder of its lock."""

    def __init__(self, root: Path) -> None:
        self._root, self._files, self.announced = root, TaskFiles(root, "store-copy"), HistoryFiles(root)

    def names(self) -> list[str]:
        try:
            return sorted(folder.name for folder in (self._root / "tasks").iterdir() if is_task_name(folder.name))
        except FileNotFoundError:
            return []

    def task(self, name: str) -> TaskInfo | None:
        try:
            return parse(name, (self._root / "tasks" / name / "manifest.json").read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StorageFailed(f"the manifest of task '{name}' cannot be read ({error})", task=name) from error

    def read(self, version: VersionInfo) -> Iterator[bytes]:
        try:
            with self._files.path(version.task, version.number).open("rb") as file:
                while part := file.read(CHUNK_BYTES):
                    yield part
        except FileNotFoundError as error:
            raise Missing from error

    def add(self, task: TaskInfo, files: dict[int, Path], past: Sequence[TaskEvent]) -> None:
        with disk_errors():
            self._files.prepare()
            if (self._root / "tasks" / task.name).exists():
                raise Preceded
            for version in task.versions.values():
                staging = Staging(self._root / "staging", version.size, "store-copy")
                with files[version.number].open("rb") as file:
                    while part := file.read(CHUNK_BYTES):
                        staging.write(part)
                staging.finish()
                self._files.place(staging, version, first=True)
            (self._root / "tasks" / task.name).mkdir(exist_ok=True)
            self.announced.bring(task.name, past)
            new = replace(task, log=(), mark=None)
            old = TaskInfo(task.name, NO_VERSIONS, None, 1)
            self._files.write_manifest(self.announced.record(old, new, _copied(task, past)))


class SharedStock:
    """A store that several servers share."""

    def __init__(self, truth: Truth) -> None:
        self.truth, self.announced = truth, SharedHistory(truth)

    def names(self) -> list[str]:
        return sorted(name for name, _ in self.truth.marks())

    def task(self, name: str) -> TaskInfo | None:
        return self.truth.task(name)

    def read(self, version: VersionInfo) -> Iterator[bytes]:
        return self.truth.blob(version.digest)

    def add(self, task: TaskInfo, files: dict[int, Path], past: Sequence[TaskEvent]) -> None:
        for version in task.versions.values():
            if not self.truth.has_blob(version.digest):
                self.truth.put_blob(version.digest, files[version.number])
        self.announced.bring(task.name, past)
        self.truth.write(task, _copied(task, past))


def _copied(task: TaskInfo, past: Sequence[TaskEvent]) -> Cause:
    detail = {"versions": len(task.versions), "events": len(past)}
    return Cause(Actor(origin="cli"), platform.node(), what=COPIED, detail=detail)


def stock(store: str, *, make: bool = False) -> Stock:
    """The store of that address, or the data folder of that path. Raises StoreRefused and more.

    A shared store that is none yet becomes one where that is meant by ``make``.
    """
    if is_remote(store):
        truth = Truth(open_objects(store, timeout_s=TIMEOUT_S, retries=RETRIES))
        truth.identity(make=make)
        return SharedStock(truth)
    if not make and not (Path(store) / "tasks").is_dir():
        raise StorageFailed(f"{store} is no data folder: it has no folder 'tasks'")
    return FolderStock(Path(store))
