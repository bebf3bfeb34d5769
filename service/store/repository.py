"""Tasks and versions on disk: atomic publish, lookups from memory, several processes at once. The folder is the truth.

A version exists if and only if its task's ``manifest.json`` names it; the manifest is replaced in one rename,
which is the only commit point: before it a failure leaves what was, after it nothing is taken back. Files are opaque
bytes here: it knows no tensors and no HTTP.

    root/tasks/<task>/manifest.json          as ``service.store.manifest`` tells
    root/tasks/<task>/versions/<n>.safetensors
    root/staging/                            uploads in progress, and the files of deleted tasks for a moment
    root/quarantine/                         what recovery set aside
    root/reserve                             given up on a full disk, so that tasks can be deleted
    root/history/                            who changed what, as ``service.store.history`` tells
    root/demo                                whether the demo's tasks were published
    root/lock, root/writing                  held by the one server that owns the folder; by whoever changes it
"""

from __future__ import annotations

import logging
import platform
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path

from adapters.errors import NoRoom
from service.errors import StorageFailed
from service.store.changes import DeleteTask, DeleteVersion, Publish, Step, activated, deactivated, only
from service.store.events import SERVER, Actor, Cause
from service.store.files import NotConfirmed, TaskFiles
from service.store.history import FILE_BYTES, MAX_BYTES, HistoryFiles
from service.store.journal import Journal
from service.store.locks import write_lock
from service.store.manifest import NO_VERSIONS, About, TaskInfo, VersionInfo
from service.store.past import Past
from service.store.recovery import load, recover
from service.store.sole import Sole
from service.store.staging import Reserve, Staging, disk_errors
from service.store.view import View

__all__ = ["Repository", "Staging", "TaskInfo", "VersionInfo"]

log = logging.getLogger(__name__)


class Repository(Sole, View):
    """Blocking; callers on an event loop use threads. Lookups read memory only and take no lock.

    Several processes may each have one over one folder, if they share the journal's buffer and one of them, or whoever
    started them, holds the ``FolderLock``. What another did is seen after ``follow``; what was acknowledged before
    ``behind`` was read is never missed.
    """

    def __init__(
        self,
        root: Path,
        journal: Journal | None = None,
        *,
        max_tasks: int = 10_000,
        max_versions: int = 1000,
        history_file_bytes: int = FILE_BYTES,
        max_history_bytes: int = MAX_BYTES,
        owner: str = "",
        server: str = "",
    ) -> None:
        """``owner`` names this process among those that share the folder, over its restarts too: no other has it.

        ``server`` is the server's name, for the history.
        """
        super().__init__(root, journal if journal is not None else Journal(bytearray(Journal.SIZE)))
        self._max_tasks, self._max_versions, self.owner = max_tasks, max_versions, owner
        self._writing = threading.Lock()  # this process's one writer, which then takes the folder's lock too
        self._remover = ThreadPoolExecutor(1, "remover")
        self._removal: Future[None] | None = None  # the last one; those before it are done when it is
        self._closed = False
        self._server = server or platform.node()
        self._history = HistoryFiles(root, file_bytes=history_file_bytes, max_bytes=max_history_bytes)
        self.past = Past(self._history, self)
        self._files, self._reserve = TaskFiles(root, owner), Reserve(root, owner)
        with disk_errors():
            self._files.prepare()

    def close(self) -> None:
        """Stop what it does beside its callers."""
        self._closed = True
        self._remover.shutdown()

    def recover(self) -> list[str]:
        """Read the folder and tidy it, before others use it: what no manifest names is set aside.

        Returns one sentence per thing found wrong.
        """
        with self._begin():
            return self._scan(lambda: recover(self.root))

    def load(self) -> list[str]:
        """Read the folder while others use it: nothing is moved, and this owner's left-overs are removed.

        Returns one sentence per thing found wrong.
        """
        with self._begin():
            pass  # the scan needs no lock
        with disk_errors():
            return self._scan(lambda: load(self.root, self.owner))

    def open_staging(self, max_bytes: int) -> Staging:
        """A file to write an upload into. What was deleted before has made room by then."""
        if self._removal is not None:
            self._removal.result()
        with disk_errors():
            return Staging(self.root / "staging", max_bytes, self.owner)

    def path(self, name: str, number: int) -> Path:
        """Where a version's file is; ``name`` is checked, so it cannot leave the folder."""
        return self._files.path(name, number)

    def paths(self, digest: str, most: int) -> list[Path]:
        """Files with those bytes, of whatever tasks, at most so many; each may be deleted a moment later."""
        while True:
            with suppress(RuntimeError):  # a writer has changed them in this moment
                return [self.path(name, number) for name, number in list(islice(self._digests.get(digest, ()), most))]

    def publish(
        self, name: str, staging: Staging, *, activate: bool = True, about: str | None = None, by: Actor = SERVER
    ) -> tuple[VersionInfo, bool]:
        """Make a staged file a version, durable before this returns; True if it is new.

        The same bytes again are the version they already are. ``about``, the JSON text of an object, is kept for lists.
        Every change is in the history as made ``by`` whoever asked for it.
        Raises NoRoom, BadTaskName or a storage error; where its fact ``changed`` is True, the version is there.
        """
        publish = Publish(name, staging.finish(), staging.size, activate, about, self._check_room)
        with self._change():
            old = self._settled(name)
            new = publish(old)
            info, cause = publish.version_of(new), Cause(by, self._server)
            if not publish.created:
                if new is not old:
                    self._commit(self._history.record(old, new, cause))
                return info, False
            try:
                self._files.place(staging, info, first=not old.versions)
                self._commit(self._history.record(old, new, cause))
            except NotConfirmed:
                raise
            except BaseException:
                self._files.take_back(info, whole_task=name not in self._tasks)
                raise
            return info, True

    def learn(self, name: str, digest: str, about: str) -> None:
        """Keep what was found out about the version that lists show; it is written when the task next changes."""
        with self._indexing:
            task = self._tasks.get(name)
            if task is not None:
                self._tasks[name] = task.telling(About(digest, about))

    def activate(self, name: str, number: int, about: str | None = None, *, by: Actor = SERVER) -> VersionInfo:
        """Roll back or forward. Raises UnknownTask or UnknownVersion."""
        step = partial(activated, number=number, about=about)
        return only(self._changed(name, step, Cause(by, self._server))).version(name, number)

    def deactivate(self, name: str, *, by: Actor = SERVER) -> None:
        """Let no version answer until one is activated; all are kept. Raises UnknownTask."""
        self._changed(name, deactivated, Cause(by, self._server))

    def revise(self, name: str, step: Step, *, by: Actor = SERVER, why: str | None = None) -> TaskInfo:
        """Make a change that concerns which version answers, of ``service.store.changes``; raises what that does."""
        return self._changed(name, step, Cause(by, self._server, why))

    def delete_version(self, name: str, number: int, *, by: Actor = SERVER) -> VersionInfo:
        """Raises Conflict on the active version. A request that is still loading the file has it open or fails."""
        delete = DeleteVersion(number)
        self._changed(name, delete, Cause(by, self._server))
        return delete.gone

    def delete_task(self, name: str, *, by: Actor = SERVER) -> TaskInfo:
        """Remove all versions. The manifest stays, so that numbers go on growing if the task comes back.

        The files go after this returns, beside whatever comes next.
        """
        delete = DeleteTask()
        self._changed(name, delete, Cause(by, self._server))
        return delete.gone

    def _changed(self, name: str, step: Step, cause: Cause) -> TaskInfo:
        """Make a change that must work on a full disk too; the task with it. ``step`` says what, or raises why not."""
        with self._change():
            old = self._settled(name)
            new = step(old)
            if new is not old:
                self._reserve.spend(lambda: self._commit(self._history.record(old, new, cause)))
                self._let_go(old)
                self._reserve.fill()
            return self._tasks[name]

    def _let_go(self, old: TaskInfo) -> None:
        """Remove the files of versions that the task has no more."""
        kept = self._tasks[old.name].versions
        if old.versions and not kept:
            aside = self._files.move_away(old.name)
            if aside is not None:
                with suppress(RuntimeError):  # the server stops; the next start removes them
                    self._removal = self._remover.submit(self._remove, old.name, aside)
        for number in old.versions.keys() - kept.keys() if kept else ():
            try:
                self.path(old.name, number).unlink(missing_ok=True)
            except OSError as error:
                log.warning("deleted version %d of '%s' leaves its file (%s)", number, old.name, error.strerror)

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
        with suppress(OSError), self._writing, write_lock(self.root):
            self._reserve.fill()

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Be the folder's one writer, who knows all that was written before."""
        with self._writing, disk_errors(), write_lock(self.root):
            self._mend_journal()
            self.follow()
            yield

    @contextmanager
    def _begin(self) -> Iterator[None]:
        """Be the only one who might write, also where nobody can: a read-only disk is served too."""
        with self._writing, disk_errors(), ExitStack() as stack:
            with suppress(OSError):
                stack.enter_context(write_lock(self.root))
                self._mend_journal()
                self._reserve.fill()
            yield

    def _mend_journal(self) -> None:
        """A writer that was killed may have committed what it could not tell any more."""
        if self._journal.begun:
            self._journal.append(self._journal.begun, confirmed=False)

    def _settled(self, name: str) -> TaskInfo:
        """The task before a change, deleted or not; a change that the disk never confirmed is written again first."""
        self._files.folder(name)
        if name in self._sealed:
            with self._indexing:
                self._reread(name)
        if name in self._sealed:
            raise StorageFailed(f"task '{name}' cannot be changed: {self._sealed[name]}; see the log")
        task = self._tasks.get(name) or TaskInfo(name, NO_VERSIONS, None, 1)
        if name in self._unconfirmed and name in self._tasks:
            try:
                self._reserve.spend(lambda: self._commit(task))
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

    def _commit(self, task: TaskInfo) -> None:
        """Replace the manifest, then the memory, which agrees with the disk also where that failed after the rename.

        When this returns, or raises NotConfirmed, every other process knows that it is behind.
        """
        self._journal.begin(task.name)
        try:
            self._files.write_manifest(task)
        except NotConfirmed:
            self._unconfirmed.add(task.name)
            self._tell(task, confirmed=False)
            raise
        except OSError:
            self._journal.begin("")
            raise
        self._unconfirmed.discard(task.name)
        self._tell(task, confirmed=True)
