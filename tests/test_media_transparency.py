"""What is transparent shows the background, in every format and mode, as in a viewer; what is opaque is as it was."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from adapters.media import MediaLimits, decode_image
from tests.media_samples import encode, scene
from tests.test_media_png import chunk, png
from tests.tiff_samples import BLACK_IS_ZERO, PALETTE, RGB, WHITE_IS_ZERO, tiff

LIMITS = MediaLimits()
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "#2080f0": (0x20, 0x80, 0xF0)}
COLOURS = np.asarray(scene())
ALPHA = np.asarray(Image.linear_gradient("L").resize((48, 32)))
GREY = np.asarray(scene().convert("L"))


def pixels(data: bytes, background: str = "white") -> NDArray[np.int64]:
    picture = decode_image(data, replace(LIMITS, transparent_background=background))
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def blended(colours: NDArray[Any], alpha: NDArray[Any], background: str) -> NDArray[np.float64]:
    share = alpha[..., None].astype(float) / 255
    return colours * share + np.array(BACKGROUNDS[background]) * (1 - share)


def rgba() -> Image.Image:
    return Image.fromarray(np.dstack([COLOURS, ALPHA]))


def close(got: NDArray[np.int64], wanted: NDArray[np.float64], by: float = 1.5) -> bool:
    return bool(np.abs(got - wanted).max() <= by)


def grey_alpha() -> Image.Image:
    return Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA)))


def of_16_bits(*planes: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return np.dstack(planes).astype(np.uint16) * 257


def premultiplied(colours: NDArray[np.uint8], top: int) -> NDArray[Any]:
    share = ALPHA[..., None] / 255
    kind = np.uint8 if top == 255 else np.uint16
    return np.dstack([colours * (top / 255) * share, ALPHA * (top / 255)]).round().astype(kind)


def bmp(values: NDArray[np.uint8]) -> bytes:
    """Fields of red, green, blue and alpha (BITMAPV4HEADER); Pillow writes a fourth byte without a meaning."""
    height, width, _ = values.shape
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, width, -height, 1, 32, 3, values.size, 0, 0, 0, 0) + masks + bytes(52)
    start = 14 + len(header)
    return struct.pack("<2sIII", b"BM", start + values.size, 0, start) + header + values[..., [2, 1, 0, 3]].tobytes()


FILES = {
    "png rgba": (encode(rgba(), "PNG"), COLOURS),
    "png rgba 16": (png(of_16_bits(COLOURS, ALPHA), 16, 6), COLOURS),
    "png grey": (encode(grey_alpha(), "PNG"), GREY[..., None]),
    "png grey 16": (png(of_16_bits(GREY, ALPHA), 16, 4), GREY[..., None]),
    "webp": (encode(rgba(), "WEBP", lossless=True, exact=True), COLOURS),
    "tiff": (encode(rgba(), "TIFF"), COLOURS),
    "tiff lzw": (encode(rgba(), "TIFF", compression="tiff_lzw"), COLOURS),
    "tiff grey": (encode(grey_alpha(), "TIFF"), GREY[..., None]),
    "tiff 16": (tiff(of_16_bits(COLOURS, ALPHA), RGB, extra=[2]), COLOURS),
    "tiff 16 planes": (tiff(of_16_bits(COLOURS, ALPHA), RGB, extra=[2], planar=2, order=">"), COLOURS),
    "tiff planes": (tiff(np.dstack([COLOURS, ALPHA]), RGB, extra=[2], planar=2), COLOURS),
    "tiff multiplied": (tiff(premultiplied(COLOURS, 255), RGB, extra=[1]), COLOURS),
    "tiff multiplied 16": (tiff(premultiplied(COLOURS, 65535), RGB, extra=[1]), COLOURS),
    "tiff grey multiplied": (tiff(premultiplied(GREY[..., None], 255), BLACK_IS_ZERO, extra=[1]), GREY[..., None]),
    "tiff white is zero": (tiff(np.dstack([255 - GREY, ALPHA]), WHITE_IS_ZERO, extra=[2]), GREY[..., None]),
    "bmp": (bmp(np.dstack([COLOURS, ALPHA])), COLOURS),
}


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("name", FILES)
def test_alpha_is_laid_on_the_background(name: str, background: str) -> None:
    data, colours = FILES[name]
    # Of faint colours that were multiplied with alpha little is left, and little of them shows.
    assert close(pixels(data, background), blended(colours, ALPHA, background), 3 if "multiplied" in name else 1.5)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_avif(background: str) -> None:
    got = pixels(encode(rgba(), "AVIF", quality=100, subsampling="4:4:4"), background)
    assert np.abs(got - blended(COLOURS, ALPHA, background)).mean() < 3


@pytest.mark.parametrize("name", ["PNG", "GIF", "WEBP", "TIFF"])
def test_black_ink_on_nothing_is_black_on_white(name: str) -> None:
    """Whatever the colour that lies under what is clear."""
    ink = np.zeros((20, 20, 4), np.uint8)
    ink[5:15, 8:12, 3] = 255
    wanted = np.where(ink[..., 3:] == 255, 0, 255).repeat(3, -1)
    options: dict[str, Any] = {"lossless": True} if name == "WEBP" else {}
    assert (pixels(encode(Image.fromarray(ink), name, **options)) == wanted).all()


@pytest.mark.parametrize("name", ["PNG", "GIF"])
@pytest.mark.parametrize("clear", [0, 3])
def test_one_clear_colour_of_a_palette(name: str, clear: int) -> None:
    source = scene().quantize(8)
    got = pixels(encode(source, name, transparency=clear), "#2080f0")
    hidden = np.asarray(source) == clear
    assert hidden.any()
    assert (got[hidden] == BACKGROUNDS["#2080f0"]).all()
    assert (got[~hidden] == np.asarray(source.convert("RGB"))[~hidden]).all()


def test_a_table_of_alpha_for_a_palette() -> None:
    source = scene().quantize(8)
    table = bytes([0, 40, 80, 120, 255, 200])  # the last two colours are opaque
    full = np.array([*table, 255, 255])[np.asarray(source)]
    got = pixels(encode(source, "PNG", transparency=table))
    assert close(got, blended(np.asarray(source.convert("RGB")), full, "white"))


def test_a_palette_with_alpha_beside_it() -> None:
    source = scene().quantize(256)
    table = np.frombuffer(bytes(source.getpalette() or []), np.uint8).reshape(-1, 3)
    colours = np.zeros((3, 256), np.int64)
    colours[:, : len(table)] = table.T.astype(np.int64) * 257
    values = np.dstack([np.asarray(source), ALPHA])
    data = tiff(values, PALETTE, extra=[2], tags={320: colours.reshape(-1).tolist()})
    assert close(pixels(data), blended(np.asarray(source.convert("RGB")), ALPHA, "white"))


@pytest.mark.parametrize("clear", [None, 0])
def test_what_the_first_frame_of_a_gif_does_not_cover_is_clear(clear: int | None) -> None:
    small = encode(Image.new("P", (4, 3), 0), "GIF") if clear is None else encode(Image.new("P", (4, 3)), "GIF")
    data = bytearray(small)
    data[6:10] = struct.pack("<HH", 10, 8)  # the canvas grows, the frame stays
    place = data.find(b"\x2c")
    data[place + 1 : place + 5] = struct.pack("<HH", 3, 2)
    got = pixels(bytes(data))
    assert (got[2:5, 3:7] == 0).all()
    assert (got == 255).all(axis=-1).sum() == 80 - 12


def test_an_animation_of_webp() -> None:
    frames = [rgba(), Image.new("RGBA", (48, 32), (255, 0, 0, 255))]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, exact=True)
    assert close(pixels(data), blended(COLOURS, ALPHA, "white"))


def test_a_fourth_byte_that_nobody_wrote_is_no_alpha() -> None:
    unused = Image.fromarray(np.dstack([COLOURS, np.zeros_like(ALPHA)]))
    assert (pixels(encode(unused, "BMP")) == COLOURS).all()
    assert (pixels(bmp(np.asarray(unused))) == COLOURS).all()
    assert (pixels(tiff(np.asarray(unused), RGB, extra=[0])) == COLOURS).all()
    assert (pixels(tiff(np.asarray(unused), RGB)) == COLOURS).all()


def test_opaque_alpha_changes_nothing() -> None:
    opaque = scene().convert("RGBA")
    for name in ("PNG", "TIFF", "WEBP"):
        assert (pixels(encode(opaque, name, lossless=True), "black") == COLOURS).all()


def test_alpha_is_turned_with_its_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert close(
        np.rot90(pixels(encode(rgba(), "PNG", exif=exif))), blended(COLOURS, ALPHA, "white"),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(values=arrays(np.uint8, (5, 4, 4)))
def test_any_colours_and_alpha(values: NDArray[np.uint8]) -> None:
    got = pixels(encode(Image.fromarray(values), "PNG"))
    assert close(got, blended(values[..., :3], values[..., 3], "white"))


def test_a_colour_key_on_16_bit_grey_beside_a_turn() -> None:
    values = of_16_bits(GREY)[..., :1]
    exif = Image.Exif()
    exif[0x0112] = 3
    data = png(
        values, 16, 0, chunk(b"tRNS", struct.pack(">H", int(values[0, 0, 0]))), chunk(b"eXIf", exif.tobytes()[6:])
    )
    assert (pixels(data)[-1, -1] == 255).all()
