"""The journal: which tasks changed, in memory that all processes of a server share. The disk has the facts.

A reader asks one number whether anything changed and reads the changed tasks' manifests anew. It takes no lock: only
whoever holds the folder's write lock appends, and an entry that is not whole says so itself.

    0      generation: how many changes there were, uint64
    8      doubtful: the generation of the last change that the disk did not confirm, uint64
    16     of a store that servers share: the number of the last change that was seen, uint64
    24     and when it last answered, on the monotonic clock that all processes share, in ns, uint64
    64     the task that is being changed at this moment, 64 bytes
    128    4096 entries of 80 bytes: the task, the generation that its change made, crc32 of both
"""

from __future__ import annotations

import ctypes
import math
import struct
import time
from mmap import mmap
from typing import Final
from zlib import crc32

RING: Final = 4096
NAME_BYTES: Final = 64
_ENTRY: Final = struct.Struct(f"={NAME_BYTES}sQI4x")
_CHECKED: Final = NAME_BYTES + 8  # what the checksum is of
_BEGUN, _ENTRIES = 64, 128


class Journal:
    """Over a writable buffer of ``SIZE`` bytes, all zero at first: an mmap for many processes, a bytearray for one."""

    SIZE: Final = _ENTRIES + RING * _ENTRY.size

    def __init__(self, buffer: mmap | bytearray | memoryview) -> None:
        """Raises ValueError for a buffer that is too small, or does not begin at a multiple of 8."""
        view = memoryview(buffer).cast("B")
        if len(view) < self.SIZE or ctypes.addressof(ctypes.c_char.from_buffer(view)) % 8:
            raise ValueError(f"a journal needs {self.SIZE} writable bytes from an address that 8 divides")
        self._view = view
        self._numbers = view[:32].cast("Q")  # native and aligned: each is loaded and stored in one step

    @property
    def generation(self) -> int:
        """How many changes there were; it only grows."""
        return self._numbers[0]

    @property
    def doubtful(self) -> int:
        """The generation of the last change that can be seen, but that the disk never confirmed; 0 if there is none."""
        return self._numbers[1]

    @property
    def store_seen(self) -> int:
        """Of a store that servers share: every change up to that number that was acknowledged is known here."""
        return self._numbers[2]

    @property
    def store_age(self) -> float:
        """Seconds since that store last answered whoever follows it; infinite if it never did."""
        heard = self._numbers[3]
        return max(0.0, (time.monotonic_ns() - heard) / 1e9) if heard else math.inf

    def heard(self, seen: int) -> None:
        """The store answered, and is known up to that change. For the one who follows it."""
        self._numbers[2] = seen
        self._numbers[3] = time.monotonic_ns()

    @property
    def begun(self) -> str:
        """The task of a change that was begun and neither appended nor given up: its writer was killed in it.

        For the holder of the write lock.
        """
        return _text(bytes(self._view[_BEGUN : _BEGUN + NAME_BYTES]))

    def begin(self, name: str) -> None:
        """Say which task is about to change on the disk; "" where that failed. The caller holds the write lock."""
        self._view[_BEGUN : _BEGUN + NAME_BYTES] = _bytes(name)

    def append(self, name: str, *, confirmed: bool = True) -> None:
        """Tell all of a change that the disk has. The caller holds the write lock."""
        name_bytes, number = _bytes(name), self.generation + 1
        at = _place(number)
        checked = _ENTRY.pack(name_bytes, number, 0)[:_CHECKED]
        _ENTRY.pack_into(self._view, at, name_bytes, number, crc32(checked))
        if not confirmed:
            self._numbers[1] = number
        self._numbers[0] = number
        self.begin("")

    def since(self, seen: int) -> tuple[int, set[str] | None]:
        """The generation now, and the tasks that changed after ``seen``.

        None instead of the tasks where that cannot be told, too much having changed: then any may have.
        """
        now = self.generation
        if not 0 <= now - seen <= RING:
            return now, None
        names = set()
        for number in range(seen + 1, now + 1):
            name = self._entry(number)
            if name is None:
                return now, None
            names.add(name)
        return now, names

    def _entry(self, number: int) -> str | None:
        """The task that changed; None where a later change is over it, or half over it."""
        at = _place(number)
        raw = bytes(self._view[at : at + _ENTRY.size])
        name, found, checksum = _ENTRY.unpack(raw)
        return _text(name) if found == number and checksum == crc32(raw[:_CHECKED]) else None


def _place(number: int) -> int:
    return _ENTRIES + (number - 1) % RING * _ENTRY.size


def _bytes(name: str) -> bytes:
    """Raises ValueError for what is no name of at most 64 ASCII characters."""
    found = name.encode("ascii")
    if len(found) > NAME_BYTES:
        raise ValueError(f"'{name[:80]}' has more than {NAME_BYTES} characters")
    return found.ljust(NAME_BYTES, b"\0")


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("ascii", "replace")
