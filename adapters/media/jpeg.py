"""The markers of a JPEG: what kind it is, where it ends, and the file without what a decoder of pixels does not need.

It does not decode. What follows the end marker (a phone's clip, a second picture, a gain map) is no part of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from adapters.errors import UnsupportedMedia
from adapters.limits import Deadline, MediaLimits, bound
from adapters.media.ifd import orientation

_END, _SCAN, _APP0, _APP1, _COMMENT = 0xD9, 0xDA, 0xE0, 0xE1, 0xFE
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""
_FRAMES = frozenset({*range(0xC0, 0xD0), 0xDE}) - {0xC4, 0xC8, 0xCC}
_UNREAD_FRAMES = {
    0xC3: "lossless", 0xCB: "lossless", 0xC7: "hierarchical", 0xCF: "hierarchical",
    0xC5: "hierarchical", 0xC6: "hierarchical", 0xCD: "hierarchical", 0xCE: "hierarchical", 0xDE: "hierarchical",
}  # fmt: skip
# In coded data FF 00 is a byte and FF D0 to D7 are restarts; FF may be repeated before any marker.
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")


@dataclass(frozen=True)
class Jpeg:
    """``data``: one picture, from its first marker to its last, without metadata; ``orientation`` is 1 to 8."""

    data: bytes
    orientation: int


@dataclass(frozen=True)
class _Segment:
    marker: int
    start: int
    content: int
    end: int


def first_picture(data: bytes, limits: MediaLimits, deadline: Deadline) -> Jpeg:
    """The first picture of the body, whatever follows it.

    Raises UnsupportedMedia for kinds of JPEG that are not read, MediaTooLarge for its size or for a progressive one of
    too many scans: a scan of 75 bytes can cost a pass over 50 million pixels.
    """
    kept, since, scans, pixels = [], 0, 0, 0
    exif = xmp = None
    end, last = len(data), 0
    for part in _segments(data, deadline):
        last = part.end
        if part.marker in _FRAMES:
            pixels = max(pixels, _check_frame(part.marker, data[part.content : part.end], limits))
        scans += part.marker == _SCAN
        if part.marker == _END:
            end = part.end
            break
        if _APP0 <= part.marker < _APP0 + 16 or part.marker == _COMMENT:
            head = data[part.content : part.content + 29]
            if part.marker == _APP1 and exif is None and head.startswith(b"Exif\0\0"):
                exif = data[part.content : part.end]
            elif part.marker == _APP1 and xmp is None and head.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
                xmp = data[part.content : part.end]
            if not head.startswith((b"JFIF", b"Adobe")):  # these two say what the colours are
                if since < part.start:
                    kept.append(data[since : part.start])
                since = part.end
    else:
        scans += data.count(b"\xff\xda", last)  # damaged: no more than could still be in there
    bound("max_scan_pixels", f"the JPEG has {scans} scans of {pixels} pixels, together {{value}}",
          scans * pixels, limits.max_scan_pixels)  # fmt: skip
    kept.append(data[since:end])
    return Jpeg(b"".join(kept), orientation(exif, xmp))


def _segments(data: bytes, deadline: Deadline) -> Iterator[_Segment]:
    """Every marker up to the end marker; it stops before what is no segment."""
    at = 0
    while found := _MARKER.search(data, at):
        deadline.check()
        marker, content = found[1][0], found.end()
        if marker in _ALONE or marker == _END:
            yield _Segment(marker, found.start(), content, content)
        else:
            length = int.from_bytes(data[content : content + 2], "big")
            if length < 2 or content + length > len(data):
                return
            yield _Segment(marker, found.start(), content + 2, content + length)
            content += length
        at = content


def _check_frame(marker: int, header: bytes, limits: MediaLimits) -> int:
    """Its pixels."""
    if marker in _UNREAD_FRAMES:
        raise UnsupportedMedia.named(f"a {_UNREAD_FRAMES[marker]} JPEG", "a baseline or progressive JPEG, or a PNG")
    if len(header) < 6:
        return 0
    bits, height, width, layers = header[0], *_pair(header, 1), header[5]
    if bits != 8:
        raise UnsupportedMedia.named(f"a JPEG of {bits} bits a channel", "8 bits a channel, or a PNG")
    if height == 0:
        raise UnsupportedMedia.named(
            "a JPEG that gives its height after its pixels (DNL)", "a JPEG with its height in the header, or a PNG"
        )
    if layers not in (1, 3, 4):
        raise UnsupportedMedia.named(f"a JPEG of {layers} channels", "1, 3 or 4 channels, or a PNG")
    limits.check_picture(width, height)
    return width * height


def _pair(header: bytes, at: int) -> tuple[int, int]:
    return int.from_bytes(header[at : at + 2], "big"), int.from_bytes(header[at + 2 : at + 4], "big")
