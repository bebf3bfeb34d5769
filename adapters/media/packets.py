"""From a clip's compressed packets to the decoded frames that stand for it.

It does not know files, containers' names or pictures; a frame here is still the codec's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from adapters.errors import BrokenMedia
from adapters.limits import Deadline, MediaLimits, bound
from adapters.media.timeline import Timeline

VideoPacket: TypeAlias = "Packet[VideoStream]"


@dataclass(frozen=True)
class Clip:
    """A clip taken out of its container: its packets in decoding order, and the codec to feed them to."""

    codec: VideoCodecContext
    packets: list[VideoPacket]
    limits: MediaLimits
    deadline: Deadline


@dataclass(frozen=True)
class Chosen:
    """Decoded ``frames`` by key, and the ``order``, ascending in time, in which keys stand for the clip."""

    frames: dict[int, VideoFrame]
    order: list[int]


class _TimesLie(Exception):  # caught here, never seen outside
    """The decoder's frames do not come at the times that the packets promised."""


def read_clip(container: InputContainer, stream: VideoStream, limits: MediaLimits, deadline: Deadline) -> Clip:
    """All packets of the stream, still compressed. Raises BrokenMedia where there are none or one is cut short."""
    packets: list[VideoPacket] = []
    size = 0
    for packet in container.demux(stream):
        deadline.check()
        if packet.dts is None and packet.pts is None and not packet.size:
            continue  # PyAV's own end mark
        if packet.is_corrupt:
            message = f"packet {len(packets)} of the clip is cut short; check that the whole file was sent"
            raise BrokenMedia(message, field="body")
        packets.append(packet)
        size += packet.size
        bound("max_packets", "the clip has {value} packets or more", len(packets), limits.max_packets)
        # Tables can point at the same bytes again and again.
        bound("max_bytes", "the clip's packets have {value} bytes or more", size, 2 * limits.max_bytes)
    deadline.check()
    if not packets:
        raise BrokenMedia("the clip's video stream holds no frame; check that the whole file was sent", field="body")
    if stream.time_base:
        seconds = float(_ticks(packets) * stream.time_base)
        bound("max_duration_s", "the clip lasts {value} seconds", seconds, limits.max_duration_s)
    return Clip(stream.codec_context, packets, limits, deadline)


def choose_frames(clip: Clip, frames: int) -> Chosen:
    """The frames on screen at the middles of ``frames`` equal parts of the clip's duration.

    Goes by presentation time and jumps over what need not be decoded, where packets hold trustworthy
    times; counts frames from the start otherwise (AVI has no such times).
    """
    shown = [p for p in clip.packets if not p.is_discard] or clip.packets
    times = sorted({p.pts for p in shown if p.pts is not None})
    if len(times) == len(shown):
        last = max(shown, key=lambda p: p.pts or 0)
        timeline = Timeline.of(times, last.duration or 0)
        try:
            return _by_time(clip, [times[i] for i in timeline.uniform(frames)])
        except _TimesLie:
            pass
    return _by_count(clip, _counted_timeline(shown), frames)


def _ticks(packets: list[VideoPacket]) -> int:
    """From the first frame to the end of the last, in the stream's time base; 0 where nothing is known."""
    starts = [(p.pts if p.pts is not None else p.dts, p.duration or 0) for p in packets]
    known = [(start, start + duration) for start, duration in starts if start is not None]
    return max(end for _, end in known) - min(start for start, _ in known) if known else 0


def _by_time(clip: Clip, wanted: list[int]) -> Chosen:
    decoder, kept, order = _Decoder(clip), _Kept(clip.limits), []
    for time in wanted:
        frame = decoder.on_screen_at(time)
        key = frame.pts or 0  # no frame without a time gets here
        kept.add(key, frame)
        order.append(key)
    return Chosen(kept.frames, order)


def _by_count(clip: Clip, timeline: Timeline, frames: int) -> Chosen:
    """Decode all and keep the wanted; once more where packets and frames turn out not to be one to one."""
    for _ in range(2):
        kept, wanted = _Kept(clip.limits), timeline.uniform(frames)
        count = 0
        for frame in _Decoder(clip).rest():
            if count in wanted:
                kept.add(count, frame)
            count += 1
        if count == len(timeline.times):
            return Chosen(kept.frames, wanted)
        if not count:
            break
        timeline = Timeline.even(count)
    raise BrokenMedia("no frame of the clip decodes; check that the whole file was sent", field="body")


def _counted_timeline(packets: list[VideoPacket]) -> Timeline:
    """Times for the n-th frame to come out, where only the order of decoding is known."""
    times = sorted({p.dts for p in packets if p.dts is not None})
    if len(times) == len(packets):
        return Timeline.of(times, packets[-1].duration or 0)
    return Timeline.even(len(packets))


class _Kept:
    """The frames that will be returned, by key; bounded by their pixels as they come."""

    def __init__(self, limits: MediaLimits) -> None:
        self.frames: dict[int, VideoFrame] = {}
        self._pixels = 0
        self._limits = limits

    def add(self, key: int, frame: VideoFrame) -> None:
        if key not in self.frames:
            self._limits.check_frame(frame.width, frame.height)
            self._pixels += frame.width * frame.height
            sentence = "the frames asked for have {value} pixels or more"
            bound("max_clip_pixels", sentence, self._pixels, self._limits.max_clip_pixels)
            self.frames[key] = frame


class _Decoder:
    """A codec fed with packets one by one, from the start or from a keyframe.

    ``_next``: index of the packet to feed next. ``_shown``: the last frame looked at. ``_ahead``: the one after
    it, where it had to be decoded to know that ``_shown`` is still on screen.
    """

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._keys = [(p.pts, i) for i, p in enumerate(clip.packets) if p.is_keyframe and p.pts is not None]
        self._restart(0)

    def _restart(self, index: int) -> None:
        self._clip.codec.flush_buffers()
        self._next = index
        self._jumped = index > 0
        self._drained = False
        self._ready: deque[VideoFrame] = deque()
        self._shown: VideoFrame | None = None
        self._ahead: VideoFrame | None = None
        self._latest: int | None = None

    def rest(self) -> Iterator[VideoFrame]:
        """All frames still to come, in the order of presentation."""
        while (frame := self._pull()) is not None:
            yield frame

    def on_screen_at(self, time: int) -> VideoFrame:
        """The frame with the greatest presentation time up to ``time`` (ticks); times asked must not descend.

        Raises _TimesLie where frames come unordered, without times, or damaged after a jump.
        """
        self._jump_towards(time)
        while self._shown is None or self._shown.pts != time:
            frame = self._ahead or self._pull_timed()
            if frame is None or (frame.pts or 0) > time:
                self._ahead = frame
                break
            self._shown, self._ahead = frame, None
        if self._shown is None or (self._jumped and self._shown.is_corrupt):
            raise _TimesLie
        return self._shown

    def _jump_towards(self, time: int) -> None:
        """Go on at the last keyframe up to ``time``, if that is further on than we are."""
        start = max((index for pts, index in self._keys if pts <= time), default=0)
        if start > self._next:
            self._restart(start)

    def _pull_timed(self) -> VideoFrame | None:
        frame = self._pull()
        if frame is not None:
            if frame.pts is None or (self._latest is not None and frame.pts <= self._latest):
                raise _TimesLie
            self._latest = frame.pts
        return frame

    def _pull(self) -> VideoFrame | None:
        packets = self._clip.packets
        while not self._ready and not self._drained:
            self._clip.deadline.check()
            if self._next < len(packets):
                packet = packets[self._next]
                self._next += 1
                if packet.size:  # an empty one would tell the codec that the clip ends
                    self._ready.extend(self._clip.codec.decode(packet))
            else:
                self._drained = True
                self._ready.extend(self._clip.codec.decode(None))
        return self._ready.popleft() if self._ready else None
