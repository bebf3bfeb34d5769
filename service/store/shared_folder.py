"""A shared folder: what an object store does, on a disk that several machines have, such as NFS.

Locks of the disk's own file system, which it frees with their holder, stand for the store's conditions. It knows keys
and bytes alone.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from adapters.atomic import replacing
from service.errors import StoreAway, StoreRefused
from service.store.objects import CHUNK_BYTES, Listed, Mark, Missing, Preceded
from service.store.staging import sync_folder

LOCKS: Final = 64
"""Files to lock, so that changes of different keys seldom wait for each other."""
_HIDDEN: Final = ".adaptserve"


class SharedFolder:
    """See ``service.store.objects.Objects``; a state's mark is the digest of its bytes."""

    def __init__(self, root: Path) -> None:
        self._root, self._hidden = root, root / _HIDDEN

    def get(self, key: str) -> tuple[bytes, Mark]:
        with _errors():
            content = self._path(key).read_bytes()
            return content, _mark(content)

    def stream(self, key: str) -> Iterator[bytes]:
        with _errors(), self._path(key).open("rb") as file:
            while part := file.read(CHUNK_BYTES):
                yield part

    def head(self, key: str) -> Listed:
        with _errors():
            path = self._path(key)
            return _listed(key, path.stat(), Mark(""))

    def put(self, key: str, content: bytes | Path) -> Mark:
        whole = content.read_bytes() if isinstance(content, Path) else content
        with _errors():
            return self._write(key, whole)

    def create(self, key: str, content: bytes) -> Mark:
        with _errors(), self._locked(key):
            if self._path(key).exists():
                raise Preceded
            return self._write(key, content)

    def replace(self, key: str, content: bytes, mark: Mark) -> Mark:
        with _errors(), self._locked(key):
            try:
                found = _mark(self._path(key).read_bytes())
            except FileNotFoundError as error:
                raise Preceded from error
            if found != mark:
                raise Preceded
            return self._write(key, content)

    def list(self, prefix: str) -> Iterator[Listed]:
        with _errors():
            try:
                entries = sorted(os.scandir(self._root / prefix), key=lambda entry: entry.name)
            except FileNotFoundError:
                return
            for entry in entries:
                with suppress(FileNotFoundError):
                    key, stat = f"{prefix}/{entry.name}", entry.stat()
                    content = self._path(key).read_bytes() if prefix == "tasks" else b""
                    yield _listed(key, stat, _mark(content))

    def delete(self, keys: Sequence[str]) -> None:
        with _errors():
            for key in keys:
                self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        """Keys are made here, of digests, numbers and checked names: none leaves the folder."""
        return self._root / key

    def _write(self, key: str, content: bytes) -> Mark:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._hidden.mkdir(exist_ok=True)
        with replacing(path, within=self._hidden, mode=0o644) as temporary:
            temporary.write_bytes(content)
        sync_folder(path.parent)
        return _mark(content)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Be the one of all machines that changes the key: on NFS Linux makes record locks of these, for all to see."""
        self._hidden.mkdir(parents=True, exist_ok=True)
        number = int(hashlib.sha256(key.encode()).hexdigest(), 16) % LOCKS
        with (self._hidden / f"lock-{number}").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # a child that is just being forked has the file open too


@contextmanager
def _errors() -> Iterator[None]:
    """What the disk raises, as a store's errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise Missing from error
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreRefused(f"the store's folder cannot be written ({why})", denied=True) from error
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise StoreRefused(
                f"the store's disk has no locks ({why}), so two servers would overwrite each other's tasks; mount it "
                "with locks, or use an object store"
            ) from error
        raise StoreAway(f"the store's disk fails ({why})") from error


def _mark(content: bytes) -> Mark:
    return Mark(hashlib.sha256(content).hexdigest())


def _listed(key: str, stat: os.stat_result, mark: Mark) -> Listed:
    return Listed(key, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC), mark)
