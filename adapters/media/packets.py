"""From a clip's compressed packets to the decoded frames that stand for it.

It does not know files, containers' names or pictures; a frame here is still the codec's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile
from typing import TypeAlias

from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from adapters.errors import BrokenMedia
from adapters.media.limits import Deadline, MediaLimits, bound, check_missed
from adapters.media.timeline import Timeline

STREAMED = ("mpegts", "mpeg")
"""FFmpeg's names of containers that are broadcast, and recorded from wherever they were."""

VideoPacket: TypeAlias = "Packet[VideoStream]"


@dataclass(frozen=True)
class Clip:
    """A clip taken out of its container: its packets in decoding order, and the codec to feed them to.

    ``keys``: indices of the keyframes' packets, in the container's word where it has an index: FFmpeg's
    parsers go by the packet's bytes, which may be broken.
    """

    codec: VideoCodecContext
    packets: list[VideoPacket]
    keys: frozenset[int]
    limits: MediaLimits
    deadline: Deadline


@dataclass(frozen=True)
class Chosen:
    """Decoded ``frames`` by key, and the ``order``, ascending in time, in which keys stand for the clip.

    ``bad``: frames of the clip that had to be decoded on the way and could not be.
    """

    frames: dict[int, VideoFrame]
    order: list[int]
    bad: int


class _TimesLie(Exception):  # caught here, never seen outside
    """The decoder's frames do not come at the times that the packets promised."""


def read_clip(container: InputContainer, stream: VideoStream, limits: MediaLimits, deadline: Deadline) -> Clip:
    """All packets of the stream that are there, still compressed. Raises BrokenMedia where there are none.

    A clip that was cut short is what is left of it, in every container: a transport stream does not say how
    long it was to be.
    """
    packets: list[VideoPacket] = []
    size = 0
    for packet in _demux(container, stream):
        deadline.check()
        if packet.dts is None and packet.pts is None and not packet.size:
            continue  # PyAV's own end mark
        packets.append(packet)
        size += packet.size
        bound("max_packets", "the clip has {value} packets or more", len(packets), limits.max_packets)
        # Tables can point at the same bytes again and again.
        bound("max_bytes", "the clip's packets have {value} bytes or more", size, 2 * limits.max_bytes)
    deadline.check()
    if container.format.name in STREAMED:
        # Switched on in the midst of it: the clip begins with the first keyframe.
        packets = list(dropwhile(lambda packet: not packet.is_keyframe, packets)) or packets
    if not any(packet.size for packet in packets):
        raise BrokenMedia("the clip's video stream holds no frame; check that the whole file was sent", field="body")
    if stream.time_base:
        seconds = float(_ticks(packets) * stream.time_base)
        bound("max_duration_s", "the clip lasts {value} seconds", seconds, limits.max_duration_s)
    return Clip(stream.codec_context, packets, _keys(container, stream, packets), limits, deadline)


def _demux(container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
    """The packets up to the first that cannot be read."""
    try:
        yield from container.demux(stream)
    except MemoryError:  # which may be one of FFmpeg's
        raise
    except FFmpegError:
        return


def _keys(container: InputContainer, stream: VideoStream, packets: list[VideoPacket]) -> frozenset[int]:
    listed = {entry.timestamp for entry in stream.index_entries if entry.is_keyframe}
    match container.format.name.split(",")[0]:
        case "mov" | "avi":
            keys = frozenset(i for i, packet in enumerate(packets) if packet.dts in listed)
        case "matroska":
            keys = frozenset(i for i, packet in enumerate(packets) if packet.pts in listed)
        case _:
            keys = frozenset()
    return keys or frozenset(i for i, packet in enumerate(packets) if packet.is_keyframe)


def choose_frames(clip: Clip, frames: int) -> Chosen:
    """The frames on screen at the middles of ``frames`` equal parts of the clip's duration.

    Goes by presentation time and jumps over what need not be decoded, where packets hold trustworthy
    times; counts frames from the start otherwise (AVI has no such times). In place of a frame that does
    not decode stands the good one before it, or the first. Raises BrokenMedia where that is more than half.
    """
    shown = [p for p in clip.packets if not p.is_discard] or clip.packets
    times = sorted({p.pts for p in shown if p.pts is not None})
    if len(times) == len(shown):
        last = max(shown, key=lambda p: p.pts or 0)
        try:
            return _by_time(clip, times, last.duration or 0, frames)
        except _TimesLie:
            pass
    return _by_count(clip, _counted_timeline(shown), frames)


def _ticks(packets: list[VideoPacket]) -> int:
    """From the first frame to the end of the last, in the stream's time base; 0 where nothing is known."""
    starts = [(p.pts if p.pts is not None else p.dts, p.duration or 0) for p in packets]
    known = [(start, start + duration) for start, duration in starts if start is not None]
    return max(end for _, end in known) - min(start for start, _ in known) if known else 0


def _by_time(clip: Clip, times: list[int], last_duration: int, frames: int) -> Chosen:
    decoder, kept, order, missed = _Decoder(clip), _Kept(clip.limits), [], 0
    start = clip.packets[0].pts or 0
    if times[0] < start:
        # Pictures shown before the keyframe that comes first, which may lean on what is not there.
        times = times[bisect_left(times, decoder.first_time()) :] or times[-1:]
    for time in (times[i] for i in Timeline.of(times, last_duration).uniform(frames)):
        frame = decoder.on_screen_at(time)
        key = frame.pts or 0  # no frame without a time gets here
        if key != time and not frame.interlaced_frame:  # a frame of two fields may come in two packets
            decoder.bad.add(time)
            missed += 1
        order.append(kept.add(key, frame))
    check_missed(missed, frames)
    return Chosen(kept.frames, order, len(decoder.bad))


def _by_count(clip: Clip, timeline: Timeline, frames: int) -> Chosen:
    """Decode all and keep the wanted; once more where packets and frames turn out not to be one to one."""
    for _ in range(2):
        decoder, kept, wanted = _Decoder(clip), _Kept(clip.limits), timeline.uniform(frames)
        order: list[int] = []
        shown: tuple[int, VideoFrame] | None = None
        count = 0
        for frame in decoder.rest():
            ahead = count + len(decoder.bad), frame  # what does not decode is counted too
            while len(order) < frames and wanted[len(order)] < ahead[0]:
                order.append(kept.add(*(shown or ahead)))
            shown, count = ahead, count + 1
        if shown is None:
            raise BrokenMedia("no frame of the clip decodes; check that the whole file was sent", field="body")
        while len(order) < frames:
            order.append(kept.add(*shown))
        total = count + len(decoder.bad)
        if total == len(timeline.times):
            break
        timeline = Timeline.even(total)
    check_missed(sum(index != key for index, key in zip(wanted, order, strict=True)), frames)
    return Chosen(kept.frames, order, len(decoder.bad))


def _counted_timeline(packets: list[VideoPacket]) -> Timeline:
    """Times for the n-th frame to come out, where only the order of decoding is known."""
    times = sorted({p.dts for p in packets if p.dts is not None})
    if len(times) == len(packets):
        return Timeline.of(times, packets[-1].duration or 0)
    return Timeline.even(len(packets))


def _is_blank(packet: VideoPacket) -> bool:
    """Whether nothing but zeros is left of it, which some decoders take for nothing new."""
    return not any(memoryview(packet)[:64]) and bytes(packet).count(0) == packet.size


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


class _Decoder:
    """A codec fed with packets one by one, from the start or from a keyframe, past those that do not decode.

    ``bad``: the times of frames that did not decode; below zero the packet's number, where it has no time.
    ``_next``: index of the packet to feed next. ``_shown``: the last frame looked at. ``_ahead``: the one after
    it, where it had to be decoded to know that ``_shown`` is still on screen.
    """

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._keys = [
            (packet.pts, i) for i, packet in enumerate(clip.packets)
            if i in clip.keys and packet.is_keyframe and packet.pts is not None
        ]  # fmt: skip
        self._cut = {p.pts for p in clip.packets if p.is_corrupt and p.pts is not None}
        self.bad: set[int] = set()
        self._flagged: set[int] = set()  # those of them that came out, and were called damaged
        self._restart(0)

    def _restart(self, index: int) -> None:
        self._clip.codec.flush_buffers()
        self._start = self._next = index
        self._drained = False
        self._keyframe_lost = bool(self._clip.keys)  # until there is one
        self._ready: deque[VideoFrame] = deque()
        self._shown: VideoFrame | None = None
        self._ahead: VideoFrame | None = None
        self._latest: int | None = None

    def rest(self) -> Iterator[VideoFrame]:
        """All good frames still to come, in the order of presentation."""
        while (frame := self._pull()) is not None:
            yield frame

    def first_time(self) -> int:
        """When the first frame is shown, in ticks; the next call asks for no earlier one."""
        self._ahead = self._pull_timed()
        if self._ahead is None:
            raise _TimesLie
        return self._ahead.pts or 0

    def on_screen_at(self, time: int) -> VideoFrame:
        """The good frame with the greatest presentation time up to ``time`` (ticks), or else the first one.

        Times asked must not descend. Raises _TimesLie where frames come unordered or without times.
        """
        self._jump_towards(time)
        self._play_to(time)
        if self._start and self._is_lost(time):  # the jump may be to blame, or the keyframe is broken
            self._restart(max((index for _, index in self._keys if index < self._start), default=0))
            self._play_to(time)
        if self._start and self._is_lost(time):
            self._keys = []
            self._restart(0)
            self._play_to(time)
        frame = self._shown or self._ahead
        if frame is None:
            raise _TimesLie
        return frame

    def _play_to(self, time: int) -> None:
        while self._shown is None or self._shown.pts != time:
            frame = self._ahead or self._pull_timed()
            if frame is None or (frame.pts or 0) > time:
                self._ahead = frame
                break
            self._shown, self._ahead = frame, None

    def _is_lost(self, time: int) -> bool:
        return self._shown is None or time in self._flagged

    def _jump_towards(self, time: int) -> None:
        """Go on at the last keyframe up to ``time``, if that is further on than we are."""
        start = max((index for pts, index in self._keys if pts <= time), default=0)
        if start > self._next:
            self._restart(start)

    def _pull_timed(self) -> VideoFrame | None:
        while (frame := self._pull()) is not None:
            if frame.pts is not None and (self._latest is None or frame.pts > self._latest):
                self._latest = frame.pts
                break
            if not self.bad:  # a damaged clip may come in disorder where it is damaged
                raise _TimesLie
        return frame

    def _pull(self) -> VideoFrame | None:
        packets = self._clip.packets
        while not self._ready and not self._drained:
            self._clip.deadline.check()
            if self._next < len(packets):
                packet = packets[self._next]
                self._next += 1
                if packet.size:  # an empty one would tell the codec that the clip ends
                    self._feed(packet)
            else:
                self._drained = True
                self._feed(None)
        return self._ready.popleft() if self._ready else None

    def _feed(self, packet: VideoPacket | None) -> None:
        """What builds on a lost keyframe is lost with it: a decoder would show something, and call it a picture."""
        is_key = self._next - 1 in self._clip.keys
        if packet is not None:
            self._keyframe_lost = self._keyframe_lost and not (is_key or packet.is_keyframe)
            if self._keyframe_lost or _is_blank(packet):
                self.bad.add(self._name(packet.pts))
                self._keyframe_lost |= is_key
                return
        try:
            frames = self._clip.codec.decode(packet)
        except MemoryError:  # which may be one of FFmpeg's
            raise
        except FFmpegError:
            codec = self._clip.codec
            if codec.width and codec.height:
                self._clip.limits.check_frame(codec.width, codec.height)
            if packet is not None:
                self.bad.add(self._name(packet.pts))
                self._keyframe_lost = is_key
            return
        for frame in frames:
            name = self._name(frame.pts)
            if frame.is_corrupt or frame.pts in self._cut:
                self.bad.add(name)
                self._flagged.add(name)
            else:
                self.bad.discard(name)
                self._flagged.discard(name)
                self._ready.append(frame)

    def _name(self, time: int | None) -> int:
        return -self._next if time is None else time
