"""Blobs: the versions' files that this server has at hand, each checked against its digest, within a bound.

It knows a folder, digests and whoever gives the bytes of one; it does not know tasks. Several processes share it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.errors import StorageFailed
from service.store.objects import Missing
from service.store.staging import disk_errors, left_by

KEPT_CHECKS = 65_536
"""Digests that are known to be right here; beyond it they are checked again."""

Source = Callable[[str], Iterator[bytes]]
"""The bytes of a digest in parts. Raises Missing and more."""


class Blobs:
    """Every method blocks. At most ``max_bytes``, and one file at least."""

    def __init__(self, folder: Path, staging: Path, source: Source, *, max_bytes: int, owner: str = "") -> None:
        self._folder, self._staging, self._source = folder, staging, source
        self._max_bytes, self._prefix = max_bytes, left_by(owner)
        self._checked: dict[str, int] = {}
        self._fetching: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def path(self, digest: str) -> Path:
        """Where the file is, if it is here."""
        return self._folder / digest

    def has(self, digest: str, size: int) -> bool:
        """Whether the whole file is here; its bytes are looked at when it is first asked for by ``bring``."""
        try:
            return self.path(digest).stat().st_size == size
        except OSError:
            return False

    def bring(self, digest: str, size: int) -> bool:
        """Have the file here and right; True if it had to be fetched. Waits for whoever fetches it already.

        Raises StorageFailed where the store has other bytes or none, StoreAway where it does not answer, and what the
        disk raises.
        """
        with self._alone(digest), disk_errors():
            if self.has(digest, size) and self._is_right(digest):
                return False
            self._fetch(digest, size)
            return True

    def keep(self, staged: Path, digest: str) -> None:
        """Take over a file whose digest is known."""
        with disk_errors():
            staged.chmod(0o644)
            staged.replace(self.path(digest))
        self._note(digest)
        self._trim(digest)

    def forget(self, digest: str) -> None:
        """No version has those bytes any more."""
        self._checked.pop(digest, None)
        with suppress(OSError):
            self.path(digest).unlink(missing_ok=True)

    def doubt(self, digest: str) -> None:
        """Look at the bytes again the next time: somebody found them wrong."""
        self._checked.pop(digest, None)

    @contextmanager
    def _alone(self, digest: str) -> Iterator[None]:
        with self._lock:
            lock = self._fetching.setdefault(digest, threading.Lock())
        try:
            with lock:
                yield
        finally:
            with self._lock:
                self._fetching.pop(digest, None)

    def _is_right(self, digest: str) -> bool:
        path = self.path(digest)
        changed = path.stat().st_mtime_ns
        if self._checked.get(digest) == changed:
            return True
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return False
        self._note(digest)
        return True

    def _note(self, digest: str) -> None:
        if len(self._checked) >= KEPT_CHECKS:
            self._checked.clear()
        with suppress(OSError):
            self._checked[digest] = self.path(digest).stat().st_mtime_ns

    def _fetch(self, digest: str, size: int) -> None:
        handle, name = tempfile.mkstemp(dir=self._staging, prefix=self._prefix, suffix=".blob")
        temporary, hashed, count = Path(name), hashlib.sha256(), 0
        try:
            with os.fdopen(handle, "wb") as file:
                for part in self._source(digest):
                    count += len(part)
                    if count > size:  # whatever it is, it is not what was asked for
                        break
                    hashed.update(part)
                    file.write(part)
            if hashed.hexdigest() != digest:
                raise StorageFailed(
                    "the store has other bytes than this version's digest says; `adaptserve store check` tells of all "
                    "such, and uploading the file again mends it", digest=digest,
                )  # fmt: skip
            temporary.chmod(0o644)
            temporary.replace(self.path(digest))
        except Missing as error:
            raise StorageFailed("the store has lost this version's file; upload it again", digest=digest) from error
        finally:
            temporary.unlink(missing_ok=True)
        self._note(digest)
        self._trim(digest)

    def _trim(self, kept: str) -> None:
        """Remove what was not read for longest, until the rest is within the bound."""
        found = []
        with suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    stat = entry.stat()
                    found.append((entry.name == kept, max(stat.st_atime, stat.st_mtime), stat.st_size, entry.path))
        total = sum(size for _, _, size, _ in found)
        for is_kept, _, size, path in sorted(found):
            if total <= self._max_bytes or is_kept:
                return
            with suppress(OSError):
                Path(path).unlink()
            total -= size
