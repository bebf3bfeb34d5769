"""The layout of a TIFF's first picture: which ones are read, and what each of the others is called in its refusal.

Pillow inverts some layouts and scrambles others where it unpacks them itself; libtiff, which it is made to use here,
unpacks them all. The tests compare each with the array that it was written from.
"""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from adapters.errors import BrokenMedia, UnsupportedMedia
from adapters.limits import Deadline, MediaLimits, bound
from adapters.media.ifd import Directory, orientation
from adapters.media.pillow import opened

# Pillow's own switch: libtiff unpacks uncompressed files too.
TiffImagePlugin.READ_LIBTIFF = True

_KIND, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_SAMPLES, _ROWS_PER_STRIP, _PLANAR, _COLOURS, _TILE_WIDTH, _TILE_HEIGHT, _EXTRA = 277, 278, 284, 320, 322, 323, 338
_SUB_DIRECTORIES, _FORMAT, _XMP, _DNG_VERSION = 330, 339, 700, 50706
# What libtiff needs to find and unpack the pixels: sizes, strips, tiles, fax options, JPEG's tables and YCbCr.
_PIXELS = frozenset(
    {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 347}
    | set(range(512, 522)) | {529, 530, 531, 532}
)  # fmt: skip
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE = 0, 1, 2, 3
_FAXES = frozenset({2, 3, 4})
_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000})
_JPEGS = frozenset({6, 7})
_COMPRESSION_NAMES = {
    32809: "ThunderScan", 34661: "JBIG", 34676: "SGI LogLuv", 34677: "SGI LogLuv", 34712: "JPEG 2000",
    33003: "JPEG 2000", 33005: "JPEG 2000", 34887: "LERC", 34892: "lossy DNG", 34933: "PNG", 34934: "JPEG XR",
    22610: "JPEG XR", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_PHOTOMETRIC_NAMES = {
    4: "a transparency mask", 8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32844: "LogL", 32845: "LogLuv",
}  # fmt: skip
_RAW_PHOTOMETRICS = frozenset({32803, 34892})
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_MAX_PLANES = 4
_ASSOCIATED = 1


def read(data: bytes, limits: MediaLimits, deadline: Deadline) -> tuple[Image.Image, int]:
    """The loaded first picture and its orientation, 1 to 8. Raises UnsupportedMedia for layouts that are not read."""
    try:
        directory = Directory.read(data)
        width, height = directory.number(_WIDTH, 0), directory.number(_HEIGHT, 0)
        limits.check_picture(width, height)
        _check(directory)
        _check_scans(directory, limits)
        inverted = _photometric(directory) == _WHITE_IS_ZERO and _bits(directory) >= 8
        lean = directory.with_only(_PIXELS, _replaced(directory, inverted))
        turned = orientation(data, _xmp(directory))
    except (ValueError, struct.error) as error:
        raise BrokenMedia(
            f"this TIFF does not decode (its tags are damaged: {error}); check that the whole file was sent",
            field="body", got="TIFF",
        ) from error  # fmt: skip
    try:
        with opened(lean, "TIFF", limits, deadline) as picture:
            picture.load()
            if _EXTRA not in directory.entries and picture.mode == "RGBA" and not _has_alpha(picture):
                return picture.convert("RGB"), turned  # a fourth sample that nobody explained or wrote
            return _inverted(picture) if inverted else picture, turned
    except UnidentifiedImageError as error:
        raise UnsupportedMedia.named(
            _described(directory), "8 or 16 bits a channel, grey, RGB, CMYK or palette"
        ) from error


def _bits(directory: Directory) -> int:
    return max(directory.numbers(_BITS, (1,)))


def _photometric(directory: Directory) -> int:
    """What the samples mean; where a file does not say, what libtiff takes for it."""
    if _PHOTOMETRIC in directory.entries:
        return directory.number(_PHOTOMETRIC, 0)
    if directory.number(_SAMPLES, 1) >= 3:
        return _RGB
    return _WHITE_IS_ZERO if directory.number(_COMPRESSION, 1) in _FAXES else _BLACK_IS_ZERO


def _check(directory: Directory) -> None:
    """Refuse what is not read, with its true name."""
    photometric = _photometric(directory)
    if _DNG_VERSION in directory.entries or photometric in _RAW_PHOTOMETRICS:
        raise UnsupportedMedia.named("a camera's raw picture (DNG)", "the camera's JPEG")
    if directory.number(_KIND, 0) & 1 and _SUB_DIRECTORIES in directory.entries:
        raise UnsupportedMedia.named(
            "a TIFF whose first picture is a preview, as cameras' raw files are", "the picture alone"
        )
    compression = directory.number(_COMPRESSION, 1)
    if compression not in _COMPRESSIONS:
        name = _COMPRESSION_NAMES.get(compression, f"scheme {compression}")
        raise UnsupportedMedia.named(f"a TIFF compressed with {name}", "LZW, Deflate or none")
    if photometric in _PHOTOMETRIC_NAMES:
        raise UnsupportedMedia.named(f"a TIFF of {_PHOTOMETRIC_NAMES[photometric]}", "grey, RGB, CMYK or palette")
    depths, formats = directory.numbers(_BITS, (1,)), directory.numbers(_FORMAT, (_UNSIGNED,))
    if set(formats) == {_FLOAT}:
        raise UnsupportedMedia.named(f"a TIFF of {max(depths)}-bit floating-point numbers", "8 or 16 bits a channel")
    if set(formats) == {_SIGNED}:
        raise UnsupportedMedia.named(f"a TIFF of {max(depths)}-bit signed numbers", "8 or 16 unsigned bits a channel")
    if not set(formats) <= {_UNSIGNED, _UNDEFINED} or not set(depths) <= {1, 2, 4, 8, 16} or len(set(depths)) > 1:
        bits = " and ".join(str(depth) for depth in sorted(set(depths)))
        raise UnsupportedMedia.named(f"a TIFF of {bits} bits a channel", "8 or 16 bits a channel")
    _check_samples(directory)


def _check_samples(directory: Directory) -> None:
    samples, extra = directory.number(_SAMPLES, 1), set(directory.numbers(_EXTRA, (0,)))
    if directory.number(_PLANAR, 1) == 2 and (samples > _MAX_PLANES or (samples == 2 and extra != {0})):
        raise UnsupportedMedia.named(_described(directory), "1 to 4 channels")
    if _photometric(directory) == _WHITE_IS_ZERO and _ASSOCIATED in extra:
        raise UnsupportedMedia.named("a TIFF of grey with zero as white, multiplied with alpha", "zero as black")


def _described(directory: Directory) -> str:
    samples, bits = directory.number(_SAMPLES, 1), _bits(directory)
    kind = _photometric(directory)
    names = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr"}
    planes = ", each in a plane of its own" if directory.number(_PLANAR, 1) == 2 else ""
    return f"a TIFF of {samples} channels of {bits} bits{planes} ({names.get(kind, f'photometric {kind}')})"


def _check_scans(directory: Directory, limits: MediaLimits) -> None:
    """Bound the passes over the strips of progressive JPEGs inside."""
    if directory.number(_COMPRESSION, 1) not in _JPEGS:
        return
    width = directory.number(_TILE_WIDTH, directory.number(_WIDTH, 0))
    rows = directory.number(_TILE_HEIGHT, min(directory.number(_ROWS_PER_STRIP, 2**31), directory.number(_HEIGHT, 0)))
    scans = directory.data.count(b"\xff\xda")
    bound("max_scan_pixels", f"the TIFF has {scans} JPEG scans of up to {width * rows} pixels, together {{value}}",
          scans * width * rows, limits.max_scan_pixels)  # fmt: skip


def _replaced(directory: Directory, inverted: bool) -> dict[int, tuple[int, ...]]:
    photometric = _photometric(directory)
    replaced: dict[int, tuple[int, ...]] = {_PHOTOMETRIC: (_BLACK_IS_ZERO if inverted else photometric,)}
    if photometric == _PALETTE:
        colours = directory.numbers(_COLOURS)
        if colours and max(colours) < 256:  # written with 8 bits where the format has 16
            replaced[_COLOURS] = tuple(257 * colour for colour in colours)
    return replaced


def _xmp(directory: Directory) -> bytes | None:
    try:
        return bytes(directory.numbers(_XMP))
    except (ValueError, struct.error):
        return None


def _has_alpha(picture: Image.Image) -> bool:
    return picture.getchannel("A").getextrema() != (0, 0)


def _inverted(picture: Image.Image) -> Image.Image:
    """Zero is white: the picture with zero as black; alpha stays."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray(65535 - np.asarray(picture).astype(np.uint16))
    if picture.mode == "LA":
        grey, alpha = picture.split()
        return Image.merge("LA", (ImageOps.invert(grey), alpha))
    return ImageOps.invert(picture)
