"""The right frames of a clip, upright, within bounds; and bad bytes as a MediaError alone."""

import struct
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adapters.errors import BrokenMedia, MediaError, MediaTooLarge, UnsupportedMedia, WrongModality
from adapters.media import Deadline, MediaLimits, Sampling, decode_clip
from tests.media_samples import animation, clip, encode, levels, scene, sound_only

LIMITS = MediaLimits()
KINDS = [
    ("mp4", "libx264"), ("mov", "libx264"), ("mp4", "libx265"), ("mp4", "mpeg4"), ("mp4", "libsvtav1"),
    ("webm", "libvpx"), ("webm", "libvpx-vp9"), ("matroska", "libx264"), ("matroska", "mpeg4"),
    ("avi", "mpeg4"), ("avi", "libx264"), ("avi", "mjpeg"), ("mov", "mjpeg"), ("matroska", "mjpeg"),
    ("mov", "prores_ks"), ("mpegts", "libx264"), ("mpegts", "libx265"), ("mpegts", "mpeg2video"), ("mp4", "mpeg2video"),
    ("matroska", "mpeg2video"), ("mpeg", "mpeg2video"), ("mpeg", "mpeg1video"), ("vob", "mpeg2video"),
    ("3gp", "h263"), ("3g2", "h263"), ("avi", "h263"), ("3gp", "mpeg4"),
]  # fmt: skip
SMALL = [
    clip(*kind, count=4, size=(32, 32))
    for kind in (
        ("mp4", "libx264"),
        ("webm", "libvpx"),
        ("matroska", "libx264"),
        ("avi", "mpeg4"),
        ("mpegts", "libx264"),
    )
]


@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_containers_and_codecs(container: str, codec: str) -> None:
    size = (128, 96) if codec == "h263" else (64, 48)
    data = clip(container, codec, count=20, size=size)
    pictures = decode_clip(data, 5, LIMITS)
    assert {(p.mode, p.size) for p in pictures} == {("RGB", size)}
    assert pictures.bad == 0
    assert levels(pictures) == [2, 6, 10, 14, 18]
    assert levels(decode_clip(data, 20, LIMITS)) == list(range(20))


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("mp4", "libx265"), ("webm", "libvpx-vp9"), ("mp4", "mpeg4"), ("avi", "mpeg4"),
     ("mpegts", "mpeg2video"), ("avi", "mjpeg")],
)  # fmt: skip
def test_dense_frames_and_views(container: str, codec: str) -> None:
    """Whether frames are taken by time or counted, and in whatever order they were coded."""
    data = clip(container, codec, count=20, gop=6)
    found = decode_clip(data, Sampling(4, "dense", 3, 3), LIMITS)
    assert levels(found) == [0, 3, 6, 9, 5, 8, 11, 14, 10, 13, 16, 19]
    assert found.bad == 0
    assert levels(decode_clip(data, Sampling(4, "dense", 2), LIMITS)) == [6, 8, 10, 12]
    assert levels(decode_clip(data, Sampling(2, "uniform", 1, 2), LIMITS)) == [2, 12, 7, 17]
    short = decode_clip(data, Sampling(4, "dense", 9, 2), LIMITS)
    assert levels(short) == [0, 9, 18, 19] * 2
    assert short[:4] == short[4:]  # the same objects: decoded once, and once in memory


def test_dense_frames_are_counted_and_not_timed() -> None:
    for container in ("mp4", "matroska"):
        data = clip(container, times=[0, 10, 20, 30, 1000, 1010, 5000], count=7)
        assert levels(decode_clip(data, Sampling(3, "dense", 1), LIMITS)) == [2, 3, 4]
        assert levels(decode_clip(data, Sampling(3, "dense", 2, 2), LIMITS)) == [0, 2, 4, 2, 4, 6]


def test_views_are_bounded_together() -> None:
    with pytest.raises(MediaTooLarge, match="33 frames of one clip") as caught:
        decode_clip(clip(), Sampling(11, "dense", 1, 3), LIMITS)
    assert caught.value.facts["field"] == "max_frames"
    pixels = replace(LIMITS, max_clip_pixels=10 * 64 * 48)  # of frames, however many views share them
    assert len(decode_clip(clip(), Sampling(8, "dense", 1, 4), pixels)) == 32


def test_few_frames_repeat() -> None:
    pictures = decode_clip(clip(count=2), 4, LIMITS)
    assert levels(pictures) == [0, 0, 1, 1]
    assert pictures[0] is pictures[1]


def test_one_frame() -> None:
    assert levels(decode_clip(clip(count=1), 3, LIMITS)) == [0, 0, 0]


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_variable_frame_rate_goes_by_time(container: str) -> None:
    data = clip(container, times=[0, 10, 20, 30, 1000], count=5)
    assert levels(decode_clip(data, 1, LIMITS)) == [3]
    assert levels(decode_clip(data, 4, LIMITS))[:2] == [3, 3]


@pytest.mark.parametrize(
    ("rotation", "turn"),
    [
        ((0, False, False), None),
        ((90, False, False), Image.Transpose.ROTATE_90),
        ((-90, False, False), Image.Transpose.ROTATE_270),
        ((180, False, False), Image.Transpose.ROTATE_180),
        ((0, True, False), Image.Transpose.FLIP_LEFT_RIGHT),
        ((0, False, True), Image.Transpose.FLIP_TOP_BOTTOM),
    ],
)
def test_display_matrix(rotation: tuple[float, bool, bool], turn: Image.Transpose | None) -> None:
    data = clip(count=3, size=(96, 64), picture=scene(96, 64), rotation=rotation)
    expected = scene(96, 64) if turn is None else scene(96, 64).transpose(turn)
    picture = decode_clip(data, 1, LIMITS)[0]
    assert picture.size == expected.size
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(expected)).mean() < 12


def test_hidden_frames_of_an_edit_list_stay_hidden() -> None:
    data = clip(count=10, b_frames=0)
    at = data.index(b"elst") + 16  # the media time of the first edit
    assert int.from_bytes(data[at : at + 4], "big") == 0
    scale = int.from_bytes(data[(mdhd := data.index(b"mdhd") + 16) : mdhd + 4], "big")
    trimmed = data[:at] + (scale * 4 // 25).to_bytes(4, "big") + data[at + 4 :]
    assert levels(decode_clip(trimmed, 6, LIMITS)) == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("movflags", ["", "frag_keyframe+empty_moov"])
def test_ways_to_lay_out_an_mp4_with_sound(movflags: str) -> None:
    data = clip(audio=True, movflags=movflags)
    assert (b"moof" in data) == movflags.startswith("frag")
    assert levels(decode_clip(data, 10, LIMITS)) == list(range(10))


def test_the_same_bytes_give_the_same_pictures_in_any_thread() -> None:
    data = clip("webm", "libvpx-vp9", count=12)
    results: list[list[bytes]] = []
    threads = [
        threading.Thread(target=lambda: results.append([p.tobytes() for p in decode_clip(data, 7, LIMITS)]))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert all(result == results[0] for result in results)


def test_sound_alone() -> None:
    with pytest.raises(UnsupportedMedia, match="no video stream"):
        decode_clip(sound_only(), 4, LIMITS)


@pytest.mark.parametrize(("container", "codec"), [("avi", "ffv1"), ("mov", "qtrle")])
def test_codecs_not_known(container: str, codec: str) -> None:
    with pytest.raises(UnsupportedMedia, match=f"video is {codec}") as caught:
        decode_clip(clip(container, codec, count=2), 4, LIMITS)
    assert caught.value.facts["got"] == codec
    assert "clip_codecs" not in caught.value.message  # no setting would allow it


def test_codecs_and_containers_that_the_settings_leave_out() -> None:
    fewer = replace(LIMITS, clip_formats=("mp4", "gif"), clip_codecs=("hevc", "mpeg4"))
    assert levels(decode_clip(clip("mp4", "mpeg4"), 5, fewer)) == [1, 3, 5, 7, 9]
    with pytest.raises(UnsupportedMedia, match=r"h264.*setting clip_codecs.*hevc, mpeg4") as caught:
        decode_clip(clip("mp4", "libx264"), 4, fewer)
    assert caught.value.facts == {"field": "clip_codecs", "expected": ["hevc", "mpeg4"], "got": "h264"}
    for data, title, name in (
        (clip("mpegts", "mpeg4"), "MPEG transport stream", "mpegts"),
        (clip("avi", "mpeg4"), "AVI", "avi"),
        (animation("WEBP"), "animated WebP", "webp"),
    ):
        with pytest.raises(UnsupportedMedia, match=f"{title} .{name}.*setting clip_formats.*mp4, gif") as caught:
            decode_clip(data, 4, fewer)
        assert caught.value.facts["got"] == name
    with pytest.raises(WrongModality):
        decode_clip(encode(scene(), "WEBP"), 4, fewer)


def test_a_deadline_is_shared() -> None:
    deadline = Deadline(replace(LIMITS, decode_timeout_s=-1.0))
    for data in (clip(), clip("mpegts"), animation("GIF")):
        with pytest.raises(MediaTooLarge, match="longer than") as caught:
            decode_clip(data, 4, LIMITS, deadline=deadline)
        assert caught.value.facts["field"] == "decode_timeout_s"


def test_transparent_parts_are_white() -> None:
    clear = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    data = clip("mov", "prores_ks", count=2, picture=clear, pix_fmt="yuva444p10le")
    assert np.asarray(decode_clip(data, 1, LIMITS)[0]).min() > 250


def test_a_picture_is_no_clip() -> None:
    with pytest.raises(WrongModality, match="picture came"):
        decode_clip(encode(scene(), "PNG"), 4, LIMITS)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"max_frames": 3}, "max_frames"),
        ({"max_bytes": 100}, "max_bytes"),
        ({"max_side": 63}, "max_side"),
        ({"max_frame_pixels": 64 * 48 - 1}, "max_frame_pixels"),
        ({"max_clip_pixels": 4 * 64 * 48 - 1}, "max_clip_pixels"),
        ({"max_duration_s": 0.39}, "max_duration_s"),
        ({"max_packets": 9}, "max_packets"),
        ({"max_samples": 9}, "max_samples"),
        ({"decode_timeout_s": -1.0}, "decode_timeout_s"),
    ],
)
def test_bounds(change: dict[str, Any], field: str) -> None:
    with pytest.raises(MediaTooLarge) as caught:
        decode_clip(clip(), 4, replace(LIMITS, **change))
    assert caught.value.facts["field"] == field
    assert "limit" in caught.value.facts


def test_bounds_are_inclusive() -> None:
    exact = replace(
        LIMITS, max_frames=4, max_side=64, max_frame_pixels=64 * 48, max_clip_pixels=4 * 64 * 48,
        max_duration_s=0.4, max_packets=10, max_samples=10,
    )  # fmt: skip
    assert len(decode_clip(clip(), 4, exact)) == 4


def test_a_table_that_claims_millions_of_samples_is_never_built() -> None:
    data = bytearray(clip())
    at = data.index(b"stsz")
    struct.pack_into(">II", data, at + 8, 1, 2_000_000_000)
    with pytest.raises(MediaTooLarge) as caught:
        decode_clip(bytes(data), 4, LIMITS)
    assert caught.value.facts["field"] == "max_samples"


def test_a_compressed_header_is_refused() -> None:
    data = clip().replace(b"mvhd", b"cmov")
    with pytest.raises(UnsupportedMedia, match="cmov"):
        decode_clip(data, 4, LIMITS)


def test_bytes_in_the_media_data_are_no_table() -> None:
    data = clip()
    at = data.index(b"mdat")
    size = int.from_bytes(data[at - 4 : at], "big")
    junk = b"stsz\0\0\0\0\0\0\0\1\xff\xff\xff\xff" + b"cmov"
    media = at - 4 + size
    assert data[media + 4 : media + 8] == b"moov"  # after it, so nothing that is pointed at moves
    padded = data[: at - 4] + (size + len(junk)).to_bytes(4, "big") + data[at:media] + junk + data[media:]
    assert len(decode_clip(padded, 4, LIMITS)) == 4


def test_wrong_arguments_are_the_callers_fault() -> None:
    for wanted in ((0,), (4, "random"), (4, "dense", 0), (4, "dense", 1, 0)):
        with pytest.raises(ValueError, match="'uniform' or 'dense', got"):
            decode_clip(clip(), Sampling(*wanted), LIMITS)


def test_empty() -> None:
    with pytest.raises(BrokenMedia, match="empty"):
        decode_clip(b"", 4, LIMITS)


@pytest.mark.parametrize("data", SMALL, ids=["mp4", "webm", "mkv", "avi", "ts"])
def test_truncated(data: bytes) -> None:
    for end in range(1, len(data), max(1, len(data) // 120)):
        only_media_errors(data[:end])


@settings(max_examples=300, deadline=None)
@given(
    sample=st.sampled_from(SMALL),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_mutated_bytes(sample: bytes, changes: list[tuple[float, int]]) -> None:
    data = bytearray(sample)
    for where, value in changes:
        data[int(where * len(data))] = value
    only_media_errors(bytes(data))


@settings(max_examples=100, deadline=None)
@given(start=st.sampled_from([data[:40] for data in SMALL]), rest=st.binary(max_size=500))
def test_random_bytes_after_a_known_start(start: bytes, rest: bytes) -> None:
    only_media_errors(start + rest)


def only_media_errors(data: bytes) -> None:
    try:
        pictures = decode_clip(data, 3, LIMITS)
    except MediaError:
        return
    assert [p.mode for p in pictures] == ["RGB"] * 3
