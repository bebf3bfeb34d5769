"""The chunks of a PNG: the file without its metadata, and the one colour that its pixels may name as transparent.

Pillow unpacks texts and profiles of a PNG, and gives the whole picture up where they are large or damaged.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adapters.errors import UnsupportedMedia
from adapters.limits import Deadline, MediaLimits
from adapters.media.ifd import orientation
from adapters.media.pillow import opened

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The animation goes too: what is left is the picture that a reader without animation shows.
_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_GREY, _COLOUR = 0, 2
_MAX_EXIF_BYTES = 2**20
_HEX_EXIF = b"Raw profile type exif\0"  # as ImageMagick wrote it before there was eXIf
_XMP = b"XML:com.adobe.xmp\0"


@dataclass(frozen=True)
class _Chunk:
    kind: bytes
    start: int
    content: int
    length: int

    @property
    def end(self) -> int:
        return self.content + self.length + 4


def read(data: bytes, limits: MediaLimits, deadline: Deadline) -> tuple[Image.Image, int]:
    """The loaded picture and its orientation, 1 to 8; a transparent colour has become alpha."""
    lean, key, turned = _lean(data, deadline)
    with opened(lean, "PNG", limits, deadline) as picture:
        picture.load()
        if key is None:
            return picture, turned
        bits = data[24]
        if len(key) == 1:
            values = np.asarray(picture.convert("L") if bits < 16 else picture)
            hidden = values == (key[0] if bits >= 8 else key[0] * 255 // (2**bits - 1))
        else:
            hidden = _matches(np.asarray(picture), [value >> (bits - 8) for value in key])
        if len(key) == 3 and bits == 16:
            hidden &= _matches(np.asarray(_low_bytes(lean, limits, deadline)), [value & 255 for value in key])
        shown = _rgb(picture)
        shown.putalpha(Image.fromarray(np.where(hidden, np.uint8(0), np.uint8(255))))
        return shown, turned


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "I;16":
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert("RGB")


def _matches(values: NDArray[np.uint8], key: list[int]) -> NDArray[np.bool_]:
    matches: NDArray[np.bool_] = (values == np.array(key, np.uint8)).all(axis=-1)
    return matches


def _low_bytes(lean: bytes, limits: MediaLimits, deadline: Deadline) -> Image.Image:
    """The lower byte of 16-bit colours, which Pillow drops: it is the upper one of the other byte order."""
    with opened(lean, "PNG", limits, deadline) as picture:
        picture.tile = [tile._replace(args="RGB;16L") for tile in picture.tile]  # type: ignore[attr-defined]
        picture.load()
        return picture


def _lean(data: bytes, deadline: Deadline) -> tuple[bytes, tuple[int, ...] | None, int]:
    """The file with the chunks of its pixels alone, the samples of the transparent colour, and the orientation."""
    kept, since = [], 0
    key: tuple[int, ...] | None = None
    exif = xmp = None
    for chunk in _chunks(data, deadline):
        content = (
            b"" if chunk.kind == b"IDAT" else data[chunk.content : chunk.content + min(chunk.length, _MAX_EXIF_BYTES)]
        )
        if chunk.kind == b"CgBI":
            raise UnsupportedMedia.named("a PNG as Xcode changes them for apps (CgBI)", "the original")
        if chunk.kind == b"eXIf":
            exif = content
        elif chunk.kind in (b"zTXt", b"tEXt") and content.startswith(_HEX_EXIF) and exif is None:
            exif = _unhexed(chunk.kind, content.removeprefix(_HEX_EXIF))
        elif chunk.kind == b"iTXt" and content.startswith(_XMP):
            xmp = content
        drop = chunk.kind not in _PIXELS
        if chunk.kind == b"tRNS" and data[25:26] in (bytes([_GREY]), bytes([_COLOUR])):
            drop = True
            samples = 1 if data[25] == _GREY else 3
            if len(content) >= 2 * samples:
                mask = 2 ** data[24] - 1
                key = tuple(value & mask for value in struct.unpack_from(f">{samples}H", content))
        if drop:
            kept.append(data[since : chunk.start])
            since = chunk.end
        if chunk.kind == b"IEND":
            kept.append(data[since : chunk.end])
            since = len(data)
            break
    kept.append(data[since:])
    return b"".join(kept), key, orientation(exif, xmp)


def _chunks(data: bytes, deadline: Deadline) -> Iterator[_Chunk]:
    at = len(_SIGNATURE)
    while at + 8 <= len(data):
        deadline.check()
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk = _Chunk(kind, at, at + 8, length)
        if chunk.end > len(data):
            return
        yield chunk
        at = chunk.end


def _unhexed(kind: bytes, content: bytes) -> bytes | None:
    """A newline, a name, a length, and hexadecimal digits in lines; compressed after a byte 0 in a zTXt."""
    try:
        if kind == b"zTXt":
            content = zlib.decompressobj().decompress(content[1:], _MAX_EXIF_BYTES)
        return bytes.fromhex(b"".join(content.split(b"\n")[3:]).decode("ascii"))
    except (ValueError, zlib.error):
        return None
