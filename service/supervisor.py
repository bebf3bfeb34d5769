"""The supervisor: starts the engines and the front ends, starts again what dies, and ends them in order.

It holds the listening socket, the data folder and the memory that they share, and computes and decodes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from adapters.errors import AdaptError
from service.engine import memory
from service.engine.room import cells_for
from service.exits import CUT_OFF, FAILED
from service.family import Child, Ended, has_said, how_ended, spawn
from service.guardian import Guardian
from service.keys import MAX_JSON_BYTES, Keys, dump
from service.limits import file_limits, share
from service.messages import ALIVE, JOB, VERSIONS, Call, Failed, Message, Reply, Told, error_of
from service.scratch import Scratch
from service.settings import Settings
from service.sources.keeper import SourcesKeeper
from service.store.demo import publish_demo_in
from service.store.journal import Journal
from service.store.locks import FolderLock
from service.store.opening import followed, open_repository
from service.teach.keeper import Keeper, recovered_jobs
from service.usage import USAGE, prepare_table
from service.watch.counts import Counts

if TYPE_CHECKING:
    from service.engine.interface import Facts

log = logging.getLogger(__name__)

TRIES, PAUSE_S = 3, 0.5
"""How often in a row a child may end without coming up again, with pauses, until the server gives up."""
STEADY_S, QUICK, MOST_PAUSE_S = 2.0, 3, 10.0
"""A child that ends within so many seconds more often than that in a row is started again after ever longer pauses."""
LOOKS, CLOSE_S = 6, 6.0
"""Looks in a row, over ``device_lost_s``, without a sign of life until a child is ended; seconds of a close at most."""


class Supervisor:
    """``run`` returns the exit code. ``devices`` has one for each engine."""

    def __init__(self, settings: Settings, devices: Sequence[str], front_ends: int, listener: socket.socket) -> None:
        self._keys = Keys.read(settings.keys, settings.keys_file)
        text = dump(self._keys.all) if self._keys else ""
        if len(text) <= MAX_JSON_BYTES:  # children that are started later have the same ones, whatever the file holds
            settings = settings.model_copy(update={"keys": text, "keys_file": ""})
        self._settings = settings
        self._devices, self._listener, self._count = devices, listener, front_ends
        self._counts, self._worst = Counts(), 0
        self._children: dict[str, Child] = {}
        self._guards: set[asyncio.Task[None]] = set()
        self._keepers: list[Keeper] = []
        self._sources = SourcesKeeper(settings, self._source, self._tell) if settings.has_sources else None
        self._failure: asyncio.Future[None] | None = None

    async def run(self, said: Callable[[Facts, Sequence[str]], None], begin_stop: Callable[[], None]) -> int:
        """Serve until SIGTERM or SIGINT; ``said`` is called once everything is up, ``begin_stop`` at the signal.

        Raises what a child could not start for, and Ended where one cannot be brought up again.
        """
        loop, stop = asyncio.get_running_loop(), asyncio.Event()

        def told() -> None:
            begin_stop()
            stop.set()

        async with AsyncExitStack() as stack:
            self._share_memory(stack)
            stack.push_async_callback(self._kill)
            self._failure = loop.create_future()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, told)
            started = asyncio.ensure_future(self._start(stack, said))
            waits: set[asyncio.Future[Any]] = {started, asyncio.ensure_future(stop.wait()), self._failure}
            while not stop.is_set():
                done, waits = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    one.result()
            if not started.done():  # nobody is served yet
                started.cancel()
                return 128 + signal.SIGTERM
            await self._stop()
            return self._worst

    def _share_memory(self, stack: AsyncExitStack) -> None:
        self._folder = stack.enter_context(Scratch()).path
        (self._folder / "metrics").mkdir()
        self._paths = [self._folder / f"engine-{number}.sock" for number in range(len(self._devices))]
        self._cells = memory.create(8 * cells_for(len(self._keys)) * len(self._devices))
        self._journal, self._connections = memory.create(Journal.SIZE), memory.create(8 * self._count)
        self._pixels = [memory.create(0) for _ in range(self._count + self._settings.max_trainings)]
        for descriptor in (self._cells, self._journal, self._connections, *self._pixels):
            stack.callback(os.close, descriptor)

    async def _start(self, stack: AsyncExitStack, said: Callable[[Facts, Sequence[str]], None]) -> None:
        settings = self._settings
        stack.callback(FolderLock(settings.data_dir).close)
        repository = open_repository(settings, Journal(memory.mapped(self._journal)), "supervisor")
        stack.callback(repository.close)
        self._guardian = Guardian(repository)
        engines = [await self._engine(number) for number in range(len(self._devices))]
        from service.engine.interface import Facts  # a third of a second, in which engines import torch

        await asyncio.to_thread(prepare_table, settings.data_dir / USAGE, self._keys)
        for sentence in await asyncio.to_thread(repository.recover):
            log.warning("recovery: %s", sentence)
        await asyncio.to_thread(stack.enter_context, followed(settings, repository))
        self._jobs = await asyncio.to_thread(recovered_jobs, settings)
        front_ends = [await self._front_end(number) for number in range(self._count)]
        facts = Facts.of((await asyncio.gather(*(has_said(engine) for engine in engines)))[0])
        if settings.backbone == "demo":
            await asyncio.to_thread(publish_demo_in, repository, facts.layout, file_limits(settings, facts.rank))
        await asyncio.gather(*(has_said(front_end, front_end.built) for front_end in front_ends))
        if self._sources is not None:
            self._keep(await self._sources.begin())
        for front_end in front_ends:
            front_end.channel.send(Told("go", None))
        await asyncio.gather(*(has_said(front_end) for front_end in front_ends))
        for one in (*engines, *front_ends):
            self._keep(self._replace(one))
        if settings.device_lost_s:
            self._keep(self._look_after(settings.device_lost_s))
        self._keepers = [Keeper(slot, self._jobs, self._trainer) for slot in range(settings.max_trainings)]
        for keeper in self._keepers:
            self._keep(keeper.run())
        await asyncio.to_thread(repository.follow)  # what came from sources
        said(facts, repository.names)

    async def _engine(self, number: int) -> Child:
        path = self._paths[number]
        path.unlink(missing_ok=True)
        told = {
            "number": number, "device": self._devices[number], "path": str(path), "cells": self._cells,
            "pixels": self._pixels,
        }  # fmt: skip
        name = "engine" if len(self._devices) == 1 else f"engine {number}"
        return await self._spawn(name, "service.engine.process", told, self._settings, [self._cells, *self._pixels])

    async def _front_end(self, number: int) -> Child:
        pixels, listener = self._pixels[number], self._listener.fileno()
        told = {
            "number": number, "engines": [*map(str, self._paths)], "cells": self._cells, "journal": self._journal,
            "pixels": pixels, "listener": listener, "connections": self._connections,
        }  # fmt: skip
        name = "front end" if self._count == 1 else f"front end {number}"
        passed = [self._cells, self._journal, self._connections, pixels, listener]
        return await self._spawn(name, "service.web.process", told, share(self._settings, self._count), passed)

    async def _trainer(self, slot: int) -> Child:
        settings = self._settings
        pixels = self._pixels[self._count + slot]
        told = {
            "number": self._count + slot, "slot": slot, "cells": self._cells, "journal": self._journal,
            "pixels": pixels, "engines": [*map(str, self._paths)],
        }  # fmt: skip
        name = "trainer" if settings.max_trainings == 1 else f"trainer {slot}"
        return await self._spawn(name, "service.teach.process", told, settings, [self._cells, self._journal, pixels])

    async def _source(self) -> Child:
        told = {
            "number": self._count + self._settings.max_trainings, "cells": self._cells, "journal": self._journal,
            "engines": [*map(str, self._paths)],
        }  # fmt: skip
        return await self._spawn(
            "sources", "service.sources.process", told, self._settings, [self._cells, self._journal]
        )

    async def _spawn(
        self, name: str, module: str, told: dict[str, Any], settings: Settings, passed: Sequence[int]
    ) -> Child:
        self._children[name] = one = await spawn(
            name, module, told, settings, passed, self._folder / "metrics", self._heard
        )
        return one

    def _tell(self, message: Message) -> None:
        """Every front end."""
        for one in self._children.values():
            if one.name.startswith("front end"):
                one.channel.send(message)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._guards.add(task)
        task.add_done_callback(self._guards.discard)

    def _heard(self, one: Child, message: Message) -> None:
        one.silent = 0
        if isinstance(message, Told) and message.name == "up" and not one.up.done():
            one.since = time.monotonic()
            one.up.set_result(message.value)
        elif isinstance(message, Told) and message.name == "built" and not one.built.done():
            one.built.set_result(None)
        elif isinstance(message, Failed) and not one.up.done():
            one.up.set_exception(error_of(message))
        elif isinstance(message, Told) and message.name == "counted":
            self._counts.add(*message.value)
        elif isinstance(message, Told) and message.name == "forget":
            self._counts.forget(message.value)
        elif isinstance(message, Told) and message.name == VERSIONS:
            self._guardian.heard(message.value)
        elif isinstance(message, Told) and message.name == JOB:
            for keeper in self._keepers:
                keeper.wake()
        elif isinstance(message, Told) and self._sources is not None:
            self._sources.heard(one, message)
        elif isinstance(message, Call):
            answer = self._guardian.answer if message.name == VERSIONS else self._counts.now
            one.channel.send(Reply(message.number, answer(message.arguments[0])))

    async def _replace(self, one: Child) -> None:
        """When it ends, start another one in its place; give up where that does not come up."""
        quick = 0
        try:
            while True:
                code = await asyncio.shield(one.ended)
                quick = quick + 1 if time.monotonic() - one.since < STEADY_S else 0
                one = await self._again(one, code, min(MOST_PAUSE_S, PAUSE_S * max(0, quick - QUICK)))
        except Exception as error:
            assert self._failure is not None
            if not self._failure.done():
                self._failure.set_exception(error)

    async def _again(self, one: Child, code: int, pause: float) -> Child:
        how = how_ended(code)
        when = f"is started in {pause:g} s, since it ends again and again" if pause else "is being started"
        log.error("the %s process %s; another one %s", one.name, how, when)
        await asyncio.sleep(pause)
        number = int(one.name.rpartition(" ")[2]) if one.name[-1].isdigit() else 0
        start, why = self._engine if one.name.startswith("engine") else self._front_end, ""
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(PAUSE_S)
            try:
                another = await start(number)
                another.channel.send(Told("go", None))
                await has_said(another)
            except (AdaptError, OSError) as error:
                why = f": {error.message if isinstance(error, AdaptError) else error.strerror}"
                log.error("the %s process does not come up again%s", one.name, why)
                await asyncio.wait([self._children[one.name].ended])
            else:
                log.warning("the %s process is up again", one.name)
                return another
        raise Ended(f"the {one.name} process {how} and cannot be started again{why}", code if code > 0 else FAILED)

    async def _look_after(self, lost_s: float) -> None:
        """End what gives no sign of life: one that is stopped, or stuck where not even its own watchdog runs.

        Looks are counted, so that a machine that slept wakes up in peace.
        """
        while True:
            for one in [one for one in self._children.values() if one.up.done() and not one.ended.done()]:
                if one.silent == LOOKS:
                    log.error("the %s process has given no sign of life for %g s (device_lost_s)", one.name, lost_s)
                    one.process.kill()
                one.silent += 1
                one.channel.send(Told(ALIVE, None))
            await asyncio.sleep(lost_s / LOOKS)

    async def _stop(self) -> None:
        """Front ends answer what they took, then engines have nothing left to do."""
        for guard in self._guards:
            guard.cancel()
        for one in self._children.values():
            if not one.up.done() or one.name.startswith(("trainer", "sources")):  # they go on at the next start
                one.process.kill()
        self._listener.close()  # the last front end closes the last copy, once it has taken whoever had connected
        for kind, word, seconds in (
            ("front end", "drain", self._settings.drain_s + CLOSE_S), ("engine", "stop", CLOSE_S),
        ):  # fmt: skip
            ending = [one for one in self._children.values() if one.name.startswith(kind) and one.up.done()]
            for one in ending:
                one.channel.send(Told(word, None))
            if ending:
                await asyncio.wait([one.ended for one in ending], timeout=seconds)
                for one in ending:
                    code = one.ended.result() if one.ended.done() else -1
                    self._worst = max(self._worst, code if code >= 0 else CUT_OFF)  # it hung, or was killed
        if self._keepers:
            with suppress(AdaptError):  # a sick disk: the stop then counts as a mistake of the job
                await asyncio.to_thread(self._jobs.rest)

    async def _kill(self) -> None:
        for one in self._children.values():
            if one.process.returncode is None:
                one.process.kill()
            await one.ended
