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
MAX_NUMBERS = 2**20
"""Numbers of one tag that are looked at; a strip or a tile takes one."""
_LETTERS = {1: "B", 3: "H", 4: "I", 7: "B", 13: "I", 16: "Q"}
_SIZES = {5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
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
        if place > len(data):
            raise ValueError("the directory of tags is cut off")
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, place)
        first, size = place + (8 if big else 2), 20 if big else 12
        if first + count * size > len(data) or count > 65_535:
            raise ValueError("the directory of tags is cut off")
        entries: dict[int, bytes] = {}
        for at in range(first, first + count * size, size):
            tag, _, values = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, at)
            if values:  # some writers leave empty tags
                entries.setdefault(tag, data[at : at + size])
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
        return struct.unpack(layout, self._bytes(tag, struct.calcsize(layout)))

    def number(self, tag: int, default: int) -> int:
        """The first of a tag's numbers."""
        return self.numbers(tag, (default,))[0]

    def with_only(self, tags: Collection[int], replaced: Mapping[int, tuple[int, ...]]) -> bytes:
        """A TIFF of the same pixels whose one directory holds those tags alone; ``replaced`` are 16-bit values instead.

        A BigTIFF becomes a TIFF, since Pillow misreads some; all places in a body fit into 32 bits.
        """
        place = len(self.data) + len(self.data) % 2
        kept = sorted({tag for tag in self.entries if tag in tags} | replaced.keys())
        after = place + 2 + 12 * len(kept) + 4
        entries, far = [], b""
        for tag in kept:
            kind, count, value = self._entry(tag) if tag not in replaced else self._packed(3, replaced[tag])
            if len(value) > 4:
                far, value = far + value + bytes(len(value) % 2), struct.pack(self.order + "I", after + len(far))
            entries.append(struct.pack(self.order + "HHI", tag, kind, count) + value.ljust(4, b"\0"))
        header = self.data[:2] + struct.pack(self.order + "HI", 42, place)
        directory = struct.pack(self.order + "H", len(kept)) + b"".join(entries) + bytes(4) + far
        return b"".join([header, memoryview(self.data)[8:], bytes(len(self.data) % 2), directory])

    def _entry(self, tag: int) -> tuple[int, int, bytes]:
        _, kind, count = struct.unpack_from(self.order + ("HHQ" if self.big else "HHI"), self.entries[tag])
        if kind in _LETTERS:
            return self._packed(4 if kind in (13, 16) else kind, self.numbers(tag))
        return kind, count, self._bytes(tag, _SIZES.get(kind, 1) * count)

    def _packed(self, kind: int, numbers: tuple[int, ...]) -> tuple[int, int, bytes]:
        return kind, len(numbers), struct.pack(f"{self.order}{len(numbers)}{_LETTERS[kind]}", *numbers)

    def _bytes(self, tag: int, length: int) -> bytes:
        field = self.entries[tag][-8:] if self.big else self.entries[tag][-4:]
        if length <= len(field):
            return field[:length]
        (place,) = struct.unpack(self.order + ("Q" if self.big else "I"), field)
        if place + length > len(self.data):
            raise ValueError(f"the values of tag {tag} are cut off")
        return self.data[place : place + length]


def orientation(exif: bytes | None, xmp: bytes | None = None) -> int:
    """1 to 8, from Exif, else from XMP; 1 where neither says, or is damaged, for the picture itself is fine."""
    with contextlib.suppress(ValueError, struct.error):
        value = Directory.read((exif or b"").removeprefix(b"Exif\0\0")).number(ORIENTATION, 0)
        if 1 <= value <= 8:
            return value
    found = _XMP_ORIENTATION.search(xmp or b"")
    return int(found[1]) if found else 1
