"""GIF, WebP, PNG and AVIF that move are clips for a task that takes clips, and pictures for one that takes pictures."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adapters.config import AdapterConfig
from adapters.errors import BrokenMedia, MediaError, MediaTooLarge, WrongModality
from adapters.media import Deadline, MediaLimits, decode, decode_clip
from adapters.media.animation import decode_animation
from adapters.media.timeline import Sampling, Timeline
from tests.media_samples import animation, encode, levels, scene

LIMITS = MediaLimits()
Color: TypeAlias = tuple[int, int, int]
Box: TypeAlias = tuple[int, int, int, int]
NAMES = ["GIF", "WEBP", "PNG"]
EXACT: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}}


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_that_moves_is_a_clip(name: str) -> None:
    frames = decode_clip(animation(name, 20, **EXACT.get(name, {})), 5, LIMITS)
    assert {(p.mode, p.size) for p in frames} == {("RGB", (64, 48))}
    assert (levels(frames), frames.bad) == ([2, 6, 10, 14, 18], 0)


def test_avif() -> None:
    data = animation("AVIF", 20)
    pictures, bad, *_ = decode_animation(data, "avif", Sampling(5), LIMITS, Deadline(LIMITS))
    assert (levels(pictures), bad) == ([2, 6, 10, 14, 18], 0)


@pytest.mark.parametrize("name", NAMES)
def test_each_task_takes_what_it_is_for(name: str) -> None:
    data = animation(name, 8, **EXACT.get(name, {}))
    assert levels(decode(data, config("image"), LIMITS)) == [0]
    assert len(decode(data, config("video"), LIMITS)) == config("video").frames
    for still in (encode(scene(), name), animation(name, 1)):
        with pytest.raises(WrongModality, match="task t takes clips, a picture came"):
            decode(still, config("video"), LIMITS)


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_is_on_screen_for_its_duration(name: str) -> None:
    data = animation(name, 4, duration=[100, 100, 100, 900], **EXACT.get(name, {}))
    assert levels(decode_clip(data, 4, LIMITS)) == [1, 3, 3, 3]


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_without_a_duration_stays_as_long_as_in_a_browser(name: str) -> None:
    data = animation(name, 3, duration=[0, 10, 200], **EXACT.get(name, {}))
    assert levels(decode_clip(data, 4, LIMITS)) == [0, 1, 2, 2]


@pytest.mark.parametrize("name", NAMES)
def test_what_shows_through_is_white(name: str) -> None:
    frames = []
    for place in (0, 32):
        frame = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
        frame.paste((200, 0, 0, 255), (place, 0, place + 32, 48))
        frames.append(frame)
    options = {"save_all": True, "append_images": frames[1:], "duration": 100, "disposal": 2} | EXACT.get(name, {})
    data = encode(frames[0], name, **options)
    for picture, left in zip(decode_clip(data, 2, LIMITS), (True, False), strict=True):
        pixels = np.asarray(picture)
        red, white = (pixels[:, :32], pixels[:, 32:]) if left else (pixels[:, 32:], pixels[:, :32])
        assert (red == (200, 0, 0)).all()
        assert (white == 255).all()


def test_a_part_that_changes_is_laid_on_what_was_there() -> None:
    frames = [Image.new("RGB", (64, 48), "black") for _ in range(3)]
    frames[1].paste("white", (0, 0, 8, 8))
    frames[2].paste("white", (0, 0, 8, 8))
    frames[2].paste("white", (8, 8, 16, 16))
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50, disposal=1)
    for picture, frame in zip(decode_clip(data, 3, LIMITS), frames, strict=True):
        assert np.array_equal(np.asarray(picture), np.asarray(frame))


def test_what_no_frame_of_a_gif_covers_is_white() -> None:
    red, blue, black, white = (255, 0, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)
    stay, clear, restore = 1, 2, 3
    data = gif(
        (20, 10),
        [black, red, blue],
        [((0, 0, 10, 10), 1, stay), ((10, 0, 15, 10), 2, stay), ((15, 0, 20, 10), 2, clear), ((0, 0, 2, 2), 2, restore),
         ((18, 0, 19, 1), 2, stay)],
    )  # fmt: skip
    seen = [[p.getpixel(place) for place in ((1, 5), (12, 5), (17, 5), (0, 0))] for p in decode_clip(data, 5, LIMITS)]
    assert seen == [
        [red, white, white, red], [red, blue, white, red], [red, blue, blue, red], [red, blue, white, blue],
        [red, blue, white, red],
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_dense_frames_of_what_moves(name: str) -> None:
    data = animation(name, 20, **EXACT.get(name, {}))
    assert levels(decode_clip(data, Sampling(4, "dense", 3, 2), LIMITS)) == [0, 3, 6, 9, 10, 13, 16, 19]
    assert levels(decode_clip(data, Sampling(3, "dense", 9), LIMITS)) == [0, 9, 18]


def test_a_png_with_a_picture_for_those_who_cannot_see_it_move() -> None:
    others = [Image.new("RGB", (64, 48), (16 + 8 * i,) * 3) for i in range(4)]
    data = encode(scene(64, 48), "PNG", save_all=True, default_image=True, append_images=others, duration=40)
    assert levels(decode_clip(data, 4, LIMITS)) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"max_frames": 3}, "max_frames"),
        ({"max_side": 63}, "max_side"),
        ({"max_frame_pixels": 64 * 48 - 1}, "max_frame_pixels"),
        ({"max_clip_pixels": 4 * 64 * 48 - 1}, "max_clip_pixels"),
        ({"max_duration_s": 0.39}, "max_duration_s"),
        ({"max_packets": 9}, "max_packets"),
        ({"decode_timeout_s": -1.0}, "decode_timeout_s"),
    ],
)
def test_bounds(name: str, change: dict[str, Any], field: str) -> None:
    with pytest.raises(MediaTooLarge) as caught:
        decode_clip(animation(name), 4, replace(LIMITS, **change))
    assert caught.value.facts["field"] == field


def test_a_gif_may_not_grow_beyond_the_bounds() -> None:
    data = bytearray(animation("GIF"))
    at = data.rindex(b"\x2c\0\0\0\0") + 5  # the last frame's size
    data[at : at + 4] = (9000).to_bytes(2, "little") * 2
    with pytest.raises(MediaTooLarge) as caught:
        decode_clip(bytes(data), 4, LIMITS)
    assert caught.value.facts["field"] in ("max_frame_pixels", "memory")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_of_one_cut_short(name: str) -> None:
    data = textured(name)
    for percent in (*range(10, 100, 10), 99):
        frames = decode_clip(data[: len(data) * percent // 100], 4, LIMITS)
        assert frames.bad <= 1


@pytest.mark.parametrize(("name", "lost"), [("GIF", 1), ("WEBP", 10), ("PNG", 11)])
def test_damage_in_the_middle(name: str, lost: int) -> None:
    """A GIF has no checksum; the other decoders get no further, and what comes after is as lost."""
    data = bytearray(textured(name))
    start = len(data) * 2 // 3
    if name == "WEBP":
        start = [found.start() for found in re.finditer(b"ANMF", data)][20] + 60
    data[start : start + 200] = bytes(200)
    frames = decode_clip(bytes(data), 4, LIMITS)
    assert (len(frames), frames.bad) == (4, lost)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_mutated_bytes(name: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(animation(name, 4))
    for where, value in changes:
        data[int(where * len(data))] = value
    try:
        frames = decode_clip(bytes(data), 3, LIMITS)
    except MediaError:
        return
    assert [p.mode for p in frames] == ["RGB"] * 3


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    durations=st.lists(st.integers(2, 90).map(lambda n: 10 * n), min_size=2, max_size=12),
    frames=st.integers(1, 12),
)
def test_the_frames_that_a_browser_would_show(name: str, durations: Sequence[int], frames: int) -> None:
    data = animation(name, len(durations), duration=list(durations), **EXACT.get(name, {}))
    starts = [sum(durations[:i]) for i in range(len(durations))]
    assert levels(decode_clip(data, frames, LIMITS)) == Timeline(starts, sum(durations)).uniform(frames)


def test_nothing_decodes() -> None:
    data = animation("GIF", 2)
    at = data.index(b"\x2c")
    with pytest.raises((BrokenMedia, WrongModality)):
        decode_clip(data[: at + 12], 4, LIMITS)


def textured(name: str) -> bytes:
    """Noise, so that the frames and not their headers make up the bytes."""
    dice = np.random.default_rng(0)
    first, *others = [Image.fromarray(dice.integers(0, 255, (48, 64, 3), dtype=np.uint8)) for _ in range(30)]
    return encode(first, name, save_all=True, append_images=others, duration=40, **EXACT.get(name, {}))


def gif(size: tuple[int, int], palette: list[Color], frames: list[tuple[Box, int, int]]) -> bytes:
    """Frames of one colour, each with its place (left, top, right, bottom) and its disposal, 100 ms long."""
    colours = b"".join(map(bytes, palette)).ljust(3 * 128, b"\0")
    out = b"GIF89a" + struct.pack("<HHBBB", *size, 0xF6, 0, 0) + colours
    for (left, top, right, bottom), index, disposal in frames:
        width, height = right - left, bottom - top
        out += b"\x21\xf9\x04" + struct.pack("<BHB", disposal << 2, 10, 0) + b"\0"
        out += b"\x2c" + struct.pack("<HHHHB", left, top, width, height, 0) + _uncompressed([index] * (width * height))
    return out + b";"


def _uncompressed(indices: list[int]) -> bytes:
    """LZW without any compression: eight bits a pixel, and the table cleared before it grows."""
    codes = [code for start in range(0, len(indices), 100) for code in (128, *indices[start : start + 100])]
    data = bytes([*codes, 129])
    blocks = [data[start : start + 255] for start in range(0, len(data), 255)]
    return b"\x07" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def config(modality: str) -> AdapterConfig:
    video = {"video": {"frames": 4}} if modality == "video" else {}
    base = {"model": "m", "fingerprint": 64 * "0"}
    size = {"size": 32, "mean": (0, 0, 0), "std": (1, 1, 1)}
    return AdapterConfig.model_validate(
        {"task": "t", "modality": modality, "labels": ("a", "b"), "base": base, "input": size} | video
    )
