"""choose_frames: the decoded frames that stand for a clip.

It does not know files, containers or pictures; a frame here is still the codec's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from av.video.frame import VideoFrame

from adapters.errors import BrokenMedia
from adapters.limits import MediaLimits, check_missed
from adapters.media.decoder import FrameDecoder, TimesLie
from adapters.media.packets import Clip, VideoPacket
from adapters.media.timeline import Sampling, Span, Timeline


@dataclass(frozen=True)
class Chosen:
    """Decoded ``frames`` by key, and the ``order`` in which keys stand for the clip: ascending in time in each view.

    ``bad``: frames of the clip that had to be decoded on the way and could not be. ``spans``: the parts that they stand
    for, one after the other; none where it is the whole clip. ``times``: when each of ``order`` begins, in seconds
    after the clip's first frame; none where no time is known.
    """

    frames: dict[int, VideoFrame]
    order: list[int]
    bad: int
    spans: Sequence[Span] = ()
    times: Sequence[float] = ()


def choose_frames(clip: Clip, wanted: Sampling) -> Chosen:
    """The frames that stand for the clip, each decoded once, however many views share it.

    Goes by presentation time and jumps over what need not be decoded, where packets hold trustworthy
    times; counts frames from the start otherwise (AVI has no such times). In place of a frame that does
    not decode stands the good one before it, or the first. Raises BrokenMedia where that is more than half.
    """
    shown = [p for p in clip.packets if not p.is_discard] or clip.packets
    times = sorted({p.pts for p in shown if p.pts is not None})
    if len(times) == len(shown) and _keyframes_ascend(clip):
        last = max(shown, key=lambda p: p.pts or 0)
        try:
            return _by_time(clip, times, last.duration or 0, wanted)
        except TimesLie:
            pass
    return _by_count(clip, _counted_timeline(clip, shown), wanted)


def _keyframes_ascend(clip: Clip) -> bool:
    """False for recordings that were put one behind the other, each with its own clock."""
    return _ascend([clip.packets[i].pts or 0 for i in sorted(clip.keys)])


def _ascend(times: list[int]) -> bool:
    return all(earlier < later for earlier, later in pairwise(times))


def _by_time(clip: Clip, times: list[int], last_duration: int, wanted: Sampling) -> Chosen:
    decoder, kept, keys, missed = FrameDecoder(clip), _Kept(clip.limits), dict[int, int](), []
    start = clip.packets[0].pts or 0
    if times[0] < start:
        # Pictures shown before the keyframe that comes first, which may lean on what is not there.
        times = times[bisect_left(times, decoder.first_time()) :] or times[-1:]
    timeline = Timeline.of(times, last_duration, _ticks_per_second(clip))
    spans = timeline.spans(wanted, clip.limits.max_windows)
    chosen = timeline.chosen(wanted, spans)
    for index in sorted(chosen):  # views overlap, and a decoder goes forwards
        time = times[index]
        frame = decoder.on_screen_at(time)
        key = frame.pts or 0  # no frame without a time gets here
        if key != time and not frame.interlaced_frame:  # a frame of two fields may come in two packets
            missed.append(time)
        keys[index] = kept.add(key, frame)
    if not decoder.bad and 2 * len(missed) > len(chosen):
        raise TimesLie
    check_missed(len(missed), len(chosen))
    bad, seconds = len(decoder.bad.union(missed)), timeline.seconds(chosen)
    return Chosen(kept.frames, [keys[index] for index in chosen], bad, spans, seconds)


def _by_count(clip: Clip, timeline: Timeline, wanted: Sampling) -> Chosen:
    """Decode all and keep the wanted; once more where packets and frames turn out not to be one to one."""
    for _ in range(2):
        decoder, kept, spans = FrameDecoder(clip), _Kept(clip.limits), timeline.spans(wanted, clip.limits.max_windows)
        chosen = timeline.chosen(wanted, spans)
        ascending, order = sorted(chosen), list[int]()
        shown: tuple[int, VideoFrame] | None = None
        count = 0
        for frame in decoder.rest():
            ahead = count + len(decoder.bad), frame  # what does not decode is counted too
            while len(order) < len(ascending) and ascending[len(order)] < ahead[0]:
                order.append(kept.add(*(shown or ahead)))
            shown, count = ahead, count + 1
        if shown is None:
            raise BrokenMedia("no frame of the clip decodes; check that the whole file was sent", field="body")
        while len(order) < len(ascending):
            order.append(kept.add(*shown))
        total = count + len(decoder.bad)
        if total == len(timeline.times):
            break
        timeline = Timeline.even(total, clip.codec.framerate or None)
    keys = dict(zip(ascending, order, strict=True))
    check_missed(sum(index != keys[index] for index in chosen), len(chosen))
    seconds = timeline.seconds(chosen)
    return Chosen(kept.frames, [keys[index] for index in chosen], len(decoder.bad), spans, seconds)


def _ticks_per_second(clip: Clip) -> Fraction | None:
    base = clip.packets[0].time_base
    return 1 / base if base else None


def _counted_timeline(clip: Clip, packets: list[VideoPacket]) -> Timeline:
    """Times for the n-th frame to come out, where only the order of decoding is known."""
    times = [p.dts for p in packets if p.dts is not None]
    if len(times) == len(packets) and _ascend(times):
        return Timeline.of(times, packets[-1].duration or 0, _ticks_per_second(clip))
    return Timeline.even(len(packets), clip.codec.framerate or None)


class _Kept:
    """The frames that will be returned, by key; bounded by their pixels as they come."""

    def __init__(self, limits: MediaLimits) -> None:
        self.frames: dict[int, VideoFrame] = {}
        self._pixels = 0
        self._limits = limits

    def add(self, key: int, frame: VideoFrame) -> int:
        """Keep the frame, once. Returns its key."""
        if key not in self.frames:
            self._limits.check_frame(frame.width, frame.height)
            self._pixels += frame.width * frame.height
            self._limits.check_clip(self._pixels)
            self.frames[key] = frame
        return key
