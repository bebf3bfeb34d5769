"""without_other_tracks: an MP4 without its sound and text, its picture tables bounded before a demuxer believes them.

It does not know FFmpeg or codecs; it walks boxes, and reads counts, and that only outside the media data.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adapters.errors import UnsupportedMedia
from adapters.limits import Deadline, MediaLimits, bound

# Tag -> offset of the 32-bit count, from the start of the tag.
_SAMPLE_COUNTS = {b"stsz": 12, b"stz2": 12, b"trun": 8}
_CHUNK_COUNTS = {b"stco": 8, b"co64": 8}
_EDIT_COUNTS = {b"elst": 8}
_IGNORED = b"skip"
_PICTURES = b"vide"

Box = tuple[bytes, int, int, int]
"""A tag; where it stands; start and end of the content."""


def without_other_tracks(data: bytes, limits: MediaLimits, deadline: Deadline) -> bytes:
    """The same file, its tracks of sound, text and time renamed to boxes that are skipped, so that they cost nothing.

    Raises MediaTooLarge where the tables that stay promise more than ``max_samples`` samples times edits: a table
    may give one size for all samples, and so claim four thousand million of them in 20 bytes; FFmpeg then
    builds an index of each. Tags are searched there and not walked to, for a demuxer finds them in odd
    places too. Raises UnsupportedMedia for a compressed header, whose tables cannot be seen.
    """
    others = _other_tracks(data, deadline)
    if others:
        view, done = memoryview(data), 0
        parts: list[bytes | memoryview] = []
        for tag, start, end in others:
            # Zeros, in which no search below finds a tag, and no demuxer.
            parts += [view[done:tag], _IGNORED, view[tag + 4 : start], bytes(end - start)]
            done = end
        data = b"".join([*parts, view[done:]])
    _check_tables(data, limits, deadline)
    return data


def header_is_cut(data: bytes, deadline: Deadline) -> bool:
    """Whether the ``moov`` that says what the file holds is missing, or not there in full."""
    for name, tag, _, end in _boxes(data, 0, len(data), deadline):
        if name == b"moov":
            return int.from_bytes(data[tag - 4 : tag], "big") > end - (tag - 4)
    return True


def _other_tracks(data: bytes, deadline: Deadline) -> list[tuple[int, int, int]]:
    """In order, for each ``trak`` without pictures, and each ``traf`` of one: place of the tag, start and end."""
    found, numbers, with_pictures = [], set(), False
    for name, _, start, end in _boxes(data, 0, len(data), deadline):
        if name == b"moov":
            for inner, tag, first, last in _boxes(data, start, end, deadline):
                if inner != b"trak":
                    continue
                if _handler(data, first, last, deadline) in (_PICTURES, None):
                    with_pictures = True
                    continue
                found.append((tag, first, last))
                numbers.add(_track_number(data, first, last, b"tkhd", deadline))
        elif name == b"moof" and numbers:
            for inner, tag, first, last in _boxes(data, start, end, deadline):
                if inner == b"traf" and _track_number(data, first, last, b"tfhd", deadline) in numbers:
                    found.append((tag, first, last))
    if found and not with_pictures and not header_is_cut(data, deadline):
        raise UnsupportedMedia("the file has no video stream; send a clip with moving pictures", field="streams")
    return found


def _handler(data: bytes, start: int, end: int, deadline: Deadline) -> bytes | None:
    """What a track holds, as its media header says: ``vide``, ``soun``, ``tmcd``, ..."""
    media = _first(data, start, end, b"mdia", deadline)
    header = media and _first(data, *media, b"hdlr", deadline)
    return data[header[0] + 8 : header[0] + 12] if header else None


def _track_number(data: bytes, start: int, end: int, tag: bytes, deadline: Deadline) -> bytes | None:
    """The four bytes of a track's number, from its ``tkhd`` or ``tfhd``."""
    header = _first(data, start, end, tag, deadline)
    if header is None:
        return None
    at = header[0] + (4 if tag == b"tfhd" else 20 if data[header[0]] else 12)
    return data[at : at + 4]


def _first(data: bytes, start: int, end: int, tag: bytes, deadline: Deadline) -> tuple[int, int] | None:
    return next(((first, last) for name, _, first, last in _boxes(data, start, end, deadline) if name == tag), None)


def _boxes(data: bytes, start: int, end: int, deadline: Deadline) -> Iterator[Box]:
    """The boxes that lie side by side between ``start`` and ``end``; the last may be cut short."""
    position = start
    while position + 8 <= end:
        deadline.check()
        size = int.from_bytes(data[position : position + 4], "big")
        header = 8
        if size == 1:
            size, header = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        elif size == 0:
            size = end - position
        size = max(size, header)
        yield data[position + 4 : position + 8], position + 4, position + header, min(position + size, end)
        position += size


def _check_tables(data: bytes, limits: MediaLimits, deadline: Deadline) -> None:
    samples, edits = 0, 1
    for start, end in _outside_media(data, deadline):
        if data.find(b"cmov", start, end) >= 0:
            raise UnsupportedMedia(
                "the clip's header is compressed (cmov), which is not read; save it again as MP4",
                field="body", got="cmov",
            )  # fmt: skip
        samples += sum(_counts(data, start, end, _SAMPLE_COUNTS, deadline))
        samples += sum(_counts(data, start, end, _CHUNK_COUNTS, deadline)) * _sound_in_chunk(data, start, end, deadline)
        edits = max(edits, *_counts(data, start, end, _EDIT_COUNTS, deadline), 1)
    bound("max_samples", "the clip's tables list {value} samples and edits", samples * edits, limits.max_samples)


def _outside_media(data: bytes, deadline: Deadline) -> Iterator[tuple[int, int]]:
    """Start and end of each run of top-level boxes that are not ``mdat``, which may hold any bytes."""
    start = 0
    for name, tag, _, end in _boxes(data, 0, len(data), deadline):
        if name == b"mdat":
            yield start, tag - 4
            start = end
    if start < len(data):
        yield start, len(data)


def _counts(data: bytes, start: int, end: int, offsets: dict[bytes, int], deadline: Deadline) -> Iterator[int]:
    for tag, offset in offsets.items():
        for at in _places(data, tag, start, end, deadline):
            yield int.from_bytes(data[at + offset : at + offset + 4], "big")


def _sound_in_chunk(data: bytes, start: int, end: int, deadline: Deadline) -> int:
    """The most entries that FFmpeg makes of one chunk, should it take the track for sound: one in 1024 samples."""
    most = 0
    for at in _places(data, b"stsc", start, end, deadline):
        listed = int.from_bytes(data[at + 8 : at + 12], "big")
        held = (min(at - 4 + int.from_bytes(data[at - 4 : at], "big"), end) - at - 12) // 12
        if listed and held > 0:
            table = np.frombuffer(data, ">u4", 3 * min(listed, held), at + 12).reshape(-1, 3)
            most = max(most, int(table[:, 1].max()) // 1024)
    return most


def _places(data: bytes, tag: bytes, start: int, end: int, deadline: Deadline) -> Iterator[int]:
    at = data.find(tag, start, end)
    while at >= 0:
        deadline.check()
        yield at
        at = data.find(tag, at + 4, end)
