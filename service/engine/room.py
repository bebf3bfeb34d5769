"""Room: how many rows the engine holds, how long they take, and who is refused for it.

Its numbers lie in cells that front ends read from shared memory. It knows no threads, device or adapters; the engine
calls it under its own lock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from mmap import mmap
from typing import TypeAlias

from adapters.errors import BrokenMedia, LoadsBehind, MediaTooLarge
from service.engine import memory
from service.errors import Draining, QueueFull
from service.keys import Keys
from service.pace import HOPE, Pace, seconds
from service.parts import Parts, numbers_for
from service.settings import Settings

LOADING_SHARE = 0.75
"""Share of the queue that rows may take whose adapter is not there yet; the rest is for those that need no load."""
OPEN, QUEUED, READY, RATE = range(4)
CELLS = 8
"""Numbers of 8 bytes, a cache line: those of one engine, then the parts of each holder; no other engine writes them."""

Cells: TypeAlias = "memoryview[float]"


def cells_for(holders: int) -> int:
    """Numbers of one engine, where there are so many keys."""
    return CELLS + -(-numbers_for(holders) // CELLS) * CELLS


def cells_of(buffer: bytearray | mmap) -> Cells:
    """The numbers of as many engines as lie in a buffer; each is read and written in one step."""
    return memoryview(buffer).cast("B").cast("d")


class Room:
    """``queued`` rows are accepted and not yet answered; ``ready`` are those of them that have their slot.

    The engine writes; whoever has the cells as well may ``check``.
    """

    def __init__(
        self, *, max_batch_rows: int, max_queue_rows: int, clock: Callable[[], float], cells: Cells | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        """``weights`` are those of the holders, in the order that all who have the cells know; none: there are none."""
        self.weights = dict(weights or {})
        count = cells_for(len(self.weights))
        self._cells = cells_of(bytearray(8 * count)) if cells is None else cells
        self._pace = Pace(max_batch_rows)
        self._most, self._limit, self._clock = max_batch_rows, max_queue_rows, clock
        self._background = 0
        self._parts = Parts(max_queue_rows, self.weights, self._cells[CELLS:])

    @classmethod
    def of(cls, settings: Settings, cells: int | None = None, number: int = 0) -> Room:
        """That of an engine by its number; ``cells`` is the descriptor of the memory that all processes share.

        Without, it is of this process alone.
        """
        weights, own = Keys.read(settings.keys, settings.keys_file).weights, None
        if cells is not None:
            count = cells_for(len(weights))
            own = cells_of(memory.mapped(cells))[number * count : (number + 1) * count]
        return cls(
            max_batch_rows=settings.max_batch_rows, max_queue_rows=settings.max_queue_rows, clock=time.monotonic,
            cells=own, weights=weights,
        )  # fmt: skip

    def begin(self) -> Room:
        """Nothing is held yet, and everything is taken; for the engine, at its start."""
        for cell in range(len(self._cells)):
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

    @property
    def ready(self) -> int:
        return int(self._cells[READY])

    def enter(
        self, rows: int, deadline: float, holder: str, *, cold: bool = False, always: bool = False,
        background: bool = False,
    ) -> None:  # fmt: skip
        """Hold so many rows more, if ``check`` says so, or ``always``. Raises as that does.

        Those in the background count for themselves, up to the same bound.
        """
        if not background:
            if always:
                self.check_open()
            else:
                self.check(rows, deadline, holder, cold=cold)
            self._count(rows, holder)
            return
        self.check_open()
        if self._background + rows > self._limit:
            raise QueueFull(
                f"{self._background} rows wait in the background, the limit is {self._limit} (max_queue_rows)",
                retry_after=1.0, field="max_queue_rows", limit=self._limit, value=self._background + rows,
            )  # fmt: skip
        self._background += rows

    def leave(self, rows: int, holder: str, *, background: bool) -> None:
        """So many are answered, or taken back."""
        if background:
            self._background -= rows
        else:
            self._count(-rows, holder)

    def arrived(self, rows: int, holder: str) -> None:
        """So many more have their slot; fewer where it is negative."""
        self._parts.ready(rows, holder)
        self._cells[READY] += rows

    def _count(self, rows: int, holder: str) -> None:
        self._parts.hold(rows, holder)
        self._cells[QUEUED] += rows

    def saw(self, rows: int, first_submitted: float, end: float) -> None:
        """A batch ended, as ``Pace.saw`` has it."""
        self._pace.saw(rows, first_submitted, end)
        self._cells[RATE] = self._pace.rows_per_s

    def backlog_s(self, sent: int = 0) -> float:
        """How long what is queued takes, at least ``sent`` rows, by rows where no batch has told the pace.

        Infinite where nothing is taken.
        """
        return (max(self.queued, sent) / (self._cells[RATE] or 1.0)) if self.open else math.inf

    @property
    def wait_s(self) -> float:
        """How long what is queued takes; 0 where no batch has told the pace."""
        return seconds(self.queued, self._cells[RATE]) or 0.0

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

    def check(self, rows: int, deadline: float, holder: str = "", *, cold: bool, spare: bool = False) -> None:
        """Whether so many rows more of a holder would be taken; ``cold`` ones wait for a load.

        ``spare``: and half of what it may have would be left, or half of what is reserved for it.
        Raises Draining or QueueFull.
        """
        self.check_open()
        parts, queued, ready = self._parts, self.queued, self.ready
        before, own, most = parts.ahead(ready, holder), parts.held(holder), parts.most(holder)
        wait, room = seconds(before, self._cells[RATE]), parts.room(rows, holder, queued)
        if rows > room:
            whose = f"the queue holds {queued} rows, the limit is {self._limit}"
            if parts.several:
                whose = f"the queue holds {own} rows of this key, {queued} in all, and has room for {room} more of it"
            raise QueueFull(
                f"{whose} (max_queue_rows); try again in {wait or 1.0:.1f} s",
                retry_after=wait or 1.0, field="max_queue_rows", limit=most, value=own + rows,
            )  # fmt: skip
        if spare and own + rows > parts.own(holder) // 2 and room < max(rows, most // 2):
            raise QueueFull("half of the queue is for others", retry_after=wait or 1.0)
        if cold:
            self._check_loading(rows, holder, queued - ready)
        left = deadline - self._clock()
        if wait is not None and wait > HOPE * left:
            raise self._too_late(f"the {before} rows in the queue take about {wait:.1f} s", wait, left, "rows")

    def _check_loading(self, rows: int, holder: str, loading: int) -> None:
        """Whether so many more of a holder may wait for a load, as ``loading`` do of all. Raises QueueFull."""
        parts, share = self._parts, max(rows, int(LOADING_SHARE * self._limit))
        own, most = parts.held(holder) - parts.held_ready(holder) + rows, LOADING_SHARE * parts.most(holder)
        if own > max(rows, most) or (loading + rows > share and own > LOADING_SHARE * parts.own(holder)):
            raise QueueFull(
                f"{loading} rows wait for adapters to be loaded, the limit is {share} of the queue's {self._limit}"
                f"{f', {int(most)} of one key' if parts.several else ''}; try again in 1 s",
                retry_after=1.0, limit=share, value=loading + rows, reason="loads",
            )  # fmt: skip

    def behind(self, error: LoadsBehind, deadline: float) -> QueueFull:
        """What a caller is told whose adapter cannot be loaded in time."""
        return self._too_late(error.message, error.wait_s, deadline - self._clock(), "loads")

    def _too_late(self, why: str, wait: float, left: float, reason: str) -> QueueFull:
        return QueueFull(
            f"{why}, and this request has {max(0.0, left):.1f} s; try again later, or allow more time with the header "
            "X-Deadline-Ms",
            retry_after=wait, field="X-Deadline-Ms", value=round(wait, 3), reason=reason,
        )  # fmt: skip
