"""A JPEG ends at its end marker, whatever follows; the bound on its scans holds for it alone; odd kinds are named."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from adapters.errors import BrokenMedia, MediaTooLarge, UnsupportedMedia
from adapters.media import Deadline, MediaLimits, decode_image
from adapters.media.jpeg import first_picture
from tests.media_samples import clip, encode, scene

LIMITS = MediaLimits()
BASELINE, PROGRESSIVE = encode(scene(), "JPEG"), encode(scene(200, 150), "JPEG", progressive=True)
SCAN = b"\xff\xda"


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def same(left: bytes, right: bytes) -> bool:
    return decode_image(left, LIMITS).tobytes() == decode_image(right, LIMITS).tobytes()


@pytest.mark.parametrize("picture", [BASELINE, PROGRESSIVE], ids=["baseline", "progressive"])
@pytest.mark.parametrize(
    "trailer",
    [
        b"\0" * 100,
        SCAN * 5_000,
        clip(),
        BASELINE,
        PROGRESSIVE * 20,
        b"SEFH" + SCAN * 3_000 + b"SEFT",
        b"\xff\xd8" + SCAN * 9_000,
        b"\xff",
        b"\xff\xd9" * 10,
    ],
    ids=["zeros", "scans", "clip", "second", "many", "vendor", "start", "one byte", "ends"],
)
def test_what_follows_the_end_is_no_part_of_it(picture: bytes, trailer: bytes) -> None:
    tight = replace(LIMITS, max_scan_pixels=200 * 150 * picture.count(SCAN))
    assert decode_image(picture + trailer, tight).tobytes() == decode_image(picture, LIMITS).tobytes()


def test_a_file_of_several_pictures_gives_the_first() -> None:
    frames = [scene(), Image.new("RGB", (48, 32), "red"), Image.new("RGB", (20, 20), "blue")]
    file = io.BytesIO()
    frames[0].save(file, "MPO", save_all=True, append_images=frames[1:])
    assert b"MPF\0" in file.getvalue()
    assert same(file.getvalue(), BASELINE)


def test_markers_inside_metadata_are_no_markers() -> None:
    noise = SCAN * 100 + b"\xff\xd9" * 100 + BASELINE
    data = BASELINE[:2] + segment(0xE1, noise) + segment(0xFE, noise) + segment(0xE2, noise) + BASELINE[2:]
    assert same(data, BASELINE)
    assert first_picture(data, LIMITS, Deadline(LIMITS)).data == BASELINE


@pytest.mark.parametrize("interval", [1, 3])
def test_restarts_and_stuffed_bytes_are_data(interval: int) -> None:
    noise = Image.effect_noise((64, 64), 120)
    data = encode(noise, "JPEG", quality=100, restart_marker_blocks=interval)
    assert b"\xff\xd0" in data
    assert b"\xff\x00" in data
    assert same(data + clip(), data)
    assert first_picture(data + b"more", LIMITS, Deadline(LIMITS)).data == data


def test_fill_bytes_before_markers() -> None:
    data = BASELINE[:2] + b"\xff\xff\xff" + BASELINE[2:-2] + b"\xff\xff" + BASELINE[-2:]
    assert same(data + SCAN * 2_000, BASELINE)


def test_scans_of_the_picture_itself_are_bounded() -> None:
    data = encode(scene(400, 400), "JPEG", progressive=True)
    last = data[data.rfind(SCAN) : -2]
    endless = data[:-2] + last * 7_000 + data[-2:]
    for body in (endless, endless + BASELINE, endless[:-2]):
        with pytest.raises(MediaTooLarge, match="scans") as caught:
            decode_image(body, LIMITS)
        assert caught.value.facts["field"] == "max_scan_pixels"


def test_scans_cannot_hide_behind_a_damaged_marker() -> None:
    data = encode(scene(400, 400), "JPEG", progressive=True)
    last = data[data.rfind(SCAN) : -2]
    for damage in (b"\xff\xe5\0\0", b"\xff\xfe\xff\xff", b"\xff\x05"):
        with pytest.raises(MediaTooLarge, match="scans"):
            decode_image(data[:-2] + damage + last * 7_000, LIMITS)


def test_large_metadata_is_no_hindrance() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(scene(), "JPEG", exif=exif)
    place = turned.find(b"\xff\xdb")
    more = b"".join(segment(0xE0 + i % 16, b"Exif\0\0" + bytes(65_000)) for i in range(150))
    more += b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 255]) + bytes(60_000)) for i in range(1, 200))
    data = turned[:place] + more + segment(0xFE, bytes(65_000)) * 20 + turned[place:]
    assert same(data, turned)
    assert decode_image(data, LIMITS).size == (32, 48)


def test_a_second_exif_does_not_count() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    first = encode(scene(), "JPEG", exif=exif)
    exif[0x0112] = 6
    place = first.find(b"\xff\xdb")
    assert same(first[:place] + segment(0xE1, exif.tobytes()) + first[place:], first)


def test_orientation_in_xmp_counts_where_exif_says_nothing() -> None:
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert decode_image(BASELINE[:2] + segment(0xE1, xmp) + BASELINE[2:], LIMITS).size == (32, 48)


def frame(marker: int, bits: int = 8, height: int = 32, layers: int = 3) -> bytes:
    """The sample with the header of another kind of JPEG."""
    place = BASELINE.find(b"\xff\xc0")
    length = 8 + 3 * layers
    parts = b"".join(bytes([i + 1, 0x11, 0]) for i in range(layers))
    header = struct.pack(">BBHBHHB", 0xFF, marker, length, bits, height, 48, layers) + parts
    return BASELINE[:place] + header + BASELINE[place + 19 :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame(0xC1, bits=12), "12 bits"),
        (frame(0xC0, bits=12), "12 bits"),
        (frame(0xC2, bits=12), "12 bits"),
        (frame(0xC3), "lossless"),
        (frame(0xC3, bits=16), "lossless"),
        (frame(0xCB), "lossless"),
        (frame(0xC5), "hierarchical"),
        (frame(0xC6), "hierarchical"),
        (frame(0xCD), "hierarchical"),
        (BASELINE[:2] + segment(0xDE, b"\x08\0\x20\0\x30\x03" + bytes(9)) + BASELINE[2:], "hierarchical"),
        (frame(0xC0, layers=2), "2 channels"),
        (frame(0xC0, layers=5), "5 channels"),
        (frame(0xC0, height=0), "height after"),
    ],
)
def test_kinds_that_are_not_read_are_named(data: bytes, reason: str) -> None:
    with pytest.raises(UnsupportedMedia, match=reason) as caught:
        decode_image(data, LIMITS)
    assert "whole file" not in caught.value.message


def test_a_real_lossless_jpeg() -> None:
    codec = av.CodecContext.create("ljpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 48, 32, "bgr24", Fraction(1, 25)
    source = av.VideoFrame.from_ndarray(np.asarray(scene()), format="rgb24").reformat(format="bgr24")
    source.pts, source.time_base = 0, Fraction(1, 25)
    (data,) = [bytes(packet) for packet in [*codec.encode(source), *codec.encode(None)]]
    with pytest.raises(UnsupportedMedia, match="lossless JPEG"):
        decode_image(data, LIMITS)


def test_arithmetic_coding_is_the_decoders_business() -> None:
    """libjpeg-turbo has it; coded by Huffman and named arithmetic, the pixels are noise and the size is right."""
    assert decode_image(frame(0xC9), LIMITS).size == (48, 32)


def test_cut_short() -> None:
    with pytest.raises(BrokenMedia, match="whole file"):
        decode_image(BASELINE[: len(BASELINE) // 2], LIMITS)
    with pytest.raises(BrokenMedia):
        decode_image(b"\xff\xd8\xff", LIMITS)
