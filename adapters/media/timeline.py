"""Timeline: when each frame of a clip is on screen, and which frames stand for the clip.

It does not know containers, codecs or pictures.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from adapters.config import VideoConfig
from adapters.errors import MediaTooLarge, OutsideClip, UnsupportedMedia
from adapters.limits import variable

Span = tuple[float, float]
"""Where a part of a clip begins and ends, in seconds after its first frame."""
LEAST_S = 0.001
"""The shortest part, window and stride, and by how much an end may be past the clip's."""
ROUNDING_S = 1e-6
"""By how much a window may be longer than what is left: 0.3 - 0.1 is less than 0.2."""


@dataclass(frozen=True)
class Excerpt:
    """Which part of a clip is looked at, in seconds: all of it from ``start`` to ``end``, or ``window`` by ``window``.

    A window begins every ``stride`` seconds (if that is None, one behind the other), while it ends within the part.
    """

    start: float = 0.0
    end: float | None = None
    window: float | None = None
    stride: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError, with the field's name first."""
        for name, least in (("start", 0.0), ("end", LEAST_S), ("window", LEAST_S), ("stride", LEAST_S)):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} is {value:g} seconds, and must be at least {least:g}")
        if self.end is not None and self.end - self.start < LEAST_S:
            raise ValueError(
                f"end is {self.end:g} seconds, and start {self.start:g}: the part must last {LEAST_S:g} at least"
            )
        if self.stride is not None and self.window is None:
            raise ValueError("stride is for windows; say how long they are with window")

    def spans(self, duration: float, most: int) -> list[Span]:
        """The parts of a clip that lasts so many seconds. Raises OutsideClip, MediaTooLarge for more than ``most``."""
        end = duration if self.end is None else self.end
        for name, value, last in (("start", self.start, duration - LEAST_S), ("end", end, duration + LEAST_S)):
            if value > last:
                raise OutsideClip(
                    f"{name} is {value:g} s, and the clip lasts {duration:.3f} s",
                    field=name, limit=round(duration, 3), value=value,
                )  # fmt: skip
        end = min(end, duration)
        if self.window is None:
            return [(self.start, end)]
        spare, stride = end - self.start - self.window, self.stride or self.window
        if spare < -ROUNDING_S:
            raise OutsideClip(
                f"window is {self.window:g} s, and the part of the clip lasts {end - self.start:.3f} s",
                field="window", limit=round(end - self.start, 3), value=self.window,
            )  # fmt: skip
        count = int((spare + ROUNDING_S) / stride) + 1
        if count > most:
            raise MediaTooLarge(
                f"{count} windows are asked, at most {most} are taken; ask for a longer stride or a shorter part, or "
                f"allow more with {variable('max_windows')}",
                field="max_windows", limit=most, value=count,
            )  # fmt: skip
        starts = (round(self.start + number * stride, 6) for number in range(count))
        return [(start, round(min(start + self.window, end), 6)) for start in starts]


@dataclass(frozen=True)
class Sampling:
    """Which frames of a clip are wanted: all that decoding must know of a ``VideoConfig``."""

    frames: int
    kind: Literal["uniform", "dense"] = "uniform"
    stride: int = 1
    views: int = 1
    excerpt: Excerpt | None = None

    @classmethod
    def of(cls, video: VideoConfig, excerpt: Excerpt | None = None) -> Sampling:
        return cls(video.frames, video.sampling, video.stride, video.views, excerpt)

    def __post_init__(self) -> None:
        if min(self.frames, self.stride, self.views) < 1 or self.kind not in ("uniform", "dense"):
            raise ValueError(f"frames, stride and views are at least 1, the kind 'uniform' or 'dense', got {self}")

    @property
    def count(self) -> int:
        """Of the frames of all views of a part."""
        return self.frames * self.views


@dataclass(frozen=True)
class Timeline:
    """``times``: ascending start of each frame, in ticks. ``end``: where the last one ends, after its start.

    ``rate``: ticks in a second, None where that is not known.
    """

    times: Sequence[int]
    end: int
    rate: Fraction | None = None

    @classmethod
    def of(cls, times: Sequence[int], last_duration: int, rate: Fraction | None = None) -> Timeline:
        """From ascending times; an unknown (not positive) last duration is that of the frame before, or 1."""
        if last_duration <= 0:
            last_duration = times[-1] - times[-2] if len(times) > 1 else 1
        return cls(times, times[-1] + max(last_duration, 1), rate)

    @classmethod
    def even(cls, count: int, rate: Fraction | None = None) -> Timeline:
        """``count`` frames of one tick each."""
        return cls(range(count), count, rate)

    def spans(self, wanted: Sampling, most: int) -> list[Span]:
        """The parts of the clip that are wanted, none where it is all of it.

        Raises OutsideClip, MediaTooLarge for more than ``most``, UnsupportedMedia where no time is known.
        """
        if wanted.excerpt is None:
            return []
        if self.rate is None:
            raise UnsupportedMedia(
                "the clip does not say when its frames are shown, so no part of it can be asked for; send it in "
                "another container, or ask for all of it",
                field="start",
            )  # fmt: skip
        return wanted.excerpt.spans(float((self.end - self.times[0]) / self.rate), most)

    def seconds(self, indices: Sequence[int]) -> list[float]:
        """When these frames begin, in seconds after the first one; none where no time is known."""
        if self.rate is None:
            return []
        return [round(float((self.times[index] - self.times[0]) / self.rate), 6) for index in indices]

    def within(self, span: Span) -> tuple[int, Timeline]:
        """A part of it that begins with what is on screen then: that frame's number, and the part alone."""
        assert self.rate is not None, "no span is known without a rate"
        begin, end = (self.times[0] + round(Fraction(seconds) * self.rate) for seconds in span)
        begin = min(begin, self.end - 1)
        end = max(begin + 1, min(end, self.end))
        first = bisect_right(self.times, begin) - 1
        return first, Timeline([begin, *self.times[first + 1 : bisect_left(self.times, end)]], end)

    def chosen(self, wanted: Sampling, spans: Sequence[Span] = ()) -> list[int]:
        """Indices of the frames of all views, one view after the other, each ascending; of each part in turn."""
        if spans:
            parts = [self.within(span) for span in spans]
            return [first + index for first, part in parts for index in part.chosen(wanted)]
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
