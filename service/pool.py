"""Pool: worker threads with a bounded queue in front, for work that would hold up the event loop.

It is shared by whoever asks as the device is: turns by weight, and room for each. It does not know what the work is.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from adapters.errors import AdaptError
from service.errors import Draining, QueueFull
from service.messages import NOBODY, Asker
from service.pace import HOPE
from service.parts import Parts, numbers_for
from service.shares import Shares

T = TypeVar("T")

CLOSE_S = 2.0
"""How long ``close`` waits for jobs to end; one that hangs is left behind on its thread."""


@dataclass(eq=False, slots=True)
class _Job:
    """A turn of a worker."""

    future: Future[Any]
    work: Callable[[], Any]
    asker: Asker
    rows: int = 1
    deadline: float = math.inf


class Pool:
    """At most ``workers`` run and ``max_waiting`` wait; one more gets QueueFull with the expected wait.

    The standard library's executor keeps a cancelled job, and all that it holds, until a worker comes to it, and its
    threads keep a process from ending; here such a job is gone at once, with its place, and threads are daemons.
    """

    def __init__(
        self, name: str, *, workers: int, max_waiting: int, setting: str, weights: Mapping[str, float] | None = None
    ) -> None:
        """``setting`` is the one that ``max_waiting`` comes from, for the refusal; ``weights`` are those of holders."""
        self.name, self._workers, self._limit, self._setting = name, workers, workers + max_waiting, setting
        self._lock = threading.Lock()
        holders = weights or {}
        self._parts = Parts(self._limit, holders, [0.0] * numbers_for(len(holders)))
        self._turns: Shares[_Job] = Shares(holders, {})
        self._waiting: dict[Future[Any], _Job] = {}
        # One token a job wakes one worker. With a condition variable instead, refusals at ten times capacity took
        # 0.9 s at the median and not 8 ms: its workers hold the lock while they wait for the interpreter.
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._running = 0
        self._closed = False
        self._seconds = 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def workers(self) -> int:
        """How many jobs run at once."""
        return self._workers

    @property
    def held(self) -> int:
        """Jobs accepted and not ended."""
        return len(self._waiting) + self._running

    @property
    def alive(self) -> bool:
        """Whether a worker's thread runs; after ``close`` one does only if its job hangs."""
        return any(thread.is_alive() for thread in self._threads)

    def submit(self, work: Callable[[], T], left: float = math.inf, asker: Asker = NOBODY) -> Future[T]:
        """Run ``work`` on a worker; cancelling the future before it starts drops it.

        Raises QueueFull, also when its turn would hardly come within ``left`` seconds; Draining after ``close``.
        """
        future: Future[T] = Future()
        with self._lock:
            self._check_room(left, asker.holder)
            job = self._waiting[future] = _Job(future, work, asker)
            self._turns.add(job, asker.holder, "", asker.priority)
            self._count(1, asker.holder)
        self._tokens.put(None)
        future.add_done_callback(self._left)
        return future

    def check_room(self, left: float, asker: Asker = NOBODY) -> None:
        """Whether a job that has ``left`` seconds would be taken now; ask before costly work. Raises as ``submit``."""
        with self._lock:
            self._check_room(left, asker.holder)

    def close(self) -> None:
        """Take no more, and wait at most ``CLOSE_S`` for what is there; what still waits then is cancelled."""
        with self._lock:
            self._closed = True
        for _ in self._threads:
            self._tokens.put(None)
        end = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        for future in list(self._waiting):
            future.cancel()

    def _check_room(self, left: float, holder: str) -> None:
        if self._closed:
            raise Draining("the server is stopping and takes no new requests; try another one")
        held, parts = self.held, self._parts
        ahead = parts.ahead(held, holder)
        wait = self._seconds * ahead / self._workers
        if parts.room(1, holder, held) < 1:
            own, most = parts.held(holder), parts.most(holder)
            whose = f" ({own} of this key)" if parts.several else ""
            raise QueueFull(
                f"{held} jobs{whose} are at the {self.name} workers, the limit is {most} ({self._setting}); "
                f"try again in {wait:.1f} s",
                retry_after=wait, field=self._setting, limit=most, value=own + 1,
            )  # fmt: skip
        if held >= self._workers and wait > HOPE * left:
            raise QueueFull(
                f"the {ahead} jobs at the {self.name} workers take about {wait:.1f} s, and this request has "
                f"{max(0.0, left):.1f} s; try again later, or allow more time with the header X-Deadline-Ms",
                retry_after=wait, field="X-Deadline-Ms", value=round(wait, 3),
            )  # fmt: skip

    def _count(self, jobs: int, holder: str) -> None:
        self._parts.hold(jobs, holder)
        self._parts.ready(jobs, holder)

    def _left(self, future: Future[Any]) -> None:
        if future.cancelled():
            with self._lock:
                job = self._waiting.pop(future, None)
                if job is not None:
                    self._turns.remove(job, job.asker.holder, "", job.asker.priority)
                    self._count(-1, job.asker.holder)

    def _work(self) -> None:
        while True:
            self._tokens.get()
            with self._lock:
                if not self._waiting:  # the job of this token was cancelled
                    if self._closed:
                        return
                    continue
                (job,) = self._turns.take(1, 0.0, [], 0, 1)
                del self._waiting[job.future]
                if not self._waiting:
                    self._turns.clear()
                self._running += 1
            future, work, holder = job.future, job.work, job.asker.holder
            del job
            self._run(future, work, holder)
            del future, work  # this frame lives on while nothing waits, and must hold no body

    def _run(self, future: Future[Any], work: Callable[[], Any], holder: str) -> None:
        wanted, start = future.set_running_or_notify_cancel(), time.perf_counter()
        result, failure = None, None
        try:
            result = work() if wanted else None
        except BaseException as error:
            # Our errors tell all in their message; their traceback would hold the body as long as anybody holds them.
            failure = error.copy() if isinstance(error, AdaptError) else error
        taken = time.perf_counter() - start
        with self._lock:
            self._running -= 1
            self._count(-1, holder)
            if wanted:
                self._seconds = 0.9 * self._seconds + 0.1 * taken if self._seconds else taken
        del work
        if failure is not None:
            future.set_exception(failure)
            del failure, future  # a traceback that holds this frame must not hold itself
        elif wanted:
            future.set_result(result)


def heard(future: asyncio.Future[Any]) -> None:
    """Look at the outcome, so that asyncio does not log a wait that was given up as an error that nobody saw."""
    if not future.cancelled():
        future.exception()
