"""Timeline: when each frame of a clip is on screen, and which frames stand for the clip.

It does not know containers, codecs or pictures.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from adapters.config import VideoConfig


@dataclass(frozen=True)
class Sampling:
    """Which frames of a clip are wanted: all that decoding must know of a ``VideoConfig``."""

    frames: int
    kind: Literal["uniform", "dense"] = "uniform"
    stride: int = 1
    views: int = 1

    @classmethod
    def of(cls, video: VideoConfig) -> Sampling:
        return cls(video.frames, video.sampling, video.stride, video.views)

    def __post_init__(self) -> None:
        if min(self.frames, self.stride, self.views) < 1 or self.kind not in ("uniform", "dense"):
            raise ValueError(f"frames, stride and views are at least 1, the kind 'uniform' or 'dense', got {self}")

    @property
    def count(self) -> int:
        """Of the frames of all views."""
        return self.frames * self.views


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

    def chosen(self, wanted: Sampling) -> list[int]:
        """Indices of the frames of all views, one view after the other, each ascending."""
        if wanted.kind == "dense":
            return self.dense(wanted.frames, wanted.stride, wanted.views)
        every = self.uniform(wanted.count)  # in each part a frame for each view, as VideoMAE's sparse views
        return [index for view in range(wanted.views) for index in every[view :: wanted.views]]

    def dense(self, frames: int, stride: int, views: int = 1) -> list[int]:
        """Every ``stride``-th frame, by number and not by time: one view in the middle, several from end to end.

        Two views and more begin at equal distances, the first at the first frame, the last so that it ends with the
        last one. Past the end the last frame repeats, as in VideoMAE's and SlowFast's loaders.
        """
        last = len(self.times) - 1
        spare = max(last - (frames - 1) * stride, 0)
        starts = [spare // 2] if views == 1 else [view * spare // (views - 1) for view in range(views)]
        return [min(start + step * stride, last) for start in starts for step in range(frames)]

    def uniform(self, frames: int) -> list[int]:
        """Ascending indices (they repeat where frames are few): the frame on screen at the middle of each part.

        The clip is cut into ``frames`` equal parts of time; integers throughout, so that nothing is rounded
        differently elsewhere.
        """
        start, span = self.times[0], self.end - self.times[0]
        middles = (start + (2 * part + 1) * span // (2 * frames) for part in range(frames))
        return [bisect_right(self.times, middle) - 1 for middle in middles]
