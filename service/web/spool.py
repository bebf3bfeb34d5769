"""Spool: the body of a batch on the disk while it is answered, in a file without a name, which nobody need remove.

It does not know what the bytes are. Everything here blocks, for workers.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.errors import BrokenMedia
from service.errors import Draining
from service.store.staging import disk_errors


class Spool:
    """Bytes that are appended by one, then read by many."""

    def __init__(self, folder: Path) -> None:
        """Raises StorageFull, StorageReadOnly or StorageFailed, as all of it does."""
        with disk_errors():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - ``close`` does
        self.size = 0
        self._lock = threading.Lock()
        self._users, self._closed = 0, False

    def write(self, data: bytes | bytearray) -> None:
        with self._used(), disk_errors():
            self._file.write(data)
            self._file.flush()
        self.size += len(data)

    def read(self, offset: int, size: int) -> bytes:
        """Those bytes, fewer at the end."""
        with self._used(), disk_errors():
            found = os.pread(self._file.fileno(), size, offset)
            while len(found) < min(size, self.size - offset):  # one call gives 2 GiB at the most
                found += os.pread(self._file.fileno(), size - len(found), offset + len(found))
        return found

    def close(self) -> None:
        """Give the room back, once nobody reads; a number of a file that is closed might be another one's."""
        with self._lock:
            self._closed = True
            last = not self._users
        if last:
            self._file.close()

    @contextmanager
    def _used(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise Draining("this batch has ended")
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                last = self._closed and not self._users
            if last:
                self._file.close()


class SpoolFile:
    """A spool as a file for a library that believes what the file says of itself: bounded in what it reads.

    It may read ``most`` bytes at once, and ``left`` in all until somebody sets that anew. For one thread at a time.
    """

    def __init__(self, spool: Spool, most: int) -> None:
        self._spool, self._at = spool, 0
        self.most = self.left = most

    def read(self, size: int = -1) -> bytes:
        """Raises BrokenMedia where more is asked than may be."""
        wanted = max(0, self._spool.size - self._at)
        if size >= 0:
            wanted = min(wanted, size)
        self.left -= wanted
        if wanted > self.most or self.left < 0:
            raise BrokenMedia(f"its headers are larger than {self.most} bytes, and nobody needs so many")
        found = self._spool.read(self._at, wanted)
        self._at += len(found)
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Raises OSError before the beginning, as files do."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._spool.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "there is nothing before the beginning")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True
