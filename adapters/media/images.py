"""decode_image: the bytes of one picture -> an upright RGB picture, by Pillow.

It does not know tasks, resizing or tensors; what is particular to a format is in that format's module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from adapters.errors import BrokenMedia, MediaError, MediaTooLarge, UnsupportedMedia, WrongModality
from adapters.limits import Deadline, MediaLimits
from adapters.media import heif, jpeg, png, tiff
from adapters.media.ifd import orientation
from adapters.media.pillow import opened
from adapters.media.quiet import quiet
from adapters.media.sniff import media_format
from adapters.media.transparency import flattened

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Beyond these Pillow itself refuses, whatever our limits allow."""
Reader = Callable[[bytes, MediaLimits, Deadline], tuple[Image.Image, int]]
"""A body -> its first picture, loaded, and its orientation, 1 to 8."""


def decode_image(data: bytes, limits: MediaLimits, deadline: Deadline | None = None) -> Image.Image:
    """The first picture of a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC, upright, in mode RGB.

    Transparent pixels are laid on ``limits.transparent_background``. Opaque ones have the colours of Pillow's
    ``convert("RGB")``, which ImageFolder loaders use: colour profiles are not applied. 16 bits a channel become the
    upper 8. ``deadline`` is given where several decodings share the time of one. Raises UnsupportedMedia,
    WrongModality, BrokenMedia or MediaTooLarge, and nothing else, whatever the bytes are; nothing is logged.
    """
    limits.check_bytes(data)
    kind, name = media_format(data)
    if kind != "image":
        raise WrongModality("a picture was expected, a clip came", expected="image", got=kind)
    with quiet(), _our_errors(name, limits):
        picture, turned = _READERS[name](data, limits, deadline or Deadline(limits))
        transpose = _UPRIGHT.get(turned)
        rgb = flattened(picture, limits.transparent_background)
        return rgb if transpose is None else rgb.transpose(transpose)


def opened_image(picture: Image.Image, limits: MediaLimits) -> Image.Image:
    """A picture that Pillow opened or made, as ``decode_image`` gives it from a file: upright, in mode RGB.

    Raises UnsupportedMedia, BrokenMedia or MediaTooLarge.
    """
    limits.check_picture(*picture.size)
    with quiet(), _our_errors(picture.format or "picture", limits):
        picture.load()
        transpose = _UPRIGHT.get(orientation(picture.info.get("exif"), picture.info.get("xmp")))
        rgb = flattened(picture, limits.transparent_background)
        return rgb if transpose is None else rgb.transpose(transpose)


@contextmanager
def _our_errors(name: str, limits: MediaLimits) -> Iterator[None]:
    """Pillow's parsers raise OSError, SyntaxError, ValueError, struct.error, zlib.error, IndexError and more."""
    try:
        yield
    except MediaError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        most = min(limits.max_pixels, MOST_PIXELS)
        raise MediaTooLarge(
            f"this {name} is too large to decode ({error}); send at most {most} pixels", field="max_pixels", limit=most
        ) from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "the header is damaged"
        raise BrokenMedia(
            f"this {name} does not decode ({reason}); check that the whole file was sent", field="body", got=name
        ) from error


def _read_jpeg(data: bytes, limits: MediaLimits, deadline: Deadline) -> tuple[Image.Image, int]:
    first = jpeg.first_picture(data, limits, deadline)
    with opened(first.data, "JPEG", limits, deadline) as picture:
        picture.load()
        return picture, first.orientation


def _read_gif(data: bytes, limits: MediaLimits, deadline: Deadline) -> tuple[Image.Image, int]:
    """What the first frame does not cover is transparent."""
    with opened(data, "GIF", limits, deadline) as picture:
        covered = picture.tile[0].extents if picture.tile else None  # type: ignore[attr-defined]
        picture.load()
        if covered is None or covered == (0, 0, picture.width, picture.height):
            return picture, 1
        canvas = Image.new("RGBA", picture.size)
        canvas.paste(picture.convert("RGBA").crop(covered), covered)
        return canvas, 1


def _read_bmp(data: bytes, limits: MediaLimits, deadline: Deadline) -> tuple[Image.Image, int]:
    try:
        with opened(data, "BMP", limits, deadline) as picture:
            picture.load()
    except OSError as error:
        if "nsupported BMP" in str(error):
            what, instead = f"a BMP of a rare kind ({error})", "24 or 32 bits, uncompressed, or a PNG"
            raise UnsupportedMedia.named(what, instead) from error
        raise
    if picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (0, 0):
        picture = picture.convert("RGB")  # many programs leave the fourth byte at 0
    return picture, 1


def _read_webp(data: bytes, limits: MediaLimits, deadline: Deadline) -> tuple[Image.Image, int]:
    with opened(data, "WEBP", limits, deadline) as picture:
        picture.load()
        return picture, orientation(picture.info.get("exif"), picture.info.get("xmp"))


_READERS: dict[str, Reader] = {
    "JPEG": _read_jpeg, "PNG": png.read, "WEBP": _read_webp, "GIF": _read_gif, "BMP": _read_bmp, "TIFF": tiff.read,
    "AVIF": heif.read_avif, "HEIC": heif.read_heic,
}  # fmt: skip
