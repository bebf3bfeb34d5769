"""The first directory of tags of a TIFF file, and of the Exif data in other formats.

It reads whole numbers alone and follows nothing, so that damaged metadata cannot spoil a picture.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass

ORIENTATION = 274
MAX_NUMBERS = 65_536
"""Numbers of one tag that are looked at."""
_LETTERS = {1: "B", 3: "H", 4: "I", 7: "B", 13: "I", 16: "Q"}
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


@dataclass(frozen=True)
class Directory:
    """``entries``: tag -> its bytes as they are in the file. ``order`` is struct's; ``big`` is BigTIFF."""

    data: bytes
    order: str
    big: bool
    entries: Mapping[int, bytes]

    @classmethod
    def read(cls, data: bytes) -> Directory:
        """Raises ValueError or struct.error where the bytes hold no directory."""
        order = {b"II": "<", b"MM": ">"}[data[:2]] if data[:2] in (b"II", b"MM") else None
        if order is None:
            raise ValueError("the byte order is missing")
        big = struct.unpack_from(order + "H", data, 2)[0] == 43
        (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, place)
        first, size = place + (8 if big else 2), 20 if big else 12
        if first + count * size > len(data) or count > MAX_NUMBERS:
            raise ValueError("the directory of tags is cut off")
        entries: dict[int, bytes] = {}
        for at in range(first, first + count * size, size):
            entries.setdefault(struct.unpack_from(order + "H", data, at)[0], data[at : at + size])
        return cls(data, order, big, entries)

    def numbers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The whole numbers of a tag; ``default`` where it is absent. Raises ValueError for other values."""
        entry = self.entries.get(tag)
        if entry is None:
            return default
        _, kind, count = struct.unpack_from(self.order + ("HHQ" if self.big else "HHI"), entry)
        if kind not in _LETTERS or not 0 < count <= MAX_NUMBERS:
            raise ValueError(f"tag {tag} holds no whole numbers")
        layout = f"{self.order}{count}{_LETTERS[kind]}"
        field = entry[-8:] if self.big else entry[-4:]
        if struct.calcsize(layout) <= len(field):
            return struct.unpack_from(layout, field)
        return struct.unpack_from(layout, self.data, struct.unpack(self.order + ("Q" if self.big else "I"), field)[0])

    def number(self, tag: int, default: int) -> int:
        """The first of a tag's numbers."""
        return self.numbers(tag, (default,))[0]

    def with_only(self, tags: Collection[int], replaced: Mapping[int, tuple[int, ...]]) -> bytes:
        """The file with a directory of those tags alone, and no other; ``replaced`` get these values, 16 bits each."""
        word, head = ("Q", 8) if self.big else ("I", 4)
        place = len(self.data) + len(self.data) % 2
        kept = sorted(tag for tag in self.entries if tag in tags)
        after = place + (8 if self.big else 2) + len(kept) * (20 if self.big else 12) + struct.calcsize(word)
        entries, far = [], b""
        for tag in kept:
            entry = self.entries[tag]
            if tag in replaced:
                values = struct.pack(f"{self.order}{len(replaced[tag])}H", *replaced[tag])
                entry = struct.pack(f"{self.order}HH{word}", tag, 3, len(replaced[tag]))
                if len(values) <= struct.calcsize(word):
                    entry += values.ljust(struct.calcsize(word), b"\0")
                else:
                    entry += struct.pack(self.order + word, after + len(far))
                    far += values
            entries.append(entry)
        return b"".join(
            [
                self.data[:head], struct.pack(self.order + word, place), memoryview(self.data)[head + head :],
                bytes(len(self.data) % 2), struct.pack(self.order + ("Q" if self.big else "H"), len(kept)), *entries,
                bytes(struct.calcsize(word)), far,
            ]
        )  # fmt: skip


def orientation(exif: bytes | None, xmp: bytes | None = None) -> int:
    """1 to 8, from Exif, else from XMP; 1 where neither says, or is damaged, for the picture itself is fine."""
    with contextlib.suppress(ValueError, struct.error):
        value = Directory.read((exif or b"").removeprefix(b"Exif\0\0")).number(ORIENTATION, 0)
        if 1 <= value <= 8:
            return value
    found = _XMP_ORIENTATION.search(xmp or b"")
    return int(found[1]) if found else 1
