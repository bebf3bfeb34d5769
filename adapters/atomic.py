"""Writing a file whole or not at all: a temporary file, flushed to the disk, then renamed over the old one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(
    path: Path, *, within: Path | None = None, prefix: str | None = None, suffix: str = ".part", mode: int = 0o600
) -> Iterator[Path]:
    """A temporary file to write; it takes the place of ``path`` when the block ends, and goes away if that raises.

    It lies in ``within``, a folder on the same disk, else beside ``path``, hidden. A reader sees the old file or the
    new one. The rename itself is durable once the folder is synced too. Raises OSError.
    """
    begin = f".{path.name}." if prefix is None else prefix
    handle, name = tempfile.mkstemp(dir=within or path.parent, prefix=begin, suffix=suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:  # by its name: who wrote may have replaced it
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
