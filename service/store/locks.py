"""Who may do what to a data folder: one server owns it, and of that server's processes one at a time changes it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from service.errors import Conflict
from service.store.staging import disk_errors


class FolderLock:
    """A server's claim on a data folder, from here until ``close``; the kernel ends it with the process."""

    def __init__(self, root: Path) -> None:
        """Makes the folder if need be. Raises Conflict if another server has it, or a storage error."""
        with disk_errors():
            self._file = _opened(root)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._file.close()
                raise Conflict(
                    f"another server owns the folder {root}; stop it or choose another --data-dir", folder=str(root)
                ) from error
            except OSError:
                self._file.close()
                raise

    def close(self) -> None:
        """Let another server own the folder; safe to repeat."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _opened(root: Path) -> TextIO:
    """A read-only disk that has the file already will do for serving."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        return (root / "lock").open("w")
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return (root / "lock").open()


@contextmanager
def write_lock(root: Path) -> Iterator[None]:
    """Be the one process that changes the folder. Waits for another; the kernel frees it when its holder is killed.

    It is opened anew each time, since processes that were forked with it open would hold it together. Raises OSError,
    on a read-only disk too.
    """
    handle = os.open(root / "writing", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)  # a child that is just being forked has the file open too
        os.close(handle)
