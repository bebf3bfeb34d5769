"""Which frames come out of whole, broken and cut clips, and how many are called bad."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Collection
from dataclasses import replace
from functools import cache

import av
import numpy as np
import pytest
from av.container import InputContainer
from av.error import FFmpegError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adapters.clip_formats import CONTAINERS
from adapters.errors import BrokenMedia, MediaError
from adapters.media import Deadline, MediaLimits, decode_clip
from adapters.media.choose import choose_frames
from adapters.media.packets import VideoPacket, read_clip
from adapters.media.sniff import media_format
from adapters.media.timeline import Sampling, Timeline
from tests.media_samples import clip, header_first, levels

LIMITS = MediaLimits()
TIMED = [
    ("mp4", "libx264"), ("mp4", "libx265"), ("mp4", "mpeg4"), ("mov", "mjpeg"), ("mov", "prores_ks"), ("3gp", "h263"),
    ("matroska", "libx264"), ("matroska", "mpeg2video"), ("webm", "libvpx"), ("webm", "libvpx-vp9"),
    ("mpegts", "libx264"), ("mpegts", "libx265"), ("mpegts", "mpeg2video"), ("mpegts", "mpeg4"),
    ("mpeg", "mpeg2video"), ("mpeg", "mpeg1video"),
]  # fmt: skip
COUNTED = [("avi", "mpeg4"), ("avi", "libx264"), ("avi", "mjpeg")]
VARIABLE = ("mp4", "mov", "matroska", "webm", "mpegts")
SPOILT = [
    ("mp4", "libx264"), ("mov", "mjpeg"), ("mov", "prores_ks"), ("3gp", "h263"), ("matroska", "libx264"),
    ("webm", "libvpx"), ("webm", "libvpx-vp9"), ("avi", "mjpeg"), ("mp4", "mpeg2video"),
]  # fmt: skip
OWN_KEYFRAMES = ("mjpeg", "prores_ks", "h263", "mpeg2video")
"""Encoders that make keyframes where they like."""


@cache
def whole(container: str, codec: str, count: int = 20) -> bytes:
    size = (128, 96) if codec == "h263" else (64, 48)
    data = clip(container, codec, count=count, size=size, b_frames=0)
    return header_first(data) if container in ("mp4", "mov", "3gp") else data


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(TIMED + COUNTED),
    gaps=st.lists(st.integers(20, 900), min_size=1, max_size=24),
    wanted=st.builds(
        Sampling,
        st.integers(1, 12),
        st.sampled_from(["uniform", "dense"]),
        st.integers(1, 5),
        st.sampled_from([1, 1, 2]),
    ),
    gop=st.integers(1, 12),
    b_frames=st.integers(0, 3),
)
def test_the_same_frames_as_decoding_everything(
    kind: tuple[str, str], gaps: list[int], wanted: Sampling, gop: int, b_frames: int
) -> None:
    container, codec = kind
    times = (
        [sum(gaps[:i]) for i in range(len(gaps))] if container in VARIABLE and codec in ("libx264", "libvpx") else None
    )
    size = (128, 96) if codec == "h263" else (64, 48)
    data = clip(container, codec, count=len(gaps), size=size, times=times, gop=gop, b_frames=b_frames)
    chosen = decode_clip(data, wanted, LIMITS)
    assert chosen.bad == 0
    with opened(data) as source:
        every = [(frame.pts, frame.to_image()) for frame in source.decode(video=0)]
    assert len(every) == len(gaps)
    starts = [pts or 0 for pts, _ in every] if kind in TIMED else range(len(every))
    # How long the last is shown: as the container says, or as long as the one before.
    ends = [Timeline.of(starts, 0), *(Timeline.of(starts, p.duration or 0) for p in packets(data))]
    expected = [[every[i][1].tobytes() for i in timeline.chosen(wanted)] for timeline in ends]
    assert [picture.tobytes() for picture in chosen] in expected, kind


@pytest.mark.parametrize("container", ["mp4", "avi"])
def test_views_that_overlap_are_decoded_once(container: str) -> None:
    data, packets_fed = clip(container, "mpeg4", count=30, b_frames=0), _Counting(LIMITS)
    with opened(data) as source:
        read = read_clip(source, source.streams.video[0], LIMITS, Deadline(LIMITS))
        chosen = choose_frames(replace(read, deadline=packets_fed), Sampling(8, "dense", 2, 9))
    assert len(chosen.order) == 72
    assert len(chosen.frames) <= 30
    assert packets_fed.calls <= 31


@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_jumping_gives_the_same_pictures_and_decodes_less(container: str, b_frames: int) -> None:
    data = clip(container, count=30, gop=5, b_frames=b_frames)
    every = decode_clip(data, 30, LIMITS)
    counter = _Counting(LIMITS)
    with opened(data) as source:
        source.flags &= ~0x1
        read = read_clip(source, source.streams.video[0], LIMITS, Deadline(LIMITS))
        chosen = choose_frames(replace(read, deadline=counter), Sampling(2))
        some = [chosen.frames[key].to_ndarray(format="rgb24") for key in chosen.order]
    assert counter.calls < 16  # packets fed: at most two groups of pictures and what reordering needs
    for picture, index in zip(some, (7, 22), strict=True):
        assert np.array_equal(picture, np.asarray(every[index]))


@pytest.mark.parametrize("how", ["zeros", "noise"])
@pytest.mark.parametrize("kind", SPOILT)
def test_a_broken_packet_is_one_bad_frame(kind: tuple[str, str], how: str) -> None:
    frames = decode_clip(spoilt(whole(*kind), {5}, how), 10, LIMITS)
    assert frames.bad == 1
    assert levels(frames)[:3] == [1, 3, 4]  # the one before it stays on screen
    assert levels(frames)[-3:] == [15, 17, 19]


def test_a_broken_packet_in_one_long_group_of_pictures() -> None:
    data = spoilt(clip(count=29, gop=250), {13}, "zeros")
    frames = decode_clip(data, 8, LIMITS)
    assert frames.bad == 1
    assert levels(frames)[:3] == [1, 5, 9]


@pytest.mark.parametrize("how", ["zeros", "noise"])
@pytest.mark.parametrize("kind", [kind for kind in SPOILT if kind[1] not in OWN_KEYFRAMES])
def test_a_broken_keyframe_takes_its_group_with_it(kind: tuple[str, str], how: str) -> None:
    frames = decode_clip(spoilt(whole(*kind), {12}, how), 10, LIMITS)
    assert frames.bad == 8
    assert levels(frames) == [1, 3, 5, 7, 9, 11, 11, 11, 11, 11]
    with pytest.raises(BrokenMedia, match="6 of the 10 frames"):
        decode_clip(spoilt(whole(*kind), {0}, how), 10, LIMITS)


def test_a_jump_to_a_broken_keyframe_goes_back_to_the_one_before() -> None:
    data = spoilt(clip(count=30, gop=5, b_frames=0), {20}, "zeros")
    frames = decode_clip(data, 3, LIMITS)
    assert (levels(frames), frames.bad) == ([5, 15, 25], 0)  # the broken one is passed over
    frames = decode_clip(data, 4, LIMITS)
    assert (levels(frames), frames.bad) == ([3, 11, 18, 26], 0)
    frames = decode_clip(data, 5, LIMITS)
    assert (levels(frames), frames.bad) == ([3, 9, 15, 19, 27], 5)  # all of its group


@pytest.mark.parametrize("kind", SPOILT)
def test_a_clip_that_is_mostly_broken_is_refused(kind: tuple[str, str]) -> None:
    for which in (range(2, 20), range(20)):
        with pytest.raises(BrokenMedia) as caught:
            decode_clip(spoilt(whole(*kind), which, "zeros"), 10, LIMITS)
        assert caught.value.facts["field"] in ("frames", "body")


@pytest.mark.parametrize("kind", TIMED + COUNTED)
def test_a_clip_cut_short_is_what_is_left_of_it(kind: tuple[str, str]) -> None:
    """In every container: not one frame is lost that was sent whole, and nothing else is said than for the others."""
    size = (128, 96) if kind[1] == "h263" else (64, 48)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    data = clip(*kind, size=size, picture=noise, count=20, gop=1, b_frames=0)
    if kind[0] in ("mp4", "mov", "3gp"):
        data = header_first(data)
    for percent in (*range(10, 100, 10), 95, 99):
        cut = data[: len(data) * percent // 100]
        try:
            whole_frames = [packet.size for packet in packets(cut) if not packet.is_corrupt]
        except FFmpegError:
            whole_frames = []
        if percent < 50 and len(whole_frames) < 3:
            only_media_errors(cut)
            continue
        frames = decode_clip(cut, 5, LIMITS)
        assert len(frames) == 5
        assert frames.bad <= 2  # the last, and in a program stream what its end is taken for


def test_an_mp4_without_its_header_says_so() -> None:
    data = clip()
    for end in (data.index(b"moov"), len(data) // 2, len(data) // 4):
        with pytest.raises(BrokenMedia, match=r"header \(moov\).* whole file"):
            decode_clip(data[:end], 4, LIMITS)
    with pytest.raises(BrokenMedia, match=r"header \(moov\)"):
        decode_clip(header_first(data)[:600], 4, LIMITS)


def test_a_broadcast_begins_with_its_first_keyframe() -> None:
    data = clip("mpegts", count=24, gop=8, b_frames=0)
    start = 188 * (len(data) // 188 // 2)
    frames = decode_clip(data[start:], 4, LIMITS)
    assert frames.bad == 0
    assert levels(frames)[0] >= 8
    assert levels(frames) == sorted(levels(frames))
    assert [p.tobytes() for p in decode_clip(data[start - 71 :], 4, LIMITS)] == [p.tobytes() for p in frames]


@pytest.mark.parametrize(("before", "after"), [(0, 0), (4, 0), (0, 16)])
def test_packets_of_a_transport_stream_with_something_around_them(before: int, after: int) -> None:
    data = clip("mpegts", count=20)
    padded = b"".join(bytes(before) + data[at : at + 188] + bytes(after) for at in range(0, len(data), 188))
    assert levels(decode_clip(padded, 5, LIMITS)) == [2, 6, 10, 14, 18]
    damaged = bytearray(padded)
    damaged[before + 3 * (188 + before + after)] = 0
    assert len(decode_clip(bytes(damaged), 5, LIMITS)) == 5


def test_recordings_put_one_behind_the_other() -> None:
    later = clip("mpegts", times=[5000 + 40 * i for i in range(10)])
    frames = decode_clip(later + clip("mpegts"), 10, LIMITS)
    assert (levels(frames), frames.bad) == ([1, 3, 5, 7, 9, 1, 3, 5, 7, 9], 0)


def test_a_clock_that_starts_again_within_a_broadcast() -> None:
    before = 2**33 // 90 - 400  # milliseconds until 33 bits of 90 kHz are full
    data = clip("mpegts", count=20, times=[before + 40 * i for i in range(20)])
    assert levels(decode_clip(data, 5, LIMITS)) == [2, 6, 10, 14, 18]


@pytest.mark.parametrize("container", ["webm", "matroska"])
def test_a_recording_without_duration_and_index(container: str) -> None:
    codec = "libvpx" if container == "webm" else "libx264"
    data = clip(container, codec, count=5, times=[0, 40, 80, 120, 1000], container_options={"live": "1"})
    assert levels(decode_clip(data, 4, LIMITS)) == [3, 3, 3, 3]
    assert b"\x1c\x53\xbb\x6b" not in data  # no cues


def test_decoders_say_nothing_of_what_is_broken(capfd: pytest.CaptureFixture[str]) -> None:
    broken = [spoilt(whole(*kind), {2, 5, 12}, "noise") for kind in SPOILT]
    cut = [whole(*kind)[: len(whole(*kind)) * percent // 100] for kind in TIMED for percent in (30, 60, 90)]
    capfd.readouterr()  # encoders do
    for data in broken + cut:
        only_media_errors(data)
    assert capfd.readouterr() == ("", "")


def spoilt(data: bytes, which: Collection[int], how: str) -> bytes:
    """The clip with those of its packets overwritten."""
    file, at = bytearray(data), 0
    for i, packet in enumerate(packets(data)):
        content = bytes(packet)
        at = file.index(content, at)
        if i in which:
            junk = bytes(len(content)) if how == "zeros" else random.Random(i).randbytes(len(content))
            file[at : at + len(content)] = junk
        at += 1
    return bytes(file)


def only_media_errors(data: bytes) -> None:
    with contextlib.suppress(MediaError):
        assert len(decode_clip(data, 5, LIMITS)) == 5


def opened(data: bytes) -> InputContainer:
    # A clip of a few hundred bytes is too little for FFmpeg to guess by.
    return av.open(io.BytesIO(data), format=CONTAINERS[media_format(data)[1]].demuxer)


def packets(data: bytes) -> list[VideoPacket]:
    with opened(data) as source:
        return [packet for packet in source.demux(video=0) if packet.size]


class _Counting(Deadline):
    def __init__(self, limits: MediaLimits) -> None:
        super().__init__(limits)
        self.calls = 0

    def check(self) -> None:
        self.calls += 1
