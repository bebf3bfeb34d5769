"""Catalogue: which file answers for a task now, what it says of itself, and how to bring it to the bank.

It knows the repository and the file format; it does not know requests, queues or HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from adapters.bank import Bank, PackedAdapter, pack
from adapters.config import AdapterConfig
from adapters.errors import AdapterError, AdaptError, BrokenAdapter
from adapters.file import Adapter, FileLimits, read_adapter, read_header
from service.errors import UnknownVersion
from service.repository import Repository, Staging, TaskInfo, VersionInfo


@dataclass(frozen=True)
class Description:
    """What a version's header says, the number of its parameters, and whether this server can run it."""

    config: AdapterConfig
    parameters: int
    fits: bool


@dataclass(frozen=True)
class Served:
    """A version fixed for one request."""

    task: str
    version: int
    digest: str
    path: Path
    config: AdapterConfig


@dataclass(frozen=True)
class Listing:
    """A task as lists show it: the active version, or the newest if none is; ``problem`` if it cannot answer."""

    task: TaskInfo
    shown: VersionInfo
    description: Description | None
    problem: str | None


@dataclass(frozen=True)
class _Load:
    """A load of one digest; where it looks first makes no difference to who may share it."""

    catalogue: Catalogue
    digest: str
    path: Path = field(compare=False)

    def __call__(self) -> PackedAdapter:
        return self.catalogue.load(self.digest, self.path)


class Catalogue:
    """The repository's view for serving. Descriptions are kept by digest, so a known version costs no disk."""

    def __init__(self, repository: Repository, bank: Bank, limits: FileLimits, *, max_descriptions: int) -> None:
        self.repository, self._bank, self._limits = repository, bank, limits
        self.layout = bank.slabs.layout
        self._max = max_descriptions
        self._lock = threading.Lock()
        self._descriptions: OrderedDict[str, Description] = OrderedDict()

    def names(self) -> list[str]:
        """Tasks that have a version, in order."""
        return [task.name for task in self.repository.tasks() if task.versions]

    def has(self, task: str) -> bool:
        try:
            self.repository.task(task)
        except AdaptError:
            return False
        return True

    def active(self, task: str) -> int | None:
        """The active version's number, if the task is there and has one."""
        return self.repository.task(task).active if self.has(task) else None

    async def resolve(self, task: str, version: int | None = None) -> Served:
        """The active version, or the one asked for. Raises UnknownTask, UnknownVersion, or why it cannot run here."""
        info = self.repository.version(task, version)
        description = await self.describe(info)
        if not description.fits:
            self._check(description.config)
        return Served(task, info.number, info.digest, self.repository.path(task, info.number), description.config)

    async def describe(self, info: VersionInfo) -> Description:
        """What a version says of itself; from memory when its digest is known. Raises an AdapterError."""
        with self._lock:
            known = self._descriptions.get(info.digest)
            if known is not None:
                self._descriptions.move_to_end(info.digest)
                return known
        return await asyncio.to_thread(self._read_description, info)

    async def listing(self, name: str) -> Listing:
        """A task for people to see, also when its file cannot be used. Raises UnknownTask."""
        task = self.repository.task(name)
        shown = task.versions[task.active if task.active is not None else max(task.versions)]
        try:
            description = await self.describe(shown)
        except AdaptError as error:
            return Listing(task, shown, None, error.message)
        problem = None if task.active is not None else "no version is active; activate one"
        if not description.fits:
            try:
                self._check(description.config)
            except AdaptError as error:
                problem = error.message
        return Listing(task, shown, description, problem)

    def loader(self, served: Served) -> Callable[[], PackedAdapter]:
        """What the bank calls when it lacks the version; equal for all tasks that have its bytes."""
        return _Load(self, served.digest, served.path)

    def load(self, digest: str, path: Path) -> PackedAdapter:
        """Read, check and pack whichever file holds the digest's bytes now, ``path`` first. Blocks.

        Raises UnknownVersion where none is left, else an AdapterError or OSError, which names no task.
        """
        failure: Exception | None = None
        for candidate in self._files(digest, path):
            try:
                adapter = self.read(candidate)
            except FileNotFoundError:
                failure = failure or UnknownVersion("this version was deleted a moment ago")
                continue
            except (AdapterError, OSError) as error:
                failure = error.copy() if isinstance(error, AdapterError) else error
                continue
            if adapter.digest == digest:
                return self.pack(adapter)
            failure = BrokenAdapter(
                "the file of this version has changed on the server's disk; upload it again",
                expected=digest, got=adapter.digest,
            )  # fmt: skip
        assert failure is not None
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame, which must not hold it

    def _files(self, digest: str, path: Path) -> Iterator[Path]:
        """``path``, and only if that was not it the files of other versions with the same bytes."""
        yield path
        yield from (other for other in self.repository.paths(digest) if other != path)

    def read(self, path: Path) -> Adapter:
        """A file checked against this server's backbone and bounds. Blocks; raises an AdapterError."""
        return read_adapter(path, self.layout, self._limits)

    def pack(self, adapter: Adapter) -> PackedAdapter:
        """The form that this server's slots take. Blocks."""
        slabs = self._bank.slabs
        return pack(adapter, self.layout, slabs.rank, slabs.dtype, pinned=slabs.device.type == "cuda")

    def publish(self, staging: Staging, task: str, adapter: Adapter, *, activate: bool) -> tuple[VersionInfo, bool]:
        """Make a checked file a version; True if it is new. Blocks until it is durable."""
        info, created = self.repository.publish(task, staging, activate=activate)
        self._remember(info.digest, Description(adapter.config, adapter.parameters, fits=True))
        return info, created

    def open(self, task: str, version: int) -> BinaryIO:
        """A version's file. Blocks; raises UnknownVersion if it was deleted this moment."""
        try:
            return self.repository.path(task, version).open("rb")
        except FileNotFoundError as error:
            raise UnknownVersion(f"version {version} of '{task}' was deleted a moment ago", task=task) from error

    def delete_task(self, task: str) -> None:
        """Remove a task and free what its versions hold. Blocks."""
        for info in self.repository.delete_task(task).versions.values():
            self.release(info.digest)

    def delete_version(self, task: str, version: int) -> None:
        """Remove a version and free what it holds. Blocks; raises Conflict on the active one."""
        self.release(self.repository.delete_version(task, version).digest)

    def release(self, digest: str) -> None:
        """Give a digest's memory back unless some version still has those bytes."""
        if not any(v.digest == digest for task in self.repository.tasks() for v in task.versions.values()):
            self._bank.forget(digest)

    def _check(self, config: AdapterConfig) -> None:
        limits = self._limits
        self.layout.check(
            config, max_rank=limits.max_rank, max_classes=limits.max_classes, max_frames=limits.max_frames
        )

    def _read_description(self, info: VersionInfo) -> Description:
        try:
            header = read_header(self.repository.path(info.task, info.number), self._limits)
        except FileNotFoundError as error:
            raise UnknownVersion(
                f"version {info.number} of '{info.task}' was deleted a moment ago", task=info.task
            ) from error
        fits = True
        try:
            self._check(header.config)
        except AdaptError:
            fits = False
        return self._remember(info.digest, Description(header.config, header.parameters, fits))

    def _remember(self, digest: str, description: Description) -> Description:
        with self._lock:
            self._descriptions[digest] = description
            self._descriptions.move_to_end(digest)
            while len(self._descriptions) > self._max:
                self._descriptions.popitem(last=False)
        return description
