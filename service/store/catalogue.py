"""Catalogue: which file answers for a task now, and what it says of itself.

It knows the repository and the file format; it does not know requests, queues or HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from adapters.config import AdapterConfig
from adapters.errors import AdaptError
from adapters.header import Header, check_header, read_header
from adapters.layout import Layout
from adapters.limits import FileLimits
from service.errors import StorageFailed, UnknownTask, UnknownVersion
from service.store.descriptions import Description, Descriptions, Summary
from service.store.events import Actor
from service.store.repository import Repository, Staging, TaskInfo, VersionInfo

T = TypeVar("T")

MOST_FILES = 4
"""Files that a load may look into: the version's own may be deleted meanwhile, and as many others hardly will."""


@dataclass(frozen=True)
class Served:
    """A version fixed for one request; ``rule`` is the task as it was, where its traffic or shadow had a say in it."""

    task: str
    version: int
    digest: str
    path: Path
    config: AdapterConfig
    rule: TaskInfo | None = None


@dataclass(frozen=True)
class Listing:
    """A task as lists show it: the active version, or the newest if none is; ``problem`` if it cannot answer.

    ``config`` is None where the file cannot be read; in a page it has the first labels alone, of ``classes``.
    """

    task: TaskInfo
    shown: VersionInfo
    config: AdapterConfig | None
    classes: int | None
    parameters: int | None
    accuracy: float | None
    problem: str | None


class Elsewhere(Protocol):
    """Tasks that can be had, and are not here yet."""

    @property
    def names(self) -> Collection[str]: ...

    @property
    def pinned(self) -> Sequence[str]:
        """Those that are to stay on the device once they are here."""

    async def bring(self, task: str) -> None:
        """Have it here. Raises what keeps it away."""


class Catalogue:
    """The repository's view for serving. Descriptions are kept by digest, so a known version costs no disk."""

    def __init__(
        self, repository: Repository, layout: Layout, limits: FileLimits, on_gone: Callable[[str], None], *,
        cache_bytes: int, elsewhere: Elsewhere | None = None,
    ) -> None:  # fmt: skip
        """``on_gone`` is told each digest that no version has any more; ``elsewhere`` has what can be brought."""
        self._elsewhere = elsewhere
        self.repository, self.layout, self._limits = repository, layout, limits
        self._on_gone = on_gone
        self._descriptions = Descriptions(cache_bytes)

    async def catch_up(self) -> None:
        """See what other processes of this server have acknowledged up to now; from memory where that is nothing."""
        if self.repository.behind:
            await asyncio.to_thread(self.repository.follow)

    def names(self) -> Sequence[str]:
        """Tasks that have a version, in order."""
        return self.repository.names

    def has(self, task: str) -> bool:
        try:
            self.repository.task(task)
        except AdaptError:
            return False
        return True

    def active(self, task: str) -> int | None:
        """The active version's number, if the task is there and has one."""
        return self.repository.task(task).active if self.has(task) else None

    def tasks_of(self, digests: Set[str]) -> Mapping[str, list[str]]:
        """The tasks that each of these is the active version of; looks at all tasks, off the event loop."""
        found: dict[str, list[str]] = {}
        for name in self.names():
            with suppress(AdaptError):  # deleted meanwhile
                task = self.repository.task(name)
                version = task.versions.get(task.active or 0)
                if version is not None and version.digest in digests:
                    found.setdefault(version.digest, []).append(name)
        return found

    async def run(self, work: Callable[[], T]) -> T:
        """Do what changes something, which blocks, off the event loop."""
        return await self.repository.run(work)

    async def see(self, generation: int) -> None:
        """See what any server of the store has acknowledged up to that change. Raises BadRequest and more."""
        if not self.repository.sees(generation):
            await self.repository.run(lambda: self.repository.see(generation))

    async def look_for(self, task: str, version: int) -> None:
        """See a version that another server may have published a moment ago, if it is not known here."""
        if self.repository.follows and not self._knows(task, version):
            await self.repository.run(lambda: self.repository.look(task))

    async def bring_again(self, versions: Iterable[Served]) -> bool:
        """Have files at hand that an engine did not find, or found wrong; False if that changes nothing."""
        brought = False
        for served in versions:
            with suppress(UnknownTask, UnknownVersion):
                info = self.repository.version(served.task, served.version)
                if info.digest == served.digest:
                    self.repository.doubt(info.digest)
                    brought = await self.repository.bring(info) or brought
        return brought

    def _knows(self, task: str, version: int) -> bool:
        with suppress(UnknownTask):
            return version in self.repository.task(task).versions
        return False

    async def find(self, task: str, version: int | None = None) -> VersionInfo:
        """The active version, or the one asked for. Raises UnknownTask, UnknownVersion or SourceFailed."""
        if version is not None:
            await self.look_for(task, version)
        if self._elsewhere is not None and task in self._elsewhere.names and not self.has(task):
            await self._elsewhere.bring(task)
            await self.catch_up()
        return self.repository.version(task, version)

    async def resolve(self, task: str, version: int | None = None) -> Served:
        """The active version, or the one asked for. Raises UnknownTask, UnknownVersion, or why it cannot run here."""
        info = await self.find(task, version)
        description = await self.describe(info)
        if not description.fits:
            self._check(description.config)
        return Served(task, info.number, info.digest, self.repository.path(task, info.number), description.config)

    async def describe(self, info: VersionInfo) -> Description:
        """What a version says of itself; from memory when its digest is known. Raises an AdapterError."""
        known = self._descriptions.get(info.digest)
        if known is None:
            await self.repository.bring(info)
            known = await asyncio.to_thread(self._read_description, info)
        return known

    async def listing(self, name: str) -> Listing:
        """A task for people to see, whole, also when its file cannot be used. Raises UnknownTask."""
        task = self.repository.task(name)
        try:
            known = await self.describe(task.shown)
        except AdaptError as error:
            if self.repository.task(name) is not task:  # changed while its file was read
                return await self.listing(name)
            return Listing(task, task.shown, None, None, None, None, error.message)
        return self._listed(task, known.config, len(known.config.labels), known)

    def listings(self, names: Iterable[str]) -> Iterator[Listing]:
        """Tasks as a page shows them, without those that are gone by now. Blocks where a manifest tells too little."""
        for name in names:
            with suppress(UnknownTask):
                yield self._short_listing(name)

    def files(self, served: Served) -> tuple[str, ...]:
        """Where the version's bytes are: its own file, then some of other versions that have the same."""
        own = str(served.path)
        others = (str(path) for path in self.repository.paths(served.digest, MOST_FILES))
        return (own, *(other for other in others if other != own))

    def check(self, path: Path) -> Header:
        """A file's header, held against this server's backbone and bounds. Blocks; raises an AdapterError."""
        return check_header(path, self.layout, self._limits)

    def publish(
        self, staging: Staging, task: str, header: Header, *, activate: bool, by: Actor
    ) -> tuple[VersionInfo, bool]:  # fmt: skip
        """Make a checked file a version; True if it is new. Blocks until it is durable."""
        description = Description.of(header, fits=True)
        about = Summary.of(description).text()
        info, created = self.repository.publish(task, staging, activate=activate, about=about, by=by)
        self._descriptions.keep(info.digest, description)
        return info, created

    def activate(self, task: str, version: int, by: Actor) -> None:
        """Let a version answer. Blocks; raises UnknownTask or UnknownVersion."""
        info = self.repository.version(task, version)
        about = None
        with suppress(AdaptError):  # a file that cannot be read may be activated; lists tell what is wrong with it
            known = self._descriptions.get(info.digest) or self._read_description(info)
            about = Summary.of(known).text()
        self.repository.activate(task, version, about, by=by)

    def deactivate(self, task: str, by: Actor) -> None:
        """Let a task answer no more until a version is activated. Blocks; raises UnknownTask."""
        self.repository.deactivate(task, by=by)

    def open(self, task: str, version: int) -> BinaryIO:
        """A version's file. Blocks; raises UnknownVersion if it was deleted this moment."""
        try:
            return self.repository.path(task, version).open("rb")
        except FileNotFoundError as error:
            raise UnknownVersion(f"version {version} of '{task}' was deleted a moment ago", task=task) from error

    def delete_task(self, task: str, by: Actor) -> None:
        """Remove a task and free what its versions hold. Blocks."""
        for info in self.repository.delete_task(task, by=by).versions.values():
            self.release(info.digest)

    def delete_version(self, task: str, version: int, by: Actor) -> None:
        """Remove a version and free what it holds. Blocks; raises Conflict on the active one."""
        self.release(self.repository.delete_version(task, version, by=by).digest)

    def release(self, digest: str) -> None:
        """Give a digest's memory back unless some version still has those bytes."""
        if not self.repository.holds(digest):
            self._on_gone(digest)
            self._descriptions.forget(digest)

    def _check(self, config: AdapterConfig) -> None:
        self.layout.check(config, **self._limits.of_config)

    def _read_description(self, info: VersionInfo) -> Description:
        self.repository.bring_now(info)
        header = self.header(info)
        description = Description.of(header, fits=self._misfit(header.config) is None)
        self._descriptions.keep(info.digest, description)
        return description

    def header(self, info: VersionInfo) -> Header:
        """All that a version's file says of itself, read from the disk. Blocks; raises an AdapterError and more."""
        try:
            return read_header(self.repository.path(info.task, info.number), self._limits)
        except FileNotFoundError as error:
            raise UnknownVersion(
                f"version {info.number} of '{info.task}' was deleted a moment ago", task=info.task
            ) from error
        except OSError as error:
            raise StorageFailed(
                f"the file of version {info.number} of '{info.task}' cannot be read ({error.strerror})", task=info.task
            ) from error

    def _short_listing(self, name: str) -> Listing:
        task = self.repository.task(name)
        try:
            summary = self._summary(task)
        except AdaptError as error:
            if self.repository.task(name) is not task:
                return self._short_listing(name)
            return Listing(task, task.shown, None, None, None, None, error.message)
        return self._listed(task, summary.config, summary.classes, summary)

    def _summary(self, task: TaskInfo) -> Summary:
        """From the manifest; from the file where that is older than summaries, and kept for the next time."""
        told = task.told
        summary = Summary.read(told) if told is not None else None
        if summary is None:
            shown = task.shown
            known = self._descriptions.get(shown.digest) or self._read_description(shown)
            summary = Summary.of(known)
            self.repository.learn(task.name, shown.digest, summary.text())
        return summary

    def _listed(self, task: TaskInfo, config: AdapterConfig, classes: int, known: Description | Summary) -> Listing:
        problem = None if task.active is not None else "no version is active; activate one"
        whole = config if classes == len(config.labels) else config.model_copy(update={"labels": ("",) * classes})
        misfit = self._misfit(whole)
        return Listing(task, task.shown, config, classes, known.parameters, known.accuracy, misfit or problem)

    def _misfit(self, config: AdapterConfig) -> str | None:
        """Why this server cannot run it, if it cannot."""
        try:
            self._check(config)
        except AdaptError as error:
            return error.message
        return None
