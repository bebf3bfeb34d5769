"""Room: how many rows the engine holds, how long they take, and who is refused for it.

Its numbers lie in cells that front ends read from shared memory. It knows no threads, device or adapters; the engine
calls it under its own lock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from mmap import mmap
from typing import TypeAlias

from adapters.errors import BrokenMedia, LoadsBehind, MediaTooLarge
from service.engine import memory
from service.errors import Draining, QueueFull
from service.pace import HOPE, Pace, seconds
from service.settings import Settings

LOADING_SHARE = 0.75
"""Share of the queue that rows may take whose adapter is not there yet; the rest is for those that need no load."""
OPEN, QUEUED, READY, RATE = range(4)
CELLS = 8
"""Numbers of one engine, of 8 bytes: a cache line, which no other engine writes."""

Cells: TypeAlias = "memoryview[float]"


def cells_of(buffer: bytearray | mmap) -> Cells:
    """The numbers of as many engines as lie in a buffer; each is read and written in one step."""
    return memoryview(buffer).cast("B").cast("d")


class Room:
    """``queued`` rows are accepted and not yet answered; ``ready`` are those of them that have their slot.

    The engine writes; whoever has the cells as well may ``check``.
    """

    def __init__(
        self, *, max_batch_rows: int, max_queue_rows: int, clock: Callable[[], float], cells: Cells | None = None
    ) -> None:
        self._cells = cells_of(bytearray(8 * CELLS)) if cells is None else cells
        self._pace = Pace(max_batch_rows)
        self._most, self._limit, self._clock = max_batch_rows, max_queue_rows, clock
        self._background = 0

    @classmethod
    def shared(cls, settings: Settings, cells: int, number: int) -> Room:
        """That of an engine by its number; ``cells`` is the descriptor of the memory that all processes share."""
        own = cells_of(memory.mapped(cells))[number * CELLS : (number + 1) * CELLS]
        return cls(
            max_batch_rows=settings.max_batch_rows, max_queue_rows=settings.max_queue_rows, clock=time.monotonic,
            cells=own,
        )  # fmt: skip

    def begin(self) -> Room:
        """Nothing is held yet, and everything is taken; for the engine, at its start."""
        for cell in range(CELLS):
            self._cells[cell] = 0.0
        self.open = True
        return self

    @property
    def open(self) -> bool:
        """Whether anything is taken at all."""
        return self._cells[OPEN] != 0

    @open.setter
    def open(self, value: bool) -> None:
        self._cells[OPEN] = float(value)

    @property
    def queued(self) -> int:
        return int(self._cells[QUEUED])

    @queued.setter
    def queued(self, rows: int) -> None:
        self._cells[QUEUED] = rows

    @property
    def ready(self) -> int:
        return int(self._cells[READY])

    @ready.setter
    def ready(self, rows: int) -> None:
        self._cells[READY] = rows

    def enter(self, rows: int, *, background: bool) -> None:
        """Hold so many rows more. Those in the background count for themselves, up to the same bound.

        Raises Draining and QueueFull for these; others have been checked.
        """
        if not background:
            self.queued += rows
            return
        self.check_open()
        if self._background + rows > self._limit:
            raise QueueFull(
                f"{self._background} rows wait in the background, the limit is {self._limit} (max_queue_rows)",
                retry_after=1.0, field="max_queue_rows", limit=self._limit, value=self._background + rows,
            )  # fmt: skip
        self._background += rows

    def leave(self, rows: int, *, background: bool) -> None:
        """So many are answered, or taken back."""
        if background:
            self._background -= rows
        else:
            self.queued -= rows

    def saw(self, rows: int, first_submitted: float, end: float) -> None:
        """A batch ended, as ``Pace.saw`` has it."""
        self._pace.saw(rows, first_submitted, end)
        self._cells[RATE] = self._pace.rows_per_s

    def backlog_s(self, sent: int = 0) -> float:
        """How long what is queued takes, at least ``sent`` rows, by rows where no batch has told the pace.

        Infinite where nothing is taken.
        """
        return (max(self.queued, sent) / (self._cells[RATE] or 1.0)) if self.open else math.inf

    def check_size(self, rows: int) -> None:
        """Whether an input fits a batch. Raises MediaTooLarge or BrokenMedia."""
        if rows > self._most:
            raise MediaTooLarge(
                f"the input has {rows} frames, a batch holds {self._most} rows (max_batch_rows)",
                field="max_batch_rows", limit=self._most, value=rows,
            )  # fmt: skip
        if rows < 1:
            raise BrokenMedia("the input has no frames")

    def check_open(self) -> None:
        """Whether anything is taken at all. Raises Draining."""
        if not self.open:
            raise Draining("the server is stopping and takes no new requests; try another one")

    def check(self, rows: int, deadline: float, *, cold: bool) -> None:
        """Whether so many rows more would be taken; ``cold`` ones wait for a load. Raises Draining or QueueFull."""
        self.check_open()
        queued, ready, limit = self.queued, self.ready, self._limit
        wait = seconds(ready, self._cells[RATE])
        if queued + rows > limit:
            raise QueueFull(
                f"the queue holds {queued} rows, the limit is {limit} (max_queue_rows); "
                f"try again in {wait or 1.0:.1f} s",
                retry_after=wait or 1.0, field="max_queue_rows", limit=limit, value=queued + rows,
            )  # fmt: skip
        loading, share = queued - ready, max(rows, int(LOADING_SHARE * limit))
        if cold and loading + rows > share:
            raise QueueFull(
                f"{loading} rows wait for adapters to be loaded, the limit is {share} of the queue's {limit}; "
                "try again in 1 s",
                retry_after=1.0, limit=share, value=loading + rows, reason="loads",
            )  # fmt: skip
        left = deadline - self._clock()
        if wait is not None and wait > HOPE * left:
            raise self._too_late(f"the {ready} rows in the queue take about {wait:.1f} s", wait, left, "rows")

    def behind(self, error: LoadsBehind, deadline: float) -> QueueFull:
        """What a caller is told whose adapter cannot be loaded in time."""
        return self._too_late(error.message, error.wait_s, deadline - self._clock(), "loads")

    def _too_late(self, why: str, wait: float, left: float, reason: str) -> QueueFull:
        return QueueFull(
            f"{why}, and this request has {max(0.0, left):.1f} s; try again later, or allow more time with the header "
            "X-Deadline-Ms",
            retry_after=wait, field="X-Deadline-Ms", value=round(wait, 3), reason=reason,
        )  # fmt: skip
