"""Batches: many pictures or clips for one version, answered in order, a window of them under way at a time.

A batch works through what others leave: it waits for room where a single request would be refused, and has no more of
the queue than keeps the device busy. It does not know HTTP, nor what an answer is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from service.engine.interface import Link
from service.errors import ClientGone, DeadlineExceeded, Draining, NotReady, OverRate, QueueFull
from service.pool import Pool
from service.settings import Settings
from service.web.archives import Entry
from service.web.caller import Caller
from service.web.spool import Spool

RETRY_AFTER_S = 1.0
AGAIN_S = 0.01
"""How long an item waits until it looks for room again."""
BACKLOG_S = 0.5
"""While this much is queued, whoever it is from, a batch has no more under way than one batch of the device."""
MOST_LOSSES = 3
"""Engines that may end while an item is under way; after that the item may be why."""
SENT_AT_ONCE = 64 * 1024
"""Bytes from which answers that are there go out without those after them."""


@dataclass(frozen=True)
class BatchOrder:
    """What a batch is made of. ``rows``: of each entry.

    ``answer`` gives the line of an entry by its place, its name and what reads it, and raises what is wrong with it;
    ``refuse`` makes a line of that. ``admit`` counts an entry for the caller's key, and raises OverRate or OverQuota.
    """

    entries: Sequence[Entry]
    rows: int
    answer: Callable[[int, str, Callable[[], bytes]], Awaitable[bytes]]
    refuse: Callable[[int, str, Exception], bytes]
    admit: Callable[[], None]


class BatchPlace:
    """One batch's: a spool for its body, until ``leave``."""

    def __init__(self, spool: Spool, leave: Callable[[], None]) -> None:
        self.spool, self._leave = spool, leave
        self._left = False

    def leave(self) -> None:
        """Give all back; safe to repeat."""
        if not self._left:
            self._left = True
            self.spool.close()
            self._leave()


class BatchRunner:
    """At most ``max_batches`` at a time; one more gets QueueFull before its body is read."""

    def __init__(self, engine: Link, settings: Settings, pool: Pool, decode_workers: int) -> None:
        """``pool`` is for the disk and for archives."""
        self.pool = pool
        self._engine, self._settings = engine, settings
        self._decodes = max(2, decode_workers)
        self._running = 0

    @property
    def running(self) -> int:
        """Those that have a place."""
        return self._running

    async def enter(self) -> BatchPlace:
        """Raises QueueFull, and what the disk raises."""
        limit = self._settings.max_batches
        if self._running >= limit:
            raise QueueFull(
                f"{self._running} batches are under way, the limit is {limit} (max_batches); "
                f"try again in {RETRY_AFTER_S:g} s",
                retry_after=RETRY_AFTER_S, field="max_batches", limit=limit, value=self._running + 1,
            )  # fmt: skip
        self._running += 1
        folder = self._settings.spool_dir
        try:
            make = partial(Spool, Path(folder) if folder else self._settings.folder / "staging")
            return BatchPlace(await asyncio.wrap_future(self.pool.submit(make)), self._leave)
        except BaseException:
            self._leave()
            raise

    def lines(self, asked: BatchOrder, caller: Caller) -> AsyncGenerator[bytes]:
        """The lines of all entries, in order, some together. Raises ClientGone, DeadlineExceeded or Draining."""
        return _Run(self._engine, self._settings, self._decodes, asked, caller).lines()

    def _leave(self) -> None:
        self._running -= 1


class _Run:
    """One batch on its way through."""

    def __init__(self, engine: Link, settings: Settings, decodes: int, asked: BatchOrder, caller: Caller) -> None:
        self._engine, self._asked, self._caller = engine, asked, caller
        self._full = settings.max_batch_rows
        # Two at least: the next one is decoded while one is computed.
        self._window = max(2, settings.batch_window_rows // asked.rows)
        self._rows = 0
        self._turn = asyncio.Lock()
        # Of decodes that wait for a worker, so that there is always one, and others' wait for no more of them.
        self._waiting = asyncio.Semaphore(decodes)

    async def lines(self) -> AsyncGenerator[bytes]:
        """See ``BatchRunner``. What was answered and is not read yet is in the window too, so it fills no memory."""
        entries = iter(enumerate(self._asked.entries))
        ahead = deque[asyncio.Task[bytes]]()
        try:
            while True:
                while len(ahead) < self._window and (entry := next(entries, None)) is not None:
                    ahead.append(asyncio.create_task(self._line(*entry)))
                if not ahead:
                    return
                await asyncio.wait([ahead[0]])
                ready = bytearray()
                while ahead and ahead[0].done() and len(ready) < SENT_AT_ONCE:
                    if ready and ahead[0].exception() is not None:
                        break  # what is there goes out first
                    ready += ahead.popleft().result()
                yield bytes(ready)
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _line(self, place: int, entry: Entry) -> bytes:
        if entry.wrong is not None:
            return self._asked.refuse(place, entry.name, entry.wrong)
        try:
            return await self._answer(place, entry)
        except (ClientGone, DeadlineExceeded, Draining):  # of all that is left
            raise
        except Exception as error:
            return self._asked.refuse(place, entry.name, error)

    async def _answer(self, place: int, entry: Entry) -> bytes:
        """Once there is room, and again where there was none after all or the engine was lost."""
        losses = 0
        await self._count()
        while True:
            await self._admit()
            try:
                return await self._once(place, entry)
            except QueueFull:
                pass
            except NotReady:
                losses += 1
                if losses == MOST_LOSSES:
                    raise
            finally:
                self._rows -= self._asked.rows
            await self._pause()

    async def _once(self, place: int, entry: Entry) -> bytes:
        """A decode waits while its body is not read: only bodies that are decoded this moment are in memory."""
        loop, waits = asyncio.get_running_loop(), True

        def begun() -> None:
            nonlocal waits
            if waits:
                waits = False
                self._waiting.release()

        def read() -> bytes:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(begun)
            return entry.read()

        try:
            return await self._asked.answer(place, entry.name, read)
        finally:
            begun()

    async def _count(self) -> None:
        """When its key's rate allows it; one at a time, in order. Raises OverQuota."""
        async with self._turn:
            while True:
                try:
                    self._asked.admit()
                except OverRate as error:
                    await self._pause(error.retry_after)
                else:
                    return

    async def _admit(self) -> None:
        """One at a time, in order."""
        async with self._turn:
            while not await self._has_room():
                await self._pause()
            await self._waiting.acquire()
            self._rows += self._asked.rows

    async def _has_room(self) -> bool:
        """Half of what there is for this caller is for its other requests. Raises Draining."""
        rows, caller = self._asked.rows, self._caller
        try:
            await self._engine.check_room(rows, caller.deadline, (), caller.asker, spare=True)
        except (QueueFull, NotReady):
            return False
        return self._rows + rows <= self._full or not self._rows or self._engine.backlog_s < BACKLOG_S

    async def _pause(self, seconds: float = AGAIN_S) -> None:
        await self._caller.wait([asyncio.ensure_future(asyncio.sleep(seconds))], "waiting for room")
