"""Each layout of TIFF is read as the array that it was written from, or refused by its name, never anything between."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adapters.errors import BrokenMedia, MediaTooLarge, UnsupportedMedia
from adapters.media import MediaLimits, decode_image
from tests.media_samples import encode, scene
from tests.tiff_samples import (
    BLACK_IS_ZERO,
    DEFLATE,
    PACKBITS,
    PALETTE,
    RAW,
    RGB,
    SEPARATED,
    WHITE_IS_ZERO,
    tiff,
    written,
)

LIMITS = MediaLimits()
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, SEPARATED: 4}
SHAPES: tuple[dict[str, Any], ...] = ({}, {"rows_per_strip": 16}, {"tile": (16, 16)})


def values(samples: int, bits: int) -> NDArray[np.unsignedinteger]:
    """Slopes across 52x40 pixels, each sample its own."""
    down, across = np.mgrid[0:40, 0:52]
    slopes = [across / 51, down / 39, 1 - across / 51, (across + down) / 90, 0 * across + 1, 0 * across + 0.5]
    kind = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    return (np.dstack(slopes[:samples]) * (2**bits - 1)).round().astype(kind)


def truth(stored: NDArray[np.unsignedinteger], photometric: int, bits: int) -> NDArray[np.float64]:
    """Red, green and blue in 0 to 255 that the samples mean; extra ones are left out."""
    shares = stored[..., : COLOURS[photometric]] / (2**bits - 1)
    if photometric == WHITE_IS_ZERO:
        shares = 1 - shares
    if photometric == SEPARATED:
        shares = (1 - shares[..., :3]) * (1 - shares[..., 3:])
    return np.broadcast_to(255 * shares, (*shares.shape[:2], 3))


def read(data: bytes) -> NDArray[np.int64]:
    return np.asarray(decode_image(data, LIMITS)).astype(int)


def right(data: bytes, wanted: NDArray[np.float64]) -> bool:
    return bool(np.abs(read(data) - wanted).max() < 3)


READ = [
    *((photometric, bits, ()) for photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) for bits in (1, 2, 4, 8, 16)),
    *((photometric, bits, ()) for photometric in (RGB, SEPARATED) for bits in (8, 16)),
    (BLACK_IS_ZERO, 8, (0,)),
    (RGB, 8, (0,)),
    (RGB, 16, (0,)),
    (RGB, 8, (0, 0)),
    (SEPARATED, 8, (0,)),
]


@pytest.mark.parametrize(("photometric", "bits", "extra"), READ)
def test_layouts_that_are_read(photometric: int, bits: int, extra: tuple[int, ...]) -> None:
    """In both byte orders, compressed or not, chunky or in planes, in one part, strips or tiles."""
    samples = COLOURS[photometric] + len(extra)
    stored = values(samples, bits)
    wanted = truth(stored, photometric, bits)
    for order, compression, planar, shape, big in product(
        "<>", (RAW, DEFLATE, PACKBITS), (1, 2), SHAPES, (False, True)
    ):
        if planar == 2 and (samples == 1 or samples > 4):
            continue
        data = tiff(stored, photometric, bits=bits, order=order, compression=compression, planar=planar, extra=extra,
                    big=big, **shape)  # fmt: skip
        assert right(data, wanted), (order, compression, planar, shape, big)


@pytest.mark.parametrize(("photometric", "bits"), [(1, 8), (1, 16), (0, 8), (0, 16), (2, 8), (2, 16), (5, 8), (5, 16)])
def test_differences_between_neighbours(photometric: int, bits: int) -> None:
    stored = values(COLOURS[photometric], bits)
    for order, shape in product("<>", SHAPES):
        data = tiff(stored, photometric, order=order, compression=DEFLATE, predictor=2, **shape)
        assert right(data, truth(stored, photometric, bits)), (order, shape)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 10, 12])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, SEPARATED])
@pytest.mark.parametrize("extra", [(), (0,), (2,), (0, 0), (2, 0)])
def test_whatever_is_read_is_right(photometric: int, bits: int, extra: tuple[int, ...]) -> None:
    """Right or 415, for every mixture of layouts; alpha is full."""
    samples = COLOURS[photometric] + len(extra)
    stored = values(samples, bits)
    if 2 in extra:
        stored[..., COLOURS[photometric]] = 2**bits - 1
    wanted = truth(stored, photometric, bits)
    for order, compression, planar, fill_order in product("<>", (RAW, DEFLATE), (1, 2), (1, 2)):
        data = tiff(stored, photometric, bits=bits, order=order, compression=compression, planar=planar, extra=extra,
                    fill_order=fill_order)  # fmt: skip
        try:
            got = read(data)
        except UnsupportedMedia:
            continue
        assert np.abs(got - wanted).max() < 3, (order, compression, planar, fill_order)


@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bits_in_the_other_order(photometric: int, bits: int) -> None:
    stored = values(1, bits)
    for compression in (RAW, DEFLATE):
        assert right(
            tiff(stored, photometric, bits=bits, compression=compression, fill_order=2),
            truth(stored, photometric, bits),
        )


@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4"])
def test_faxes(compression: str, photometric: int) -> None:
    source = scene(200, 100).convert("1")
    data = encode(source, "TIFF", compression=compression, tiffinfo={262: photometric})
    assert np.array_equal(read(data)[..., 0], np.asarray(source) * 255)


@pytest.mark.parametrize("scale", [1, 257])
def test_palettes_of_8_bits_where_16_belong(scale: int) -> None:
    source = scene().quantize(256)
    table = np.zeros((3, 256), np.int64)
    colours = np.array(source.getpalette()).reshape(-1, 3)
    table[:, : len(colours)] = colours.T * scale
    for order in "<>":
        data = tiff(np.asarray(source)[..., None], PALETTE, order=order, tags={320: table.reshape(-1).tolist()})
        assert np.array_equal(read(data), np.asarray(source.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int) -> None:
    stored = values(3, 16)
    undo = {2: (1, 0), 3: (1, 1), 4: (0, 1)}
    data = tiff(stored, RGB, planar=2, tags={274: [orientation]})
    got = read(data)
    assert got.shape[:2] == ((40, 52) if orientation < 5 else (52, 40))
    wanted = truth(stored, RGB, 16)
    if orientation >= 5:
        wanted = {5: wanted, 6: wanted[::-1], 7: wanted[::-1, ::-1], 8: wanted[:, ::-1]}[orientation].swapaxes(0, 1)
    across, down = undo.get(orientation, (0, 0))
    assert np.abs(got - wanted[:: -1 if down else 1, :: -1 if across else 1]).max() < 3


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "lzma", "zstd"])
def test_compressions(compression: str) -> None:
    assert np.array_equal(read(encode(scene(), "TIFF", compression=compression)), np.asarray(scene()))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_jpeg_inside(subsampling: str) -> None:
    data = encode(scene(), "TIFF", compression="jpeg", quality=95, subsampling=subsampling)
    assert np.abs(read(data) - np.asarray(scene())).mean() < 6


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("whole", [True, False])
def test_jpeg_inside_in_the_old_style(whole: bool, order: str) -> None:
    picture = encode(scene(), "JPEG", quality=95, subsampling="4:4:4")
    scan = picture.find(b"\xff\xda")
    coded = scan + 2 + int.from_bytes(picture[scan + 2 : scan + 4], "big")
    first = 0 if whole else coded
    jpeg = {
        259: [6],
        273: [8 + first],
        279: [len(picture) - first],
        512: [1],
        513: [8],
        514: [len(picture)],
        530: [1, 1],
    }
    data = written(picture, {256: [48], 257: [32], 258: [8] * 3, 262: [6], 277: [3], 278: [32], 284: [1]} | jpeg, order)
    assert np.abs(read(data) - np.asarray(scene())).mean() < 2
    with pytest.raises(MediaTooLarge, match="JPEG scans"):
        decode_image(data, replace(LIMITS, max_scan_pixels=48 * 32 - 1))


def test_ycbcr_without_subsampling() -> None:
    stored = np.asarray(scene().convert("YCbCr"))
    for compression, planar in product((RAW, DEFLATE), (1,)):
        data = tiff(stored, 6, compression=compression, planar=planar, tags={530: [1, 1]})
        assert np.abs(read(data) - np.asarray(scene())).max() < 6


def test_ycbcr_with_subsampling() -> None:
    """Four lightnesses and one pair of colours for each square of two by two pixels."""
    picture = scene().resize((24, 16)).resize((48, 32), Image.Resampling.NEAREST)
    full = np.asarray(picture.convert("YCbCr"))
    squares = full[..., 0].reshape(16, 2, 24, 2).transpose(0, 2, 1, 3).reshape(16, 24, 4)
    units = np.concatenate([squares, full[::2, ::2, 1:]], axis=-1).astype(np.uint8)
    data = tiff(units.reshape(32, 24, 3), 6, tags={256: [48], 257: [32], 278: [32], 530: [2, 2]})
    assert np.abs(read(data) - np.asarray(picture)).max() < 6


FLOATS = np.ones((4, 4, 3), np.float32) / 2
UNREAD = {
    "float": (tiff(FLOATS, RGB), "32-bit floating-point"),
    "float of 64 bits": (tiff(FLOATS.astype(np.float64), RGB), "64-bit floating-point"),
    "float of 16 bits": (tiff(FLOATS.astype(np.float16), RGB), "16-bit floating-point"),
    "grey float": (tiff(FLOATS[..., :1], BLACK_IS_ZERO), "32-bit floating-point"),
    "float in differences": (tiff(FLOATS, RGB, compression=DEFLATE, predictor=3), "32-bit floating-point"),
    "signed": (tiff(np.ones((4, 4, 1), np.int16), BLACK_IS_ZERO), "16-bit signed"),
    "signed bytes": (tiff(np.ones((4, 4, 1), np.int8), BLACK_IS_ZERO), "8-bit signed"),
    "signed of 32 bits": (tiff(np.ones((4, 4, 1), np.int32), BLACK_IS_ZERO), "32-bit signed"),
    "32 bits": (tiff(values(1, 32), BLACK_IS_ZERO), "32 bits"),
    "32 bits, colours": (tiff(values(3, 32), RGB), "32 bits"),
    "10 bits": (tiff(values(1, 10), BLACK_IS_ZERO, bits=10), "10 bits"),
    "12 bits": (tiff(values(1, 12), BLACK_IS_ZERO, bits=12), "12 bits"),
    "12 bits, big end": (tiff(values(1, 12), BLACK_IS_ZERO, bits=12, order=">"), "12 bits"),
    "12 bits, colours": (tiff(values(3, 12), RGB, bits=12), "12 bits"),
    "14 bits": (tiff(values(3, 14), RGB, bits=14), "14 bits"),
    "uneven bits": (tiff(values(3, 8), RGB, tags={258: [5, 6, 5]}), "5 and 6 bits"),
    "palette of 16 bits": (tiff(values(1, 16), PALETTE, tags={320: [0] * 3 * 1024}), "1 channels of 16 bits .palette"),
    "5 bands": (tiff(values(5, 8), BLACK_IS_ZERO, extra=[0] * 4), "5 channels of 8 bits .grey"),
    "5 bands without a word": (tiff(values(5, 8), BLACK_IS_ZERO), "5 channels of 8 bits"),
    "5 bands in planes": (tiff(values(5, 8), BLACK_IS_ZERO, extra=[0] * 4, planar=2), "5 channels.*each in a plane"),
    "5 bands of 16 bits": (tiff(values(5, 16), RGB, extra=[0, 0]), "5 channels of 16 bits .RGB"),
    "2 bands": (tiff(values(2, 16), RGB), "2 channels of 16 bits"),
    "white is zero, multiplied": (tiff(values(2, 8), WHITE_IS_ZERO, extra=[1]), "zero as white, multiplied"),
    "lab": (tiff(values(3, 8), 8), r"CIE L\*a\*b\*"),
    "mask": (tiff(values(1, 1), 4, bits=1), "transparency mask"),
    "logluv": (tiff(values(3, 16), 32845, tags={259: [34676]}), "SGI LogLuv"),
    "jpeg 2000": (tiff(values(3, 8), RGB, tags={259: [34712]}), "JPEG 2000"),
    "webp": (tiff(values(3, 8), RGB, tags={259: [50001]}), "WebP"),
    "unheard of": (tiff(values(3, 8), RGB, tags={259: [12345]}), "scheme 12345"),
    "dng": (tiff(values(3, 8), RGB, tags={50706: b"\1\4\0\0"}), "DNG"),
    "sensor": (tiff(values(1, 16), 32803), "DNG"),
    "preview": (tiff(values(3, 8), RGB, tags={254: [1], 330: [8]}), "preview"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_layouts_that_are_not_read_are_named(name: str) -> None:
    data, reason = UNREAD[name]
    with pytest.raises(UnsupportedMedia, match=reason) as caught:
        decode_image(data, LIMITS)
    assert "whole file" not in caught.value.message


@pytest.mark.parametrize(
    "tags",
    [
        {34665: [2**31]},
        {34665: [9], 34853: [5], 40965: [1]},
        {330: [2**31 - 1]},
        {700: b"<x" * 100_000},
        {34675: bytes(3_000_000)},
        {34377: b"8BIM" * 50_000},
        {33723: [7] * 1000},
        {282: [0], 283: [0], 296: [77]},
        {50838: [2**30], 50839: b"IJIJ"},
        {270: b"\xff" * 1000},
        {37724: bytes(2_000_000)},
    ],
)
def test_metadata_never_makes_it_unreadable(tags: dict[int, Any]) -> None:
    for big, order in product((False, True), "<>"):
        assert right(tiff(values(3, 8), RGB, tags=tags, big=big, order=order), truth(values(3, 8), RGB, 8))


@pytest.mark.parametrize(
    "changed", [{279: None}, {278: None}, {284: None, 259: None}, {258: [8]}, {339: [4] * 3}, {262: None}]
)
def test_what_writers_leave_out_or_write_oddly(changed: dict[int, Any]) -> None:
    stored = values(3, 8)
    usual = {256: [52], 257: [40], 258: [8] * 3, 259: [RAW], 262: [RGB], 273: [8], 277: [3], 278: [40], 284: [1]}
    tags = {**usual, 279: [stored.size], **changed}
    data = written(stored.tobytes(), {tag: value for tag, value in tags.items() if value}, "<")
    assert right(data, truth(stored, RGB, 8))


def test_grey_without_a_word_is_black_as_zero() -> None:
    stored = values(1, 8)
    tags = {256: [52], 257: [40], 258: [8], 273: [8], 277: [1], 278: [40], 279: [stored.size]}
    assert right(written(stored.tobytes(), tags, "<"), truth(stored, BLACK_IS_ZERO, 8))


def test_only_the_first_of_many_pictures_is_looked_at() -> None:
    file = io.BytesIO()
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    data = bytearray(file.getvalue())
    assert decode_image(bytes(data), LIMITS).getpixel((4, 4)) == (255, 0, 0)
    (first,) = struct.unpack_from("<I", data, 4)
    following = first + 2 + 12 * struct.unpack_from("<H", data, first)[0]
    for target in (first, 2**31, 3):  # a circle, and nowhere
        struct.pack_into("<I", data, following, target)
        assert decode_image(bytes(data), LIMITS).getpixel((4, 4)) == (255, 0, 0)


def test_sizes_are_looked_at_before_decoding() -> None:
    with pytest.raises(MediaTooLarge) as caught:
        decode_image(tiff(values(3, 8), RGB, tags={256: [15_000], 257: [15_000]}), LIMITS)
    assert caught.value.facts["field"] == "max_pixels"
    with pytest.raises(MediaTooLarge) as caught:
        decode_image(encode(scene(), "TIFF", compression="jpeg"), replace(LIMITS, max_scan_pixels=10))
    assert caught.value.facts["field"] == "max_scan_pixels"


@pytest.mark.parametrize("tags", [{256: [0]}, {256: b"x" * 9}, {273: [2**31]}, {279: [3]}, {322: [16], 323: [0]}])
def test_damage_is_broken_or_named(tags: dict[int, Any]) -> None:
    with pytest.raises((BrokenMedia, UnsupportedMedia, MediaTooLarge)):
        decode_image(tiff(values(3, 8), RGB, compression=DEFLATE, tags=tags), LIMITS)
