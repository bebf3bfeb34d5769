"""The watched folder at work: looks again and again, and lets each file that is at rest be taken.

It knows the folder and what takes files; it does not know how a version is made.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from math import inf
from pathlib import Path

from adapters.errors import AdaptError
from service.settings import Settings
from service.sources.folder import Look, State, WatchedFolder, shown, task_of, wrong
from service.sources.record import Record
from service.sources.taking import SOON_S, Offer, Taking, is_final

log = logging.getLogger(__name__)

PART = 20
"""Of the time at most one part is spent looking, however many files there are."""


class Watching:
    """``run`` until it is cancelled. What a file came to is decided by its bytes, and by what was taken before."""

    def __init__(self, settings: Settings, taking: Taking) -> None:
        self._settings, self._taking = settings, taking
        self._path = Path(settings.watch_folder).absolute()
        most = settings.max_tasks
        self._folder = WatchedFolder(self._path, max_files=most, max_bytes=settings.max_adapter_bytes)
        self._record = Record(settings.data_dir / "sources" / "folder.json", str(self._path), most=2 * most)
        self._before: Mapping[str, State] = {}
        self._done: dict[str, State] = {}  # taken or refused as they are
        self._again: dict[str, float] = {}  # when a file that was not at fault is tried once more
        self._waiting: dict[str, State] = {}
        self._first: frozenset[str] | None = None  # what lay there when this server first looked
        self._told: set[str] = set()  # beside which an error stands
        self._wake = asyncio.Event()
        self._quiet = self._crowded = self._settled = False

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._settings.max_source_fetches):
                group.create_task(self._work())
            while True:
                began = time.monotonic()
                await self._look()
                await asyncio.to_thread(self._record.save)
                await asyncio.sleep(max(self._settings.watch_every_s, PART * (time.monotonic() - began)))

    async def _look(self) -> None:
        try:
            look = await asyncio.to_thread(self._folder.look)
        except OSError as error:
            if not self._quiet:
                log.error(
                    "the watched folder %s cannot be read (%s); nothing is taken from it until it can", self._path,
                    error.strerror,
                )  # fmt: skip
            self._quiet, self._settled, self._before = True, False, {}
            return
        if self._quiet:
            log.warning("the watched folder %s can be read again", self._path)
            self._quiet = False
        self._tell_crowd(look)
        self._told = set(look.told)
        if self._first is None:
            self._first = frozenset(look.files)
        now, same = time.monotonic(), look.files == self._before and look.told <= look.files.keys()
        if self._settled and same and min(self._again.values(), default=inf) > now:
            return  # thousands of files cost little as long as nothing happens
        self._settled = same
        self._done = {name: state for name, state in self._done.items() if name in look.files}
        self._again = {name: when for name, when in self._again.items() if name in look.files}
        for name, state in look.files.items():
            at_rest = self._before.get(name) == state
            if at_rest and self._done.get(name) != state and self._again.get(name, 0.0) <= now:
                self._waiting[name] = state
        self._before = look.files
        for name in look.told - look.files.keys():
            await asyncio.to_thread(self._folder.clear, name)
        if self._waiting:
            self._wake.set()

    def _tell_crowd(self, look: Look) -> None:
        if look.more and not self._crowded:
            log.error(
                "the watched folder %s has %d files more than the server may have tasks (max_tasks, %d); they are "
                "passed over", self._path, look.more, len(look.files),
            )  # fmt: skip
        self._crowded = bool(look.more)

    async def _work(self) -> None:
        """One file after another."""
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            name = next(iter(self._waiting))
            state = self._waiting.pop(name)
            self._again[name] = inf  # it is being taken
            try:
                await self._take(name, state)
            except AdaptError as error:
                await self._failed(name, state, error)
            except OSError as error:
                self._again.pop(name, None)
                if self._before.get(name) == state:  # it has not gone meanwhile
                    await self._failed(name, state, wrong(error))
            except Exception:
                log.exception("%s in the watched folder could not be taken", shown(name))
                self._again[name] = time.monotonic() + self._settings.source_retry_s

    async def _take(self, name: str, state: State) -> None:
        """Take a file as it is; nothing is done with one that changes meanwhile: the next look finds it."""
        told = self._record.get(name)
        known = State(*told[:4]) if told else None
        if state != known:
            task, before = task_of(name), told[4] if told else ""
            digest = await self._bytes(name, task, state, before, known)
            if digest is None:
                self._again.pop(name, None)
                self._settled = False
                return
            self._record.put(name, [*state, digest])
        self._done[name] = state
        self._again.pop(name, None)
        if name in self._told:
            await asyncio.to_thread(self._folder.clear, name)

    async def _bytes(self, name: str, task: str, state: State, before: str, known: State | None) -> str | None:
        """Their digest, once the task has them; None where they changed while they were read."""
        folder, taking = self._folder, self._taking
        async with taking.staging() as staging:
            if not await asyncio.to_thread(folder.read, name, state, staging):
                return None
            digest = await asyncio.to_thread(staging.finish)
            moved = known is not None and digest == before and known[:2] == state[:2]
            if not moved:  # to another disk, with its time: it was taken there
                put = state.changed_ns / 1e9
                changed = before != digest if before else name not in (self._first or ())
                await taking.take(Offer(task, f"{self._settings.watch_folder}/{name}", put, changed), staging)
        return digest

    async def _failed(self, name: str, state: State, error: AdaptError) -> None:
        """Say it beside the file. One that is at fault is left alone until it changes, all others are tried again."""
        self._taking.failed(error)
        sentence = error.message
        if is_final(error):
            self._done[name] = state
            self._again.pop(name, None)
        else:
            pause = min(SOON_S, self._settings.source_retry_s)
            self._again[name] = time.monotonic() + pause
            sentence += f". It is tried again in {pause:g} s"
        log.error("%s in the watched folder is not taken: %s", shown(name), sentence)
        await asyncio.to_thread(self._folder.tell, name, sentence)
        self._told.add(name)
