"""A PNG's metadata and animation never stand in the way of its pixels, and its transparent colour is found exactly."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adapters.errors import BrokenMedia, UnsupportedMedia
from adapters.media import MediaLimits, decode_image
from tests.media_samples import encode, scene

LIMITS = MediaLimits()
SAMPLE = encode(scene(), "PNG")
AFTER_HEADER = 33
HUGE = zlib.compress(bytes(80 * 2**20), 9)


def chunk(kind: bytes, content: bytes, spoil: int = 0) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ spoil)


def png(values: NDArray[np.unsignedinteger], bits: int, colour: int, *chunks: bytes) -> bytes:
    """Samples (height, width, samples) as they are; ``chunks`` come before the pixels."""
    height, width, _ = values.shape
    if bits < 8:
        every = (values.reshape(height, -1)[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        lines = np.packbits(every.reshape(height, -1).astype(np.uint8), axis=1)
    else:
        lines = np.frombuffer(values.astype(f">u{bits // 8}").tobytes(), np.uint8).reshape(height, -1)
    data = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"zTXt", b"Comment\0\0" + HUGE),
        chunk(b"iTXt", b"Comment\0\x01\0\0\0" + HUGE),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0" + HUGE),
        chunk(b"iCCP", b"profile\0\0" + HUGE),
        chunk(b"tEXt", b"Comment\0" + b"x" * 5_000_000),
        b"".join(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20))) for _ in range(90)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + HUGE),
        chunk(b"eXIf", bytes(20_000_000)),
        chunk(b"iCCP", b"profile\0\x07nonsense"),
        chunk(b"zTXt", b"Comment\0\x09nonsense"),
        chunk(b"gAMA", b"\0"),
        chunk(b"cHRM", b""),
        chunk(b"pHYs", b"\0" * 3),
        chunk(b"tEXt", b"Comment\0damaged", spoil=1),
        chunk(b"acTL", b"\0"),
        chunk(b"fcTL", bytes(26)) * 2,
        chunk(b"prVt", bytes(1000)),
    ],
    ids=lambda data: data[4:8].decode(),
)
@pytest.mark.parametrize("after", [False, True])
def test_metadata_never_makes_it_unreadable(metadata: bytes, after: bool) -> None:
    place = len(SAMPLE) - 12 if after else AFTER_HEADER
    data = SAMPLE[:place] + metadata + SAMPLE[place:]
    assert decode_image(data, LIMITS).tobytes() == scene().tobytes()


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt"])
def test_orientation_as_imagemagick_wrote_it(kind: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    text = b"\nexif\n%8d\n" % len(exif.tobytes()) + exif.tobytes().hex().encode() + b"\n"
    content = b"\0" + zlib.compress(text) if kind == b"zTXt" else text
    data = SAMPLE[:AFTER_HEADER] + chunk(kind, b"Raw profile type exif\0" + content) + SAMPLE[AFTER_HEADER:]
    assert decode_image(data, LIMITS).size == (32, 48)


def test_an_animation_gives_the_picture_that_others_see() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert b"fdAT" in data
    assert decode_image(data, LIMITS).getpixel((4, 4)) == (255, 0, 0)


def test_what_follows_the_end_is_no_part_of_it() -> None:
    assert decode_image(SAMPLE + SAMPLE + bytes(100), LIMITS).tobytes() == scene().tobytes()


def test_a_changed_png_of_an_app_is_named() -> None:
    data = SAMPLE[:8] + chunk(b"CgBI", b"\x50\0\x20\x06") + SAMPLE[8:]
    with pytest.raises(UnsupportedMedia, match="Xcode"):
        decode_image(data, LIMITS)


def test_damaged_pixels_are_still_broken() -> None:
    for place in (AFTER_HEADER + 20, len(SAMPLE) // 2):
        with pytest.raises(BrokenMedia):
            decode_image(SAMPLE[:place] + b"\xaa\xaa" + SAMPLE[place + 2 :], LIMITS)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_one_grey(bits: int) -> None:
    top = 2**bits - 1
    values = np.linspace(0, top, 64).round().astype(np.uint16).reshape(8, 8, 1)
    hidden = int(values[4, 4, 0])
    data = png(values, bits, 0, chunk(b"tRNS", struct.pack(">H", hidden)))
    got = np.asarray(decode_image(data, replace(LIMITS, transparent_background="#ff0000")))
    clear = values[..., 0] == hidden
    assert (got[clear] == (255, 0, 0)).all()
    plain = (values >> 8 if bits == 16 else values * (255 // top)).astype(np.uint8)
    assert (got[~clear] == plain[~clear]).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_colour_is_one_colour(bits: int) -> None:
    values = np.full((4, 4, 3), 2**bits // 3, np.uint16)
    values[0, 0] += 1  # differs in the lower byte of each
    values[1, 1, 2] += 1
    data = png(values, bits, 2, chunk(b"tRNS", struct.pack(">3H", *values[2, 2])))
    got = np.asarray(decode_image(data, LIMITS))
    assert (got == 255).all(axis=-1).sum() == 14
    for place in ((0, 0), (1, 1)):
        assert (got[place] == values[place] >> (bits - 8)).all()
