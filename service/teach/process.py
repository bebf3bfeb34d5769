"""The trainer: the process that carries out jobs, one after another. `python -m service.teach.process DESCRIPTOR`.

It connects to the engine as a front end does, with pixels of its own, and ends when nothing is left to do.
"""

from __future__ import annotations

import gc

if __name__ == "__main__":
    gc.disable()  # while it imports torch, as the engine has it

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import uvloop

from adapters.errors import AdaptError
from service import child
from service.engine import memory
from service.engine.fleet import Fleet
from service.engine.pixels import PixelMemory, array_of, row_bytes
from service.engine.remote import RemoteEngine
from service.engine.room import Room
from service.exits import FAILED
from service.limits import file_limits
from service.messages import JOB, Message, Told
from service.store.catalogue import Catalogue
from service.store.examples import Examples
from service.store.journal import Journal
from service.store.opening import open_repository
from service.store.repository import Repository
from service.teach.asking import IN_FLIGHT, Asking
from service.teach.auto import Teaching, threads
from service.teach.jobs import Jobs

NICENESS = 10
"""Of a thread that trains an adapter, for which nobody waits: where others want a whole core it has a tenth of that."""
LINGER_S = 20.0
"""For how long it waits for another job: to start anew takes seconds."""
MOST_YIELD_S = 1.0
"""For how long at most a step on CUDA waits for those who serve."""


class Yielding:
    """Leaves a CUDA device to those who serve, after each step: as long as that took, and while rows are queued."""

    def __init__(self, rooms: Sequence[Room]) -> None:
        self._rooms, self._last = rooms, time.monotonic()

    def __call__(self, on_cuda: bool) -> None:
        if on_cuda:
            time.sleep(min(MOST_YIELD_S, time.monotonic() - self._last))
            end = time.monotonic() + MOST_YIELD_S
            while any(room.queued for room in self._rooms) and time.monotonic() < end:
                time.sleep(0.001)
        self._last = time.monotonic()


@contextmanager
def behind_others() -> Iterator[ThreadPoolExecutor]:
    """A thread, and those that torch starts for it, to which every other process of this machine is preferred."""
    with ThreadPoolExecutor(1, "adapter", initializer=lambda: os.nice(NICENESS)) as thread:
        _weigh_session(NICENESS)
        try:
            yield thread
        finally:
            _weigh_session(0)


def _weigh_session(niceness: int) -> None:
    """Where the kernel weighs sessions, niceness says nothing beyond a process's own."""
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(niceness))


class _Process:
    """One trainer from its first word to its last."""

    def __init__(self, begun: child.Beginning) -> None:
        self._begun, self._settings = begun, begun.settings
        self._slot: int = begun.told["slot"]
        self._owner = f"trainer-{self._slot}"
        self._news = threading.Event()

    async def run(self) -> None:
        """Until nothing is left to do."""
        told, settings = self._begun.told, self._settings
        channel = await self._begun.listen(self._heard)
        channel.send(Told("up", {}))
        repository = open_repository(settings, Journal(memory.mapped(told["journal"])), self._owner)
        await asyncio.to_thread(repository.load)
        rooms = [Room.shared(settings, told["cells"], number) for number in range(len(told["engines"]))]
        engines = [
            RemoteEngine(path, told["number"], room, settings.ready_timeout_s)
            for path, room in zip(told["engines"], rooms, strict=True)
        ]
        await asyncio.gather(*(engine.connect() for engine in engines))
        jobs = Jobs(settings.data_dir, owner=self._owner)
        await asyncio.to_thread(self._work, jobs, self._teaching(Fleet(engines), rooms, repository, jobs))
        repository.close()
        for engine in engines:
            engine.close()
        channel.close()

    def _teaching(self, fleet: Fleet, rooms: Sequence[Room], repository: Repository, jobs: Jobs) -> Teaching:
        settings, facts, descriptor = self._settings, fleet.facts, self._begun.told["pixels"]
        size = facts.layout.input_size
        os.ftruncate(descriptor, max(IN_FLIGHT, settings.max_batch_rows) * row_bytes(size))
        pixels = PixelMemory(array_of(memory.mapped(descriptor), size))
        asking = Asking(fleet, pixels, repository.root / "staging", asyncio.get_running_loop(), self._owner)
        catalogue = Catalogue(repository, facts.layout, file_limits(settings, facts.rank), fleet.forget, cache_bytes=0)
        examples = Examples(settings.data_dir, owner=self._owner)
        return Teaching(settings, facts, jobs, examples, catalogue, asking, behind_others, Yielding(rooms))

    def _work(self, jobs: Jobs, teaching: Teaching) -> None:
        while True:
            self._news.clear()
            job = jobs.claim(self._slot)
            if job is not None:
                teaching.carry_out(job)
            elif not self._news.wait(LINGER_S):
                return

    def _heard(self, message: Message) -> None:
        if isinstance(message, Told) and message.name == JOB:
            self._news.set()


def main() -> None:
    """Until the work is done, or the supervisor is gone."""
    gc.enable()
    begun = child.begin()
    torch.set_num_threads(threads(begun.settings))
    try:
        asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_Process(begun).run())
    except AdaptError as error:  # its work stays for another one, which the supervisor starts after a pause
        child.end(f"the trainer cannot go on: {error.message}", FAILED)
    else:
        child.leave([])


if __name__ == "__main__":
    main()
