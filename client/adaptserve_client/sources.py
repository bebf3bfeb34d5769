"""What a caller may give as a picture, clip or adapter: a path, bytes or an open file, as a request's body."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import SEEK_END
from pathlib import Path
from typing import BinaryIO, Union

CHUNK = 256 * 1024

File = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO]
"""A path, the bytes themselves, or a file that is open for reading bytes."""


class Stream:
    """A body that is read while it is sent, from its beginning each time: a path, or an open file that can seek."""

    def __init__(self, file: Path | BinaryIO) -> None:
        self._file = file
        if isinstance(file, Path):
            self._start, self.size = 0, file.stat().st_size
        else:
            self._start = file.tell()
            self.size = file.seek(0, SEEK_END) - self._start
            file.seek(self._start)

    def chunks(self) -> Iterator[bytes]:
        """Exactly ``size`` bytes, or OSError where the file has become shorter."""
        if isinstance(self._file, Path):
            with self._file.open("rb") as opened:
                yield from self._rest(opened)
        else:
            self._file.seek(self._start)
            yield from self._rest(self._file)

    def _rest(self, file: BinaryIO) -> Iterator[bytes]:
        left = self.size
        while left:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                raise OSError(f"the file became shorter while it was sent: {left} of {self.size} bytes are missing")
            left -= len(chunk)
            yield chunk


def content_of(file: File) -> bytes:
    """All bytes of it. Raises OSError."""
    if isinstance(file, str | os.PathLike):
        return Path(file).read_bytes()
    if isinstance(file, bytes | bytearray | memoryview):
        return bytes(file)
    return file.read()


def stream_of(file: File) -> bytes | Stream:
    """The same for what is large: nothing is read before it is sent, where that can be."""
    if isinstance(file, str | os.PathLike):
        return Stream(Path(file))
    if isinstance(file, bytes | bytearray | memoryview):
        return bytes(file)
    return Stream(file) if file.seekable() else file.read()


def name_of(file: File) -> str:
    """The file's own name, where it has one."""
    name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", "")
    return Path(name).name if isinstance(name, str | os.PathLike) else ""
