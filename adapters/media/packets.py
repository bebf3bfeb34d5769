"""read_clip: a clip's compressed packets out of its container, as many as there are.

It does not decode them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile
from typing import TypeAlias

from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from adapters.errors import BrokenMedia
from adapters.limits import Deadline, MediaLimits, bound

STREAMED = ("mpegts", "mpeg")
"""FFmpeg's names of containers that are broadcast, and recorded from wherever they were."""

VideoPacket: TypeAlias = "Packet[VideoStream]"


@dataclass(frozen=True)
class Clip:
    """A clip taken out of its container: its packets in decoding order, and the codec to feed them to.

    ``keys``: indices of the keyframes' packets, in the container's word where it has an index: FFmpeg's
    parsers go by the packet's bytes, which may be broken. ``cut``: times of packets that are not there in full.
    """

    codec: VideoCodecContext
    packets: list[VideoPacket]
    keys: frozenset[int]
    cut: frozenset[int]
    limits: MediaLimits
    deadline: Deadline


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
    streamed = container.format.name in STREAMED
    if streamed:
        # Switched on in the midst of it: the clip begins with the first keyframe.
        packets = list(dropwhile(lambda packet: not packet.is_keyframe, packets)) or packets
    if not any(packet.size for packet in packets):
        raise BrokenMedia("the clip's video stream holds no frame; check that the whole file was sent", field="body")
    if stream.time_base:
        seconds = float(_ticks(packets) * stream.time_base)
        bound("max_duration_s", "the clip lasts {value} seconds", seconds, limits.max_duration_s)
    # In a stream a packet after a gap is called cut too, and may be whole.
    cut = frozenset(p.pts for p in packets if p.is_corrupt and p.pts is not None and not streamed)
    return Clip(stream.codec_context, packets, _keys(container, stream, packets), cut, limits, deadline)


def _demux(container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
    """The packets up to the first that cannot be read."""
    try:
        yield from container.demux(stream)
    except MemoryError:  # which may be one of FFmpeg's
        raise
    except FFmpegError:
        return


def _keys(container: InputContainer, stream: VideoStream, packets: list[VideoPacket]) -> frozenset[int]:
    # An index of entries without packets is not worth reading.
    entries = stream.index_entries if len(stream.index_entries) <= 2 * len(packets) + 1000 else ()
    listed = {entry.timestamp for entry in entries if entry.is_keyframe}
    match container.format.name.split(",")[0]:
        case "mov" | "avi":
            keys = frozenset(i for i, packet in enumerate(packets) if packet.dts in listed)
        case "matroska":
            keys = frozenset(i for i, packet in enumerate(packets) if packet.pts in listed)
        case _:
            keys = frozenset()
    return keys or frozenset(i for i, packet in enumerate(packets) if packet.is_keyframe)


def _ticks(packets: list[VideoPacket]) -> int:
    """From the first frame to the end of the last, in the stream's time base; 0 where nothing is known."""
    starts = [(p.pts if p.pts is not None else p.dts, p.duration or 0) for p in packets]
    known = [(start, start + duration) for start, duration in starts if start is not None]
    return max(end for _, end in known) - min(start for start, _ in known) if known else 0
