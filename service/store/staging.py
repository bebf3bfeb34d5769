"""An upload on its way to the repository: a bounded, hashed file; what a sick disk means, and a reserve for it.

It knows nothing of tasks, versions or HTTP.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adapters.atomic import replacing
from adapters.errors import AdapterTooLarge
from service.errors import StorageFailed, StorageFull, StorageReadOnly

FULL = (errno.ENOSPC, errno.EDQUOT)
RESERVE_BYTES = 256 * 1024
"""Room for the manifest of a task with a thousand versions."""


class NotConfirmed(OSError):
    """A change was made and can be seen, but the disk failed before it said that the change will last."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror)


class Reserve:
    """A file that is given up when a full disk refuses a small write, so that a deletion can make room again."""

    def __init__(self, root: Path, owner: str = "") -> None:
        self._path, self._staging, self._prefix = root / "reserve", root / "staging", left_by(owner)

    def fill(self) -> None:
        """Have the reserve if the disk lets us; bytes that no file system can shrink. For the write lock's holder."""
        with suppress(OSError):
            if not self._path.exists():
                with replacing(self._path, within=self._staging, prefix=self._prefix) as temporary:
                    temporary.write_bytes(os.urandom(RESERVE_BYTES))

    def spend(self, write: Callable[[], None]) -> None:
        """Do ``write``, once more without the reserve if the disk is full. For the write lock's holder."""
        try:
            write()
        except OSError as error:
            if error.errno not in FULL or isinstance(error, NotConfirmed):
                raise
            self._path.unlink(missing_ok=True)
            write()


def left_by(owner: str) -> str:
    """How the names begin of what that process has in ``root/staging``. Raises ValueError for what cannot be told."""
    if "." in owner or "/" in owner:
        raise ValueError(f"'{owner}' has a dot or a slash; a process of the store is named without")
    return f"{owner}." if owner else ""


class Staging:
    """An upload in progress: bytes into a file under ``root/staging``, hashed and counted on the way."""

    def __init__(self, folder: Path, max_bytes: int, owner: str = "") -> None:
        handle, name = tempfile.mkstemp(dir=folder, prefix=left_by(owner), suffix=".part")
        self.path, self.size, self._max_bytes = Path(name), 0, max_bytes
        self._file = os.fdopen(handle, "wb")
        self._hash = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Raises AdapterTooLarge, StorageFull or StorageReadOnly."""
        self.size += len(chunk)
        if self.size > self._max_bytes:
            raise AdapterTooLarge(
                f"the file has {self.size} bytes or more, the limit is {self._max_bytes} (max_adapter_bytes)",
                field="max_adapter_bytes", limit=self._max_bytes, value=self.size,
            )  # fmt: skip
        with disk_errors():
            self._file.write(chunk)
        self._hash.update(chunk)

    def finish(self) -> str:
        """Flush to disk; the digest."""
        with disk_errors():
            if not self._file.closed:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
        return self._hash.hexdigest()

    def discard(self) -> None:
        """Remove the file unless it was published; safe to repeat."""
        with disk_errors():
            try:
                self._file.close()
            finally:
                self.path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors() -> Iterator[None]:
    """What a sick disk raises, as our own errors; the fact ``changed`` says whether the change can be seen."""
    try:
        yield
    except OSError as error:
        changed = isinstance(error, NotConfirmed)
        also = ". The change was made, but it may not outlast a power cut: ask for it again" if changed else ""
        facts = {"changed": True} if changed else {}
        said = error.strerror or str(error)
        if error.errno in FULL:
            text = f"the disk with the data folder is full; free some space and try again{also}"
            raise StorageFull(text, **facts) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StorageReadOnly(f"the data folder cannot be written ({said}){also}", **facts) from error
        raise StorageFailed(f"the data folder's disk failed ({said}){also}", **facts) from error
