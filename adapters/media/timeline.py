"""Timeline: when each frame of a clip is on screen, and which frames stand for the clip.

It does not know containers, codecs or pictures.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timeline:
    """``times``: ascending start of each frame, in ticks. ``end``: where the last one ends, after its start."""

    times: Sequence[int]
    end: int

    @classmethod
    def of(cls, times: Sequence[int], last_duration: int) -> Timeline:
        """From ascending times; an unknown (not positive) last duration is that of the frame before, or 1."""
        if last_duration <= 0:
            last_duration = times[-1] - times[-2] if len(times) > 1 else 1
        return cls(times, times[-1] + max(last_duration, 1))

    @classmethod
    def even(cls, count: int) -> Timeline:
        """``count`` frames of one tick each."""
        return cls(range(count), count)

    def uniform(self, frames: int) -> list[int]:
        """Ascending indices (they repeat where frames are few): the frame on screen at the middle of each part.

        The clip is cut into ``frames`` equal parts of time; integers throughout, so that nothing is rounded
        differently elsewhere.
        """
        start, span = self.times[0], self.end - self.times[0]
        middles = (start + (2 * part + 1) * span // (2 * frames) for part in range(frames))
        return [bisect_right(self.times, middle) - 1 for middle in middles]
