"""Pillow, opened on a body: one named format, the size looked at before anything is decoded, an end to reading.

It does not know what the formats hold.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import AvifImagePlugin, Image

from adapters.media.limits import Deadline, MediaLimits

# Pictures share a pool of decoding threads, which is what scales; threads of their own would fight.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


@contextmanager
def opened(data: bytes, name: str, limits: MediaLimits, deadline: Deadline) -> Iterator[Image.Image]:
    """The picture, not decoded yet; ``name`` is Pillow's. Raises MediaTooLarge, and whatever Pillow does."""
    with Image.open(Body(data, deadline), formats=(name,)) as picture:
        limits.check_picture(*picture.size)
        yield picture


class Body(io.BytesIO):
    """The body as a file that refuses to be read after the deadline.

    Pillow walks chunks and markers in Python, one read each: millions of empty ones would hold the
    interpreter for a minute.
    """

    def __init__(self, data: bytes, deadline: Deadline) -> None:
        super().__init__(data)
        self._deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        self._deadline.check()
        return super().read(size)
