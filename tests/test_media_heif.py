"""AVIF and HEIC: read upright, once turned, bounded before they are decoded; and refused with the way to get them."""

from __future__ import annotations

import io
import struct
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from adapters.errors import MediaError, MediaTooLarge, UnsupportedMedia
from adapters.media import MediaLimits, decode_image
from tests.media_samples import clip, encode, scene

LIMITS = MediaLimits()
SIZE = (96, 64)
WANTED = np.asarray(scene(*SIZE)).astype(int)


def heic(picture: Image.Image, exif: bytes | None = None, **options: Any) -> bytes:
    file, heif = io.BytesIO(), pillow_heif.from_pillow(picture)
    heif.save(file, quality=90, exif=exif, **options)
    return file.getvalue()


def avif(picture: Image.Image, **options: Any) -> bytes:
    return encode(picture, "AVIF", quality=90, **options)


def pixels(data: bytes) -> NDArray[np.int64]:
    return np.asarray(decode_image(data, LIMITS)).astype(int)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("data", [avif(scene(*SIZE)), heic(scene(*SIZE))], ids=["avif", "heic"])
def test_colours(data: bytes) -> None:
    assert np.abs(pixels(data) - WANTED).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turn_is_applied_once(orientation: int) -> None:
    """Both writers put Exif's orientation into boxes (irot, imir)."""
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    stored = scene(*SIZE).transpose(undo[orientation]) if orientation in undo else scene(*SIZE)
    for data in (avif(stored, exif=turned(orientation)), heic(stored, turned(orientation).tobytes())):
        got = pixels(data)
        assert got.shape == WANTED.shape
        assert np.abs(got - WANTED).mean() < 6


def test_exif_turns_nothing_where_the_boxes_do_not() -> None:
    """As the format says, and as phones write both."""
    data = heic(scene(*SIZE), turned(6).tobytes())
    place = data.find(b"irot")
    assert place > 0
    still = data[: place + 4] + b"\0" + data[place + 5 :]
    assert np.abs(pixels(still) - WANTED).mean() < 6


@pytest.mark.parametrize("background", ["white", "black"])
def test_alpha(background: str) -> None:
    source = scene(*SIZE).convert("RGBA")
    source.putalpha(Image.linear_gradient("L").resize(SIZE))
    share = np.asarray(source)[..., 3:] / 255
    wanted = WANTED * share + (255 if background == "white" else 0) * (1 - share)
    for data in (avif(source), heic(source)):
        got = np.asarray(decode_image(data, replace(LIMITS, transparent_background=background))).astype(int)
        assert np.abs(got - wanted).mean() < 5


def test_an_animation_gives_its_first_frame() -> None:
    frames = [scene(*SIZE), Image.new("RGB", SIZE, "red")]
    data = encode(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    assert b"avis" in data[:64]
    assert np.abs(pixels(data) - WANTED).mean() < 6


def test_the_primary_picture_of_several() -> None:
    heif = pillow_heif.from_pillow(Image.new("RGB", SIZE, "red"))
    heif.add_from_pillow(scene(*SIZE))
    file = io.BytesIO()
    heif.save(file, quality=90, primary_index=1)
    assert np.abs(pixels(file.getvalue()) - WANTED).mean() < 6


@pytest.mark.parametrize("bits", [10, 12])
def test_more_than_8_bits(bits: int) -> None:
    values = WANTED.astype(np.uint16) * 257
    heif = pillow_heif.from_bytes("RGB;16", SIZE, values.tobytes())
    file = io.BytesIO()
    pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
    try:
        heif.save(file, quality=90)
    finally:
        pillow_heif.options.SAVE_HDR_TO_12_BIT = False
    assert np.abs(pixels(file.getvalue()) - WANTED).mean() < 6


@pytest.mark.parametrize("data", [avif(scene(*SIZE)), heic(scene(*SIZE))], ids=["avif", "heic"])
def test_the_size_is_looked_at_before_decoding(data: bytes) -> None:
    place = data.find(b"ispe") + 8
    bomb = data[:place] + struct.pack(">II", 12_000, 12_000) + data[place + 8 :]
    with pytest.raises(MediaTooLarge) as caught:
        decode_image(bomb, LIMITS)
    assert caught.value.facts["field"] == "max_pixels"
    with pytest.raises(MediaTooLarge):
        decode_image(data, replace(LIMITS, max_side=SIZE[0] - 1))
    with pytest.raises(MediaTooLarge) as caught:
        decode_image(data, replace(LIMITS, decode_timeout_s=-1))
    assert caught.value.facts["field"] == "decode_timeout_s"


@pytest.mark.parametrize("data", [avif(scene(*SIZE)), heic(scene(*SIZE))], ids=["avif", "heic"])
def test_damage_ends_in_our_errors(data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    for place in range(0, len(data), 5):
        for body in (data[:place], data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :]):
            try:
                assert decode_image(body, LIMITS).mode == "RGB"
            except MediaError:
                continue
    assert capfd.readouterr() == ("", "")


def test_kinds_of_heif_that_are_not_read_are_named() -> None:
    moving = clip("mp4", "libx265", count=2)
    sequence = moving[:8] + b"hevc" + moving[12:]
    for data in (sequence, *(heic(scene(*SIZE)).replace(b"hvc1", kind) for kind in (b"avc1", b"j2k1", b"zzzz"))):
        with pytest.raises(UnsupportedMedia, match="HEIF") as caught:
            decode_image(data, LIMITS)
        assert "whole file" not in caught.value.message


def test_without_the_extra_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UnsupportedMedia, match=r"pip install 'adaptserve\[heic\]'"):
        decode_image(heic(scene(*SIZE)), LIMITS)


def test_a_pillow_without_avif_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    with pytest.raises(UnsupportedMedia, match="built without AVIF"):
        decode_image(avif(scene(*SIZE)), LIMITS)


def test_reading_heic_opens_pillow_to_no_other_format() -> None:
    decode_image(heic(scene(*SIZE)), LIMITS)
    assert "HEIF" not in Image.registered_extensions().values()
