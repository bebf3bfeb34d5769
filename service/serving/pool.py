"""Pool: worker threads with a bounded queue in front, for work that would hold up the event loop.

It does not know what the work is.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from service.errors import QueueFull
from service.pace import HOPE

T = TypeVar("T")


class Pool:
    """At most ``workers`` run and ``max_waiting`` wait; one more gets QueueFull with the expected wait."""

    def __init__(self, name: str, *, workers: int, max_waiting: int) -> None:
        self._name, self._workers, self._limit = name, workers, workers + max_waiting
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._held = 0
        self._seconds = 0.0

    @property
    def held(self) -> int:
        """Jobs accepted and not ended."""
        return self._held

    def submit(self, work: Callable[[], T], left: float = math.inf) -> Future[T]:
        """Run ``work`` on a worker; cancelling the future before it starts drops it.

        Raises QueueFull, also when its turn would hardly come within ``left`` seconds.
        """
        with self._lock:
            self._check_room(left)
            self._held += 1
        try:
            future = self._executor.submit(self._timed, work)
        except BaseException:
            self._leave(None)
            raise
        future.add_done_callback(self._leave)
        return future

    def check_room(self, left: float) -> None:
        """Whether a job that has ``left`` seconds would be taken now; ask before costly work. Raises QueueFull."""
        with self._lock:
            self._check_room(left)

    def close(self) -> None:
        """End what runs, drop what waits."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _check_room(self, left: float) -> None:
        wait = self._seconds * self._held / self._workers
        if self._held >= self._limit:
            raise QueueFull(
                f"{self._held} jobs are at the {self._name} workers, the limit is {self._limit}; "
                f"try again in {wait:.1f} s",
                retry_after=wait, limit=self._limit, value=self._held + 1,
            )  # fmt: skip
        if self._held >= self._workers and wait > HOPE * left:
            raise QueueFull(
                f"the {self._held} jobs at the {self._name} workers take about {wait:.1f} s, and this request has "
                f"{max(0.0, left):.1f} s; try again later, or allow more time with the header X-Deadline-Ms",
                retry_after=wait, field="X-Deadline-Ms", value=round(wait, 3),
            )  # fmt: skip

    def _timed(self, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            return work()
        finally:
            taken = time.perf_counter() - start
            with self._lock:
                self._seconds = 0.9 * self._seconds + 0.1 * taken if self._seconds else taken

    def _leave(self, _: object) -> None:
        with self._lock:
            self._held -= 1
