"""Pictures in ISO boxes: AVIF by Pillow, HEIC by pillow-heif where the extra `heic` is installed.

libheif and libavif turn the pixels as the boxes say; Exif's orientation does not count in these formats.
"""

from __future__ import annotations

from typing import Any

from PIL import Image, features

from adapters.errors import UnsupportedMedia
from adapters.limits import Deadline, MediaLimits
from adapters.media.ifd import orientation
from adapters.media.pillow import opened

_SEQUENCES = frozenset({b"hevc", b"hevx", b"hevm", b"hevs", b"msf1"})


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
        if not len(file):
            raise UnsupportedMedia.named("a HEIF file without a picture of HEVC", "a JPEG or PNG")
        picture = file[file.primary_index]
        limits.check_picture(*picture.size)
        decoded: Image.Image = picture.to_pillow()
    except (ValueError, RuntimeError) as error:
        if "nsupported" in str(error):
            raise UnsupportedMedia.named(
                f"a HEIF picture of another kind than phones' ({str(error).strip()})", "a JPEG or PNG"
            ) from error
        if data[8:12] in _SEQUENCES:
            raise UnsupportedMedia.named("a HEIF sequence", "a JPEG or PNG") from error
        raise
    return decoded, 1
