"""FrameDecoder: frames out of a clip's packets, past those that do not decode, from the start or from a keyframe.

It does not know which frames are wanted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from av.error import FFmpegError
from av.video.frame import VideoFrame

from adapters.media.packets import Clip, VideoPacket


class TimesLie(Exception):  # for choose.py, never seen outside
    """The decoder's frames do not come at the times that the packets promised."""


class FrameDecoder:
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
            raise TimesLie
        return self._ahead.pts or 0

    def on_screen_at(self, time: int) -> VideoFrame:
        """The good frame with the greatest presentation time up to ``time`` (ticks), or else the first one.

        Times asked must not descend. Raises TimesLie where frames come unordered or without times.
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
            raise TimesLie
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
                raise TimesLie
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
            if frame.is_corrupt or frame.pts in self._clip.cut:
                self.bad.add(name)
                self._flagged.add(name)
            else:
                if frame.pts is not None:  # bad when it was tried before, from another keyframe
                    self.bad.discard(name)
                    self._flagged.discard(name)
                self._ready.append(frame)

    def _name(self, time: int | None) -> int:
        return -self._next if time is None else time


def _is_blank(packet: VideoPacket) -> bool:
    """Whether nothing but zeros is left of it, which some decoders take for nothing new."""
    return not any(memoryview(packet)[:64]) and bytes(packet).count(0) == packet.size
