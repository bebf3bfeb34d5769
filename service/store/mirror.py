"""A mirror: what ``Repository`` offers, of tasks whose truth is a store that several servers share.

Each server keeps the manifests of all tasks, and the files of some, in a folder of its own, by which its processes see
changes as they see those of a plain folder; it may be removed while the server is stopped. A change is made in the
store first and then here. What others change, ``service.store.follower`` brings here.

    data/mirror/tasks/<task>/manifest.json   as in the store, with the mark of its state
    data/mirror/blobs/<sha256>               files of versions, within ``store_cache_bytes``
    data/mirror/staging/, store              uploads and fetches in progress; which store this is of
"""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from adapters.atomic import replacing
from adapters.config import is_task_name
from service.errors import BadRequest, StoreAway, StoreRefused
from service.pool import Pool
from service.store.blobs import Blobs
from service.store.changes import Publish, Step
from service.store.events import SERVER, Actor, Cause
from service.store.journal import Journal
from service.store.manifest import NO_VERSIONS, TaskInfo, VersionInfo, parse, render
from service.store.packs import SharedHistory
from service.store.past import Past
from service.store.recovery import Recovered
from service.store.repository import Repository
from service.store.staging import Staging, disk_errors, left_by
from service.store.truth import Truth

T = TypeVar("T")
log = logging.getLogger(__name__)

AWAY_S = 5.0
"""So long after the store was last heard of, uploads are refused before their body is read."""
MOST_MISSED = 256  # changes that a request catches up with itself; who is further behind waits for the follower
WORKERS = 8
"""Threads that wait for the store, apart from those that requests need."""


class Mirror(Repository):
    """See ``Repository``; a publish, activation or deletion may raise StoreAway and StoreRefused too."""

    follows = True

    def __init__(
        self,
        root: Path,
        truth: Truth,
        journal: Journal | None = None,
        *,
        max_tasks: int = 10_000,
        max_versions: int = 1000,
        max_bytes: int = 10 * 2**30,
        max_waiting: int = 64,
        owner: str = "",
        server: str = "",
    ) -> None:
        """``max_bytes`` bounds the files at hand, ``max_waiting`` what waits for a thread to ask the store."""
        super().__init__(root, journal, max_tasks=max_tasks, max_versions=max_versions, owner=owner, server=server)
        self.truth = truth
        self.past = Past(SharedHistory(truth, lambda: self.store_seen), self)
        self._seen_here = 0  # what requests made this process see, beyond what the follower has told
        self._open: dict[int, str] = {}  # but for these, which were announced and not made when they were looked for
        self._seeing = threading.Lock()
        with disk_errors():
            (root / "blobs").mkdir(exist_ok=True)
        self._blobs = Blobs(root / "blobs", root / "staging", truth.blob, max_bytes=max_bytes, owner=owner)
        self._pool = Pool("store", workers=WORKERS, max_waiting=max_waiting, setting="max_store_waiting")

    def close(self) -> None:
        self._pool.close()
        super().close()

    def is_of(self, identity: str, *, serving: bool) -> None:
        """Forget all if it is the mirror of another store. Raises StoreRefused where others are ``serving`` from it."""
        file = self.root / "store"
        with disk_errors():
            known = file.read_text() if file.exists() else ""
            if known == identity:
                return
            if known and serving:
                raise StoreRefused("the store is not the one that this server knows; start the server again")
            if known:
                log.warning("%s is of another store; what it holds is removed, and fetched anew", self.root)
            for folder in ("tasks", "blobs") if known else ():
                shutil.rmtree(self.root / folder, ignore_errors=True)
                (self.root / folder).mkdir(exist_ok=True)
            with replacing(file) as temporary:
                temporary.write_text(identity)
        self.load()

    def recover(self) -> list[str]:
        with disk_errors():
            for left in (self.root / "staging").iterdir():
                left.unlink(missing_ok=True)
        return self.load()

    def load(self) -> list[str]:
        with disk_errors():
            for left in (self.root / "staging").iterdir():
                if self.owner and left.name.startswith(left_by(self.owner)):
                    left.unlink(missing_ok=True)
            return self._scan(self._found)

    def path(self, name: str, number: int) -> Path:
        info = self._tasks.get(name)
        version = info.versions.get(number) if info is not None else None
        return self._blobs.path(version.digest if version is not None else "gone")

    def paths(self, digest: str, most: int) -> list[Path]:
        return [self._blobs.path(digest)][:most]

    def generation(self, name: str) -> int | None:
        """The number of the task's last change, deleted or not; whoever has seen it sees that change."""
        info = self._tasks.get(name)
        return info.generation if info is not None else 0

    def marks(self) -> dict[str, tuple[str, str]]:
        """The state of each task that is known here."""
        return {name: task.mark for name, task in self._tasks.copy().items() if task.mark is not None}

    def lose(self, names: Iterable[str]) -> None:
        """Forget tasks whose manifests somebody took out of the store by hand."""
        for name in names:
            log.error("the store has no manifest of task '%s' any more; it is not served", name)
            with self._change():
                old = self._tasks[name]
                self._commit(replace(old.emptied(), log=(), mark=None))
                self._let_go(old)

    def heard(self, seen: int) -> None:
        """The store answered, and everything up to that change is here. For the follower."""
        self._journal.heard(seen)

    @property
    def store_age(self) -> float:
        return self._journal.store_age

    @property
    def store_seen(self) -> int:
        return self._journal.store_seen

    def open_staging(self, max_bytes: int) -> Staging:
        """Raises StoreAway, before a body is read in vain."""
        self._check_there()
        return super().open_staging(max_bytes)

    async def run(self, work: Callable[[], T]) -> T:
        """On threads of its own: a store that is slow must hold up nothing but what asks for it."""
        return await asyncio.wrap_future(self._pool.submit(work))

    async def bring(self, info: VersionInfo) -> bool:
        """Have a version's file at hand; True if it was not. Raises StoreAway and more."""
        return await self.run(lambda: self._blobs.bring(info.digest, info.size))

    def bring_now(self, info: VersionInfo) -> None:
        self._blobs.bring(info.digest, info.size)

    def doubt(self, digest: str) -> None:
        self._blobs.doubt(digest)

    def look(self, name: str) -> None:
        """See a task as it is in the store this moment."""
        if not is_task_name(name):
            return
        found = self.truth.task(name)
        if found is not None:
            self.adopt([found])

    def see(self, generation: int) -> None:
        """See every change up to that one that was acknowledged. Raises BadRequest if there is none of that number."""
        if self.sees(generation):
            return
        name = self.truth.announced(generation)
        if name is None:
            raise BadRequest(
                f"no change has the number {generation}; send the X-AdaptServe-Generation that an answer had",
                field="X-AdaptServe-Generation", got=generation,
            )  # fmt: skip
        seen = max(self._journal.store_seen, self._seen_here)
        if generation - seen > MOST_MISSED:
            raise StoreAway(f"this server is {generation - seen} changes behind the store; try again in a moment")
        named = {number: self.truth.announced(number) or "" for number in range(seen + 1, generation)}
        named[generation] = name
        for one in sorted(set(named.values())):
            self.look(one)
        with self._seeing:
            named, store = self._open | named, self._journal.store_seen
            self._open = {n: one for n, one in named.items() if one and n > store and (self.generation(one) or 0) < n}
            self._seen_here = max(self._seen_here, generation)

    def sees(self, generation: int) -> bool:
        """Whether ``see`` has nothing to do."""
        if generation <= self._journal.store_seen:
            return True
        return generation <= self._seen_here and generation not in self._open

    def adopt(self, tasks: Iterable[TaskInfo]) -> None:
        """Have tasks here as the store has them, unless what is here is later."""
        newer = [task for task in tasks if self._is_newer(task)]
        with self._change() if newer else nullcontext():
            for task in newer:
                if self._is_newer(task):
                    old = self._tasks.get(task.name)
                    self._commit(task if old is None or task.told is not None else task.telling(old.about))
                    self._let_go(old)

    def publish(
        self, name: str, staging: Staging, *, activate: bool = True, about: str | None = None, by: Actor = SERVER
    ) -> tuple[VersionInfo, bool]:
        digest = staging.finish()
        self._files.folder(name)
        self.truth.put_blob(digest, staging.path)
        self._blobs.keep(staging.path, digest)
        publish = Publish(name, digest, staging.size, activate, about, self._check_room)
        task = self._changed(name, publish, Cause(by, self._server))
        if not self.truth.has_blob(digest):  # somebody tidied the store in this very moment
            self.truth.put_blob(digest, self._blobs.path(digest))
        return publish.version_of(task), publish.created

    def _check_there(self) -> None:
        """Raises StoreAway where the store was not heard of for so long that nothing will be changed there now."""
        age = self._journal.store_age
        if age > AWAY_S:
            since = "has not answered yet" if math.isinf(age) else f"has not answered for {age:.0f} s"
            raise StoreAway(
                f"the store {since}, so nothing can be changed; what is known is served. Try again in a moment"
            )

    def _changed(self, name: str, step: Step, cause: Cause) -> TaskInfo:
        self._check_there()
        task = self.truth.change(name, self._tasks.get(name), self._journal.store_seen, step, cause)
        with _made_anyway():
            self.adopt([task])
        return task

    def _commit(self, task: TaskInfo) -> None:
        """Without waiting for the disk: what a power cut takes is fetched again."""
        folder = self._files.folder(task.name)
        temporary = self.root / "staging" / f"{left_by(self.owner)}{task.name}.manifest"
        self._journal.begin(task.name)
        folder.mkdir(exist_ok=True)
        temporary.write_bytes(render(task))
        temporary.replace(folder / "manifest.json")
        self._tell(task, confirmed=True)

    def _is_newer(self, task: TaskInfo) -> bool:
        known = self._tasks.get(task.name)
        return known is None or task.generation > known.generation

    def _let_go(self, old: TaskInfo | None) -> None:
        for info in old.versions.values() if old is not None else ():
            if not self.holds(info.digest):
                self._blobs.forget(info.digest)

    def _found(self) -> Recovered:
        found = Recovered()
        for folder in sorted((self.root / "tasks").iterdir()):
            if is_task_name(folder.name):
                with suppress(OSError, ValueError):  # it is fetched again
                    task = parse(folder.name, (folder / "manifest.json").read_bytes())
                    found.tasks[task.name] = task
        return found

    def _reread(self, name: str) -> None:
        """As ``View`` has it, but the files of its versions are elsewhere."""
        if not is_task_name(name):
            return
        try:
            task = parse(name, (self._files.folder(name) / "manifest.json").read_bytes())
        except (OSError, ValueError):
            return
        old = self._tasks.get(name) or TaskInfo(name, NO_VERSIONS, None, 1)
        task = task if task.told is not None else task.telling(old.about)
        if task != old:
            self._remember(task)


@contextmanager
def _made_anyway() -> Iterator[None]:
    """The store has the change: where this server's disk does not take it, the error says that it was made."""
    try:
        yield
    except Exception as error:
        facts = getattr(error, "facts", None)
        if isinstance(facts, dict):
            facts["changed"] = True
        raise
