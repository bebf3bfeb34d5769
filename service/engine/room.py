"""Room: how many rows the engine holds, how long they take, and who is refused for it.

It knows no threads, device or adapters; the engine calls it under its own lock.
"""

from __future__ import annotations

from collections.abc import Callable

from adapters.errors import BrokenMedia, LoadsBehind, MediaTooLarge
from service.engine.pace import HOPE, Pace
from service.errors import Draining, QueueFull

LOADING_SHARE = 0.75
"""Share of the queue that rows may take whose adapter is not there yet; the rest is for those that need no load."""


class Room:
    """``queued`` rows are accepted and not yet answered; ``ready`` are those of them that have their slot."""

    def __init__(self, *, max_batch_rows: int, max_queue_rows: int, clock: Callable[[], float]) -> None:
        self.open = True
        self.queued = self.ready = 0
        self.pace = Pace(max_batch_rows)
        self._most, self._limit, self._clock = max_batch_rows, max_queue_rows, clock

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
        queued, limit = self.queued, self._limit
        wait = self.pace.seconds(self.ready)
        if queued + rows > limit:
            raise QueueFull(
                f"the queue holds {queued} rows, the limit is {limit} (max_queue_rows); "
                f"try again in {wait or 1.0:.1f} s",
                retry_after=wait or 1.0, field="max_queue_rows", limit=limit, value=queued + rows,
            )  # fmt: skip
        loading, share = queued - self.ready, max(rows, int(LOADING_SHARE * limit))
        if cold and loading + rows > share:
            raise QueueFull(
                f"{loading} rows wait for adapters to be loaded, the limit is {share} of the queue's {limit}; "
                "try again in 1 s",
                retry_after=1.0, limit=share, value=loading + rows, reason="loads",
            )  # fmt: skip
        left = deadline - self._clock()
        if wait is not None and wait > HOPE * left:
            raise self._too_late(f"the {self.ready} rows in the queue take about {wait:.1f} s", wait, left, "rows")

    def behind(self, error: LoadsBehind, deadline: float) -> QueueFull:
        """What a caller is told whose adapter cannot be loaded in time."""
        return self._too_late(error.message, error.wait_s, deadline - self._clock(), "loads")

    def _too_late(self, why: str, wait: float, left: float, reason: str) -> QueueFull:
        return QueueFull(
            f"{why}, and this request has {max(0.0, left):.1f} s; try again later, or allow more time with the header "
            "X-Deadline-Ms",
            retry_after=wait, field="X-Deadline-Ms", value=round(wait, 3), reason=reason,
        )  # fmt: skip
