"""Pace: how many rows a second the device answers while it is busy, and so how long a queue takes.

It does not know tickets, threads or the device; times are passed in.
"""

from __future__ import annotations

SMOOTH = 0.8
"""Share of the old value that each batch keeps."""
HOPE = 0.3
"""Share of a caller's time that the queue before it may be expected to take. What comes in meanwhile joins its batch,
which may then take as long as that queue did, and the pace may change."""


class Pace:
    """Learns from batches that were at least half full, from the end of one to the end of the next.

    A small batch says only that the pace is at least its own: a device may take as long for one row as for thirty.
    """

    def __init__(self, full_rows: int) -> None:
        self._full_rows = full_rows
        self.rows_per_s = 0.0
        """0 until a batch was full enough to tell."""
        self._last_end = float("-inf")

    def saw(self, rows: int, first_submitted: float, end: float) -> None:
        """A batch ended; ``first_submitted`` is when its oldest ticket came. On one thread only."""
        taken = end - max(self._last_end, first_submitted)
        self._last_end = end
        rate, known = rows / max(taken, 1e-6), self.rows_per_s
        if 2 * rows >= self._full_rows or (known and rate > known):
            self.rows_per_s = SMOOTH * known + (1 - SMOOTH) * rate if known else rate


def seconds(rows: int, rows_per_s: float) -> float | None:
    """How long so many rows take; None where the pace is not known yet."""
    return rows / rows_per_s if rows_per_s else None
