"""decode_image: the bytes of one picture -> an upright RGB picture, by Pillow.

It does not know tasks, resizing or tensors.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from adapters.errors import BrokenMedia, MediaError, MediaTooLarge, UnsupportedMedia, WrongModality
from adapters.media.limits import Deadline, MediaLimits, bound
from adapters.media.sniff import media_format

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, limits: MediaLimits) -> Image.Image:
    """The first frame of a JPEG, PNG, WebP, GIF, BMP or TIFF, upright, in mode RGB.

    Colours are those of Pillow's ``convert("RGB")``, which ImageFolder loaders use: alpha is dropped and
    not composited. 16-bit grey keeps its high byte (Pillow would clip it at 255). Raises UnsupportedMedia,
    WrongModality, BrokenMedia or MediaTooLarge, and nothing else, whatever the bytes are.
    """
    limits.check_bytes(data)
    kind, name = media_format(data)
    if kind != "image":
        raise WrongModality("a picture was expected, a clip came", expected="image", got=kind)
    try:
        with Image.open(_Body(data, Deadline(limits)), formats=(name,)) as picture:
            limits.check_picture(*picture.size)
            if name == "JPEG":
                _check_scans(data, picture, limits)
            picture.load()
            return _upright(_rgb(picture), _orientation(picture))
    except MediaError:
        raise
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaTooLarge(
            f"this {name} is too large to decode ({error}); send at most {limits.max_pixels} pixels",
            field="max_pixels", limit=limits.max_pixels,
        ) from error  # fmt: skip
    except Exception as error:
        # Pillow's parsers raise OSError, SyntaxError, ValueError, struct.error, zlib.error, IndexError and more.
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "the header is damaged"
        raise BrokenMedia(
            f"this {name} does not decode ({reason}); check that the whole file was sent", field="body", got=name
        ) from error


class _Body(io.BytesIO):
    """The body as a file that refuses to be read after the deadline.

    Pillow walks chunks and markers in Python, one read each: millions of empty ones would hold the
    interpreter for a minute.
    """

    def __init__(self, data: bytes, deadline: Deadline) -> None:
        super().__init__(data)
        self._deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        self._deadline.check()
        return super().read(size)


def _check_scans(data: bytes, picture: Image.Image, limits: MediaLimits) -> None:
    """Bound the passes of a progressive JPEG: a scan of 75 bytes can cost a pass over 50 million pixels."""
    scans = data.count(b"\xff\xda")
    pixels = picture.width * picture.height
    bound("max_scan_pixels", f"the JPEG has {scans} scans of {pixels} pixels, together {{value}}",
          scans * pixels, limits.max_scan_pixels)  # fmt: skip


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # The high byte, as Pillow itself reads 16-bit colour.
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise UnsupportedMedia(
            f"the pixels are 32-bit numbers (mode {picture.mode}) without a known range; send 8 or 16 bits a channel",
            field="mode", expected="8 or 16 bits a channel", got=picture.mode,
        )  # fmt: skip
    # Dropped by the conversion anyway; left in, Pillow would warn about it or look for a free colour.
    picture.info.pop("transparency", None)
    rgb = picture.convert("RGB")
    rgb.info.clear()
    return rgb


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where EXIF is absent or damaged, for the picture itself is fine."""
    with contextlib.suppress(Exception):
        value = picture.getexif().get(_ORIENTATION_TAG)
        if isinstance(value, int):
            return value
    return 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    transpose = _UPRIGHT.get(orientation)
    return picture if transpose is None else picture.transpose(transpose)
