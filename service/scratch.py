"""The folder of one running server, for its sockets and its processes' numbers; what dead servers left is removed.

A lock in it, which the kernel frees when its holder ends however that comes, tells the living from the dead.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

PREFIX = "adaptserve-"
LONGEST = 68
"""Bytes of the place for such folders: a socket's path may have 103 on macOS, 107 on Linux, and needs 35 of its own."""
_LOCK = "lock"


class Scratch:
    """A new folder, ``path``, readable by this user alone, until ``close``."""

    def __init__(self) -> None:
        """Raises OSError."""
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_place()))
        self._lock = (self.path / "new").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.path / "new").rename(self.path / _LOCK)  # locked from its first moment

    def close(self) -> None:
        """Remove it, with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _place() -> Path:
    """The folder for temporary files, or /tmp where a socket's path would not fit into that."""
    place = Path(tempfile.gettempdir())
    return place if len(os.fsencode(place)) <= LONGEST else Path("/tmp")  # noqa: S108 (mkdtemp makes it this user's)


def sweep() -> None:
    """Remove this user's folders whose server was killed; what cannot be removed stays."""
    for folder in _place().glob(f"{PREFIX}*"):
        try:
            if folder.lstat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        except OSError:  # it lives, or is no such folder
            continue
