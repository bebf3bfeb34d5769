"""Room: how many rows the engine holds, how long they take, and who is refused for it.

Half of the queue is common; the other half is reserved for the holders of keys by their weights, so that however much
others send, each has room for some. Where there are no keys, all of it is for everybody.

Its numbers lie in cells that front ends read from shared memory. It knows no threads, device or adapters; the engine
calls it under its own lock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import TypeAlias

from adapters.errors import BrokenMedia, LoadsBehind, MediaTooLarge
from service.engine import memory
from service.errors import Draining, QueueFull
from service.keys import Keys
from service.pace import HOPE, Pace, seconds
from service.settings import Settings

LOADING_SHARE = 0.75
"""Share of the queue that rows may take whose adapter is not there yet; the rest is for those that need no load."""
OPEN, QUEUED, READY, RATE, COMMON, ACTIVE = range(6)
CELLS = 8
"""Numbers of 8 bytes, a cache line: those of one engine, then two of each holder; no other engine writes them."""

Cells: TypeAlias = "memoryview[float]"


@dataclass(frozen=True, slots=True)
class _Part:
    """A holder's: where its rows are counted, and those of them that are ready; and the rows reserved for it."""

    cell: int
    weight: float
    rows: int


def cells_for(holders: int) -> int:
    """Numbers of one engine, where there are so many keys."""
    return CELLS + -(-2 * (holders + 1) // CELLS) * CELLS


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
        whole = sum(self.weights.values())
        self._parts = {
            name: _Part(CELLS + 2 * number, weight, int(max_queue_rows / 2 * weight / whole))
            for number, (name, weight) in enumerate(self.weights.items(), 1)
        }
        self._other = _Part(CELLS, 1.0, 0 if self._parts else max_queue_rows)
        self._common = max_queue_rows - sum(part.rows for part in (*self._parts.values(), self._other))

    @classmethod
    def shared(cls, settings: Settings, cells: int, number: int) -> Room:
        """That of an engine by its number; ``cells`` is the descriptor of the memory that all processes share."""
        weights = Keys.read(settings.keys, settings.keys_file).weights
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
        cells, part = self._cells, self._part(holder)
        before = cells[part.cell + 1]
        cells[part.cell + 1] = after = before + rows
        cells[READY] += rows
        if not (before and after):
            cells[ACTIVE] = max(0.0, cells[ACTIVE] + part.weight * ((after > 0) - (before > 0))) if cells[READY] else 0

    def _count(self, rows: int, holder: str) -> None:
        cells, part = self._cells, self._part(holder)
        before = cells[part.cell]
        cells[part.cell] = after = before + rows
        cells[QUEUED] += rows
        cells[COMMON] += max(0.0, after - part.rows) - max(0.0, before - part.rows)

    def _part(self, holder: str) -> _Part:
        return self._parts.get(holder, self._other)

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

    def check(self, rows: int, deadline: float, holder: str = "", *, cold: bool, spare: bool = False) -> None:
        """Whether so many rows more of a holder would be taken; ``cold`` ones wait for a load.

        ``spare``: and half of what it may have would be left, or half of what is reserved for it.
        Raises Draining or QueueFull.
        """
        self.check_open()
        part, limit = self._part(holder), self._limit
        queued, ready, own = self.queued, self.ready, int(self._cells[part.cell])
        own_ready = int(self._cells[part.cell + 1])
        before = self._before(part, ready, own_ready)
        wait, most = seconds(before, self._cells[RATE]), part.rows + self._common
        room = min(limit - queued, max(0, part.rows - own) + max(0, self._common - int(self._cells[COMMON])))
        if rows > most and not own:  # alone it may have what others do not need now
            room = limit - queued
        if rows > room:
            whose = f"the queue holds {queued} rows, the limit is {limit}"
            if self._parts:
                whose = f"the queue holds {own} rows of this key, {queued} in all, and has room for {room} more of it"
            raise QueueFull(
                f"{whose} (max_queue_rows); try again in {wait or 1.0:.1f} s",
                retry_after=wait or 1.0, field="max_queue_rows", limit=most, value=own + rows,
            )  # fmt: skip
        if spare and own + rows > part.rows // 2 and room < max(rows, most // 2):
            raise QueueFull("half of the queue is for others", retry_after=wait or 1.0)
        loading, share = queued - ready, max(rows, int(LOADING_SHARE * limit))
        if cold and loading + rows > share and own - own_ready + rows > LOADING_SHARE * part.rows:
            raise QueueFull(
                f"{loading} rows wait for adapters to be loaded, the limit is {share} of the queue's {limit}; "
                "try again in 1 s",
                retry_after=1.0, limit=share, value=loading + rows, reason="loads",
            )  # fmt: skip
        left = deadline - self._clock()
        if wait is not None and wait > HOPE * left:
            raise self._too_late(f"the {before} rows in the queue take about {wait:.1f} s", wait, left, "rows")

    def _before(self, part: _Part, ready: int, own: int) -> int:
        """How many of the rows that are ready go before another one of a holder: its own, and what others may send."""
        if not self._parts:
            return ready
        active = self._cells[ACTIVE] + (0.0 if own else part.weight)
        return min(ready, math.ceil(own * active / part.weight))

    def behind(self, error: LoadsBehind, deadline: float) -> QueueFull:
        """What a caller is told whose adapter cannot be loaded in time."""
        return self._too_late(error.message, error.wait_s, deadline - self._clock(), "loads")

    def _too_late(self, why: str, wait: float, left: float, reason: str) -> QueueFull:
        return QueueFull(
            f"{why}, and this request has {max(0.0, left):.1f} s; try again later, or allow more time with the header "
            "X-Deadline-Ms",
            retry_after=wait, field="X-Deadline-Ms", value=round(wait, 3), reason=reason,
        )  # fmt: skip
