"""check_tables: bound what an MP4's sample tables claim, before a demuxer believes them.

It does not know FFmpeg, tracks or codecs; it reads counts, and that only outside the media data.
"""

from __future__ import annotations

from collections.abc import Iterator

from adapters.errors import UnsupportedMedia
from adapters.limits import Deadline, MediaLimits, bound

# Tag -> offset of the 32-bit count, from the start of the tag.
_SAMPLE_COUNTS = {b"stsz": 12, b"stz2": 12, b"trun": 8}
_EDIT_COUNTS = {b"elst": 8}


def check_tables(data: bytes, limits: MediaLimits, deadline: Deadline) -> None:
    """Raise MediaTooLarge where the tables promise more than ``max_samples`` samples times edits.

    A table may give one size for all samples, and so claim four thousand million of them in 20 bytes; FFmpeg
    then builds an index of each. Tags are searched and not walked to, for a demuxer finds them in odd
    places too. Raises UnsupportedMedia for a compressed header, whose tables cannot be seen.
    """
    samples, edits = 0, 1
    for start, end in _outside_media(data, deadline):
        if data.find(b"cmov", start, end) >= 0:
            raise UnsupportedMedia(
                "the clip's header is compressed (cmov), which is not read; save it again as MP4",
                field="body", got="cmov",
            )  # fmt: skip
        samples += sum(_counts(data, start, end, _SAMPLE_COUNTS))
        edits = max(edits, *_counts(data, start, end, _EDIT_COUNTS), 1)
    bound("max_samples", "the clip's tables list {value} samples and edits", samples * edits, limits.max_samples)


def _outside_media(data: bytes, deadline: Deadline) -> Iterator[tuple[int, int]]:
    """Start and end of each run of top-level boxes that are not ``mdat``, which may hold any bytes."""
    start = position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size == 0:
            size = len(data) - position
        if data[position + 4 : position + 8] == b"mdat":
            deadline.check()
            yield start, position
            start = position + max(size, 8)
        position += max(size, 8)
    if start < len(data):
        yield start, len(data)


def _counts(data: bytes, start: int, end: int, offsets: dict[bytes, int]) -> Iterator[int]:
    for tag, offset in offsets.items():
        at = data.find(tag, start, end)
        while at >= 0:
            yield int.from_bytes(data[at + offset : at + offset + 4], "big")
            at = data.find(tag, at + 4, end)
