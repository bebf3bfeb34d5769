"""The file of tasks at work: each task is brought in at the start or when it is first asked for, and never twice.

It knows what is declared and what takes files; it does not know how a source is asked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapters.errors import AdaptError
from service.errors import BadTasksFile, SourceFailed
from service.messages import BROUGHT, DECLARED, Told, failed
from service.pool import heard
from service.settings import Settings
from service.sources.asking import failure
from service.sources.declared import Declaration, TasksFile, read_tasks_file
from service.sources.fetching import WORD_S, Fetcher
from service.sources.record import Record
from service.sources.taking import SOON_S, Offer, Taking, is_final
from service.store.repository import Staging

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often it looks whether the file has changed."""


class Declaring:
    """``begin``, then ``run`` until it is cancelled; ``answer`` whenever somebody asks for a task."""

    def __init__(self, settings: Settings, taking: Taking, send: Callable[[Told], None]) -> None:
        """``send`` reaches every front end. Raises BadTasksFile."""
        self._settings, self._taking, self._send = settings, taking, send
        self._file = read_tasks_file(settings)
        self._state = self._stat()
        self._fetcher = Fetcher(settings, self._file.folder)
        where = str(Path(settings.tasks_file).absolute())
        self._record = Record(settings.data_dir / "sources" / "tasks.json", where, most=2 * settings.max_tasks)
        self._under_way: dict[str, asyncio.Task[None]] = {}
        # Who waits for an answer does not stand behind all that are to be there at the start.
        self._asked, self._unasked = (asyncio.Semaphore(settings.max_source_fetches) for _ in range(2))
        self._failures: dict[str, tuple[Declaration, float, str]] = {}  # until when a source is not asked again

    async def begin(self) -> None:
        """What is to be there at the start, each tried once; what fails, or takes too long, comes later."""
        self.tell()
        tried = self._start()
        if tried:
            _, left = await asyncio.wait(tried, timeout=self._settings.source_timeout_s)
            if left:
                log.warning("%d declared tasks are still being brought in; the server begins without them", len(left))
        self._record.save()

    async def run(self) -> None:
        """For ever: follow the file, and try again what failed."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look()
                self._start()
                await asyncio.to_thread(self._record.save)
            except Exception:
                log.exception("the tasks file could not be followed; it is tried again")

    async def answer(self, task: str) -> None:
        """A front end asks for a task; all of them hear what came of it."""
        kind, held = "", dict[str, Any]()
        try:
            await self._bring(task)
        except AdaptError as error:
            message = failed(0, 0, error)
            kind, held = message.kind, message.held
        self._send(Told(BROUGHT, [task, kind, held]))

    def tell(self) -> None:
        """Let front ends know which tasks there are."""
        pinned = [name for name, one in self._file.tasks.items() if one.pinned]
        self._send(Told(DECLARED, [list(self._file.tasks), pinned]))

    async def _look(self) -> None:
        """Read the file again if it is another one."""
        state = await asyncio.to_thread(self._stat)
        if state is None or state == self._state:
            return
        self._state = state
        try:
            file = await asyncio.to_thread(read_tasks_file, self._settings)
        except BadTasksFile as error:
            log.error("%s; the tasks that were declared before stay declared", error.message)
            return
        self._change(file)

    def _change(self, file: TasksFile) -> None:
        gone = self._file.tasks.keys() - file.tasks.keys()
        new = [name for name, one in file.tasks.items() if self._file.tasks.get(name) != one]
        log.info("the tasks file has changed: %d tasks, %d of them new or different, %d not declared any more",
                 len(file.tasks), len(new), len(gone))  # fmt: skip
        self._file = file
        for name in (*gone, *new):
            self._failures.pop(name, None)
        self.tell()

    def _start(self) -> list[asyncio.Task[None]]:
        """Begin to bring in what is not for its first use alone."""
        now = time.monotonic()
        tried = []
        for name, one in self._file.tasks.items():
            before, known = self._failures.get(name), self._record.get(name) is not None
            wanted = (one.load == "start" or known) and not self._settled(one)
            if wanted and (before is None or before[1] <= now):
                tried.append(self._begun(name, self._unasked))
        return tried

    def _settled(self, one: Declaration) -> bool:
        """Whether it was brought in before: if the task is not there, somebody has deleted it since."""
        told = self._record.get(one.name)
        return told is not None and told["key"] == one.key

    async def _bring(self, task: str) -> None:
        """Have it here. Raises SourceFailed."""
        one = self._file.tasks.get(task)
        if one is None or self._settled(one):
            return  # it was taken out of the file, or deleted; the front end finds that there is no such task
        before = self._failures.get(task)
        if before is not None and before[1] > time.monotonic():
            raise failure(before[2], before[1] - time.monotonic(), task=task)
        await asyncio.shield(self._begun(task, self._asked))

    def _begun(self, task: str, room: asyncio.Semaphore) -> asyncio.Task[None]:
        """The one that brings it in; it is one for all who ask."""
        known = self._under_way.get(task)
        if known is None:
            known = self._under_way[task] = asyncio.ensure_future(self._bring_in(self._file.tasks[task], room))
            known.add_done_callback(lambda done: self._ended(task, done))
        return known

    def _ended(self, task: str, done: asyncio.Task[None]) -> None:
        del self._under_way[task]
        heard(done)

    async def _bring_in(self, one: Declaration, room: asyncio.Semaphore) -> None:
        try:
            async with room:
                digest = await self._fetch(one)
            self._record.put(one.name, {"key": one.key, "digest": digest})
            self._failures.pop(one.name, None)
        except AdaptError as error:
            raise self._failed(one, error) from None
        except Exception as error:
            log.exception("task '%s' could not be brought in", one.name)
            raise self._failed(one, SourceFailed("by a mistake of the server's own; see the log")) from error

    async def _fetch(self, one: Declaration) -> str:
        """Its digest, once the task has it. Raises what is wrong with the source or the file."""
        taking, told = self._taking, self._record.get(one.name)
        changed = told is not None and told["key"] != one.key
        offer = Offer(one.name, str(one.source), self._file.put, changed)
        known = await taking.known(one.name, one.sha256) if one.sha256 else None
        if known is not None:
            await taking.have(offer, known)
            return one.sha256
        async with taking.staging() as staging:
            await self._fetched(one, staging)
            digest = await asyncio.to_thread(staging.finish)
            one.check(digest)
            offer = Offer(offer.task, offer.origin, offer.put, changed and told["digest"] != digest)
            await taking.take(offer, staging)
        return digest

    async def _fetched(self, one: Declaration, staging: Staging) -> None:
        """Its bytes, or SourceFailed in time, whatever the libraries in between wait for."""
        seconds = self._settings.source_timeout_s
        try:
            async with asyncio.timeout(seconds + WORD_S):
                await asyncio.to_thread(self._fetcher.fetch, one.source, staging)
        except TimeoutError:
            raise SourceFailed(f"the file did not come within {seconds:g} s (source_timeout_s)") from None

    def _failed(self, one: Declaration, error: AdaptError) -> SourceFailed:
        """Remember it, for whoever asks meanwhile."""
        self._taking.failed(error)
        pause = self._settings.source_retry_s
        if not is_final(error) and not isinstance(error, SourceFailed):
            pause = min(SOON_S, pause)  # neither the source's fault nor the file's
        log.error("task '%s' is not brought in from %s: %s; it is tried again in %g s", one.name, one.source,
                  error.message, pause)  # fmt: skip
        told = f"task '{one.name}' is declared and cannot be brought in: {error.message}"
        if self._file.tasks.get(one.name) == one:  # it may be declared otherwise by now
            self._failures[one.name] = one, time.monotonic() + pause, told
        return failure(told, pause, task=one.name)

    def _stat(self) -> tuple[int, int, int] | None:
        """What tells one state of the file from the next; None while it is not there."""
        try:
            found = Path(self._settings.tasks_file).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
