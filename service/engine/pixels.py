"""Pixels: memory for the frames of requests on their way, a row each, written once by a decoder, read by the engine.

It lies in a buffer that several processes may have mapped; which rows are taken is known to its one owner.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from adapters.config import Size
from adapters.media import Pixels
from service.errors import QueueFull

RETRY_AFTER_S = 1.0


def array_of(buffer: Any, size: Size) -> Pixels:
    """A buffer as uint8 (rows, 3, height, width), as many as fit; the rest of it is left."""
    rows = len(buffer) // row_bytes(size)
    return np.frombuffer(buffer, np.uint8, rows * row_bytes(size)).reshape(rows, 3, *size)


def row_bytes(size: Size) -> int:
    """Bytes of one frame of that height and width."""
    return 3 * size[0] * size[1]


def gathered(rows: Pixels, numbers: Sequence[int]) -> Pixels:
    """Those rows, (frames, 3, height, width): a view where they lie side by side, as one always does, else a copy."""
    first = numbers[0]
    if list(numbers) == list(range(first, first + len(numbers))):
        return rows[first : first + len(numbers)]
    return rows[list(numbers)]


class Framed(Protocol):
    """One input's frames, whoever holds them."""

    @property
    def array(self) -> Pixels: ...


class Held:
    """Rows that belong to one input until nobody refers to this. ``self[i]`` is frame i, (3, height, width)."""

    __slots__ = ("_owner", "numbers")

    def __init__(self, owner: PixelMemory, numbers: Sequence[int]) -> None:
        self._owner, self.numbers = owner, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, frame: int) -> Pixels:
        row: Pixels = self._owner.rows[self.numbers[frame]]
        return row

    @property
    def nbytes(self) -> int:
        """Of all frames; ``array`` may have to copy them."""
        return len(self) * int(self._owner.rows[0].nbytes)

    @property
    def array(self) -> Pixels:
        """All frames, (frames, 3, height, width)."""
        return gathered(self._owner.rows, self.numbers)

    def views(self, frames: int) -> list[Held]:
        """So many frames of it each, one after the other; all rows are held as long as one of them is."""
        if frames == len(self):
            return [self]
        return [_View(self, self.numbers[first : first + frames]) for first in range(0, len(self), frames)]

    def digest(self) -> bytes:
        """By it the device finds equal pictures; it takes a tenth of a millisecond for one of 224 pixels."""
        found = hashlib.sha256()
        for frame in range(len(self)):
            found.update(self[frame].data)
        return found.digest()

    def __del__(self) -> None:
        self._owner.free(self.numbers)


class _View(Held):
    """Some frames of an input."""

    __slots__ = ("_whole",)

    def __init__(self, whole: Held, numbers: Sequence[int]) -> None:
        super().__init__(whole._owner, numbers)
        self._whole = whole

    def __del__(self) -> None:
        """The whole gives back what is its own."""


class PixelMemory:
    """Takes rows for inputs, from any thread; a row that was let go of is taken again first, while it is in caches.

    Without a lock, since rows may come back while one is held: whenever Python finds that nobody refers to them.
    """

    def __init__(self, rows: Pixels) -> None:
        self.rows = rows
        self._free = deque(range(len(rows) - 1, -1, -1))  # whose operations are each one step

    @classmethod
    def private(cls, rows: int, size: Size) -> PixelMemory:
        """In memory of this process, which the system gives page by page as it is written."""
        return cls(np.empty((rows, 3, *size), np.uint8))

    @property
    def held(self) -> int:
        """Rows that are taken now."""
        return len(self.rows) - len(self._free)

    def take(self, frames: int) -> Held:
        """Rows for one input. Raises QueueFull where so many are not free."""
        numbers: list[int] = []
        try:
            for _ in range(frames):
                numbers.append(self._free.pop())
        except IndexError:
            self.free(numbers)
            held = self.held
            raise QueueFull(
                f"{held} frames are on their way to the device, and there is room for {len(self.rows)} "
                f"(max_queue_rows); try again in {RETRY_AFTER_S:g} s",
                retry_after=RETRY_AFTER_S, field="max_queue_rows", limit=len(self.rows), value=held + frames,
            ) from None  # fmt: skip
        return Held(self, sorted(numbers))

    def free(self, numbers: Sequence[int]) -> None:
        """For ``Held`` alone."""
        self._free.extend(reversed(numbers))
