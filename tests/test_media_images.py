"""Every format and mode comes out as upright RGB, and bad bytes as a MediaError alone."""

import io
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adapters.errors import BrokenMedia, MediaError, MediaTooLarge, UnsupportedMedia, WrongModality
from adapters.media import MediaLimits, decode_image
from tests.media_samples import clip, encode, scene

LIMITS = MediaLimits()
FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_deflate"}),
    ("TIFF", {"big_tiff": True}),
    ("AVIF", {}),
]
SAMPLES = [encode(scene(), name, **options) for name, options in FORMATS]


def pixels(picture: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("data", SAMPLES, ids=[f"{name}{options or ''}" for name, options in FORMATS])
def test_formats(data: bytes) -> None:
    picture = decode_image(data, LIMITS)
    assert (picture.mode, picture.size) == ("RGB", (48, 32))
    assert np.abs(pixels(picture) - pixels(scene())).mean() < 12
    with Image.open(io.BytesIO(data)) as plain:
        assert np.array_equal(pixels(picture), pixels(plain.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr", "PA"])
def test_modes_equal_a_plain_conversion(mode: str) -> None:
    name = "JPEG" if mode in ("CMYK", "YCbCr") else "TIFF" if mode == "PA" else "PNG"
    source = scene().convert("L").convert(mode) if mode in ("1", "I;16", "PA", "LA") else scene().convert(mode)
    if mode == "PA":
        source = scene().convert("P").convert("PA")
    picture = decode_image(encode(source, name), LIMITS)
    assert picture.mode == "RGB"
    if mode not in ("CMYK", "YCbCr", "I;16"):
        assert np.array_equal(pixels(picture), pixels(source.convert("RGB")))


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(name: str) -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    picture = decode_image(encode(Image.fromarray(values), name), LIMITS)
    assert np.array_equal(pixels(picture)[..., 0], values >> 8)


def test_16_bit_colour_matches_16_bit_grey() -> None:
    values = np.arange(0, 65536, 16, dtype=">u2").reshape(64, 64)
    lines = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in values)
    data = png(struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0), zlib.compress(lines))
    assert np.array_equal(pixels(decode_image(data, LIMITS))[..., 1], values >> 8)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_numbers_without_a_range_are_refused(mode: str) -> None:
    with pytest.raises(UnsupportedMedia, match="32-bit"):
        decode_image(encode(scene().convert("L").convert(mode), "TIFF"), LIMITS)


def test_adobe_cmyk_is_not_inverted() -> None:
    data = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")  # Pillow writes the Adobe marker
    assert b"Adobe" in data
    red, green, blue = decode_image(data, LIMITS).getpixel((8, 8))  # type: ignore[misc]
    assert red > 240
    assert green < 15
    assert blue < 15


@pytest.mark.parametrize(("place", "value"), [(28, 2), (28, 64), (30, 4), (30, 5), (30, 11)])
def test_kinds_of_bmp_that_are_not_read_are_named(place: int, value: int) -> None:
    """Its bits, and its compression (a JPEG or PNG inside, CMYK)."""
    data = bytearray(encode(scene(), "BMP"))
    data[place] = value
    with pytest.raises(UnsupportedMedia, match="Unsupported BMP"):
        decode_image(bytes(data), LIMITS)


@pytest.mark.parametrize("name", ["GIF", "WEBP"])
def test_large_metadata_is_no_hindrance(name: str) -> None:
    more: dict[str, Any] = {"comment": bytes(2_000_000)}
    if name == "WEBP":
        more = {"exif": bytes(3_000_000), "icc_profile": bytes(5_000_000), "xmp": bytes(4_000_000), "lossless": True}
    assert decode_image(encode(scene().quantize(200).convert("RGB"), name, **more), LIMITS).size == (48, 32)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for name in ("GIF", "WEBP", "PNG", "TIFF"):
        options: dict[str, Any] = {"lossless": True} if name == "WEBP" else {}
        data = encode(frames[0], name, save_all=True, append_images=frames[1:], **options)
        assert decode_image(data, LIMITS).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(name: str, orientation: int) -> None:
    undo = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = scene() if undo is None else scene().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode_image(encode(stored, name, exif=exif), LIMITS)
    assert picture.size == (48, 32)
    assert np.abs(pixels(picture) - pixels(scene())).mean() < 6


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_senseless_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(decode_image(encode(scene(), "PNG", exif=exif), LIMITS)), pixels(scene()))


def test_damaged_exif_does_not_refuse_the_picture() -> None:
    for damage in (
        b"II*\0\xff\xff\xff\xff",
        b"II+\0\x08\0\0\0" + b"\xff" * 8,
        b"",
        b"MM\0*",
        b"II*\0\x08\0\0\0\xff\xff",
    ):
        data = encode(scene(), "PNG", exif=b"Exif\0\0" + damage)
        assert np.array_equal(pixels(decode_image(data, LIMITS)), pixels(scene()))


def test_bounds_are_looked_at_before_decoding() -> None:
    header = struct.pack(">IIBBBBB", 15_000, 15_000, 8, 2, 0, 0, 0)
    with pytest.raises(MediaTooLarge) as caught:
        decode_image(png(header, b""), LIMITS)
    assert caught.value.facts["field"] == "max_pixels"
    with pytest.raises(MediaTooLarge) as caught:
        decode_image(png(struct.pack(">IIBBBBB", 20_000, 2, 8, 2, 0, 0, 0), b""), LIMITS)
    assert caught.value.facts == {"field": "max_side", "limit": 16_384, "value": 20_000}
    with pytest.raises(MediaTooLarge) as caught:
        decode_image(encode(scene(), "PNG"), replace(LIMITS, max_pixels=48 * 32 - 1))
    assert caught.value.facts["value"] == 48 * 32
    assert decode_image(encode(scene(), "PNG"), replace(LIMITS, max_pixels=48 * 32)).size == (48, 32)


def test_pillows_own_bomb_checks_come_out_as_ours() -> None:
    limits = replace(LIMITS, max_pixels=10**12, max_side=10**6)
    with pytest.raises(MediaTooLarge, match="at most 178956970 pixels"):
        decode_image(png(struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b""), limits)
    with pytest.raises(BrokenMedia, match="truncated"):  # Pillow would only warn of it, and our limits allow it
        decode_image(png(struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0), b""), limits)


def test_too_many_bytes() -> None:
    with pytest.raises(MediaTooLarge, match="bytes") as caught:
        decode_image(encode(scene(), "BMP"), replace(LIMITS, max_bytes=100))
    assert caught.value.facts["limit"] == 100


def test_a_million_empty_chunks_end_at_the_deadline() -> None:
    empty = struct.pack(">I4sI", 0, b"abCd", zlib.crc32(b"abCd"))
    data = png(struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0), None) + empty * 1_000_000
    with pytest.raises(MediaTooLarge) as caught:
        decode_image(data, replace(LIMITS, decode_timeout_s=0.05))
    assert caught.value.facts["field"] == "decode_timeout_s"


def test_a_clip_is_no_picture() -> None:
    with pytest.raises(WrongModality, match="clip came"):
        decode_image(clip(count=2), LIMITS)


def test_empty() -> None:
    with pytest.raises(BrokenMedia, match="empty"):
        decode_image(b"", LIMITS)


@pytest.mark.parametrize("data", SAMPLES, ids=[f"{name}{options or ''}" for name, options in FORMATS])
def test_truncated(data: bytes) -> None:
    for end in range(1, len(data), max(1, len(data) // 150)):
        if end < min(0.9 * len(data), len(data) - 24):
            with pytest.raises(MediaError):
                decode_image(data[:end], LIMITS)
        else:  # an end mark or a checksum may be all that is missing
            only_media_errors(data[:end])


@settings(max_examples=300, deadline=None)
@given(
    sample=st.sampled_from(SAMPLES),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_mutated_bytes(sample: bytes, changes: list[tuple[float, int]]) -> None:
    data = bytearray(sample)
    for where, value in changes:
        # Headers are where parsers break: half of the changes land in the first 128 bytes.
        at = int(where * 2 * 128) if where < 0.5 else int((where - 0.5) * 2 * len(data))
        data[min(at, len(data) - 1)] = value
    only_media_errors(bytes(data))


@settings(max_examples=200, deadline=None)
@given(start=st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"MM\0*"]), rest=st.binary())
def test_random_bytes_after_a_known_start(start: bytes, rest: bytes) -> None:
    only_media_errors(start + rest)


def only_media_errors(data: bytes) -> None:
    try:
        mode = decode_image(data, LIMITS).mode
    except MediaError:
        return
    assert mode == "RGB"


def png(header: bytes, body: bytes | None) -> bytes:
    chunks = [(b"IHDR", header)] + ([(b"IDAT", body), (b"IEND", b"")] if body is not None else [])
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
