"""Pictures in ISO boxes: AVIF by Pillow, HEIC by pillow-heif where the extra `heic` is installed.

libheif and libavif turn the pixels as the boxes say; Exif's orientation does not count in these formats.
"""

from __future__ import annotations

from typing import Any

from PIL import Image, features

from adapters.errors import UnsupportedMedia
from adapters.media.ifd import orientation
from adapters.media.limits import Deadline, MediaLimits
from adapters.media.pillow import opened


def read_avif(data: bytes, limits: MediaLimits, deadline: Deadline) -> tuple[Image.Image, int]:
    """The loaded first frame and its orientation, 1 to 8."""
    if not features.check("avif"):
        raise UnsupportedMedia(
            "this is an AVIF picture, and the Pillow that is installed here was built without AVIF; send a JPEG or "
            "PNG, or install Pillow from PyPI", field="body", got="AVIF",
        )  # fmt: skip
    with opened(data, "AVIF", limits, deadline) as picture:
        picture.load()
        return picture, orientation(picture.info.get("exif"))  # where Pillow puts what the boxes say


def read_heic(data: bytes, limits: MediaLimits, deadline: Deadline) -> tuple[Image.Image, int]:
    """The loaded primary picture; it is upright already. Raises UnsupportedMedia without pillow-heif."""
    try:
        import pillow_heif
    except ImportError as error:
        raise UnsupportedMedia(
            "this is a HEIC picture, which needs pillow-heif: install it with `pip install 'adaptserve[heic]'`, or "
            "send a JPEG", field="body", got="HEIC",
        ) from error  # fmt: skip
    pillow_heif.options.DECODE_THREADS = 1  # pictures share a pool of decoding threads
    deadline.check()
    try:
        file: Any = pillow_heif.open_heif(data)
        picture = file[file.primary_index]
        limits.check_picture(*picture.size)
        decoded: Image.Image = picture.to_pillow()
    except (ValueError, RuntimeError) as error:
        if "Unsupported" in str(error):
            raise UnsupportedMedia(
                f"this is a HEIF picture of a kind that is not read here ({str(error).strip()}); send a JPEG or PNG",
                field="body", got="HEIF",
            ) from error  # fmt: skip
        raise
    return decoded, 1
