"""Objects: what is needed of an object store, whoever runs it: get, put, put only if nothing changed, list, delete.

It knows keys and bytes; it does not know tasks, versions or blobs. ``obstore`` speaks to S3, Google Cloud Storage and
Azure; ``service.store.shared_folder`` is the same on a disk that several machines share.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast
from urllib.parse import urlsplit

from service.errors import StoreAway, StoreRefused

if TYPE_CHECKING:
    from obstore import PutMode, UpdateVersion
    from obstore.store import ObjectStore

SCHEMES: Final = ("s3", "gs", "az", "file")
CHUNK_BYTES: Final = 1024 * 1024
_FIRST_PAUSE, _MOST_PAUSE = timedelta(milliseconds=50), timedelta(milliseconds=500)


class Missing(Exception):
    """There is no object of that key."""


class Preceded(Exception):
    """The object is there already, or is not what it was: somebody else was first."""


class Mark(NamedTuple):
    """What tells one state of an object from the next; stores use one or the other, "" where they do not."""

    tag: str
    version: str = ""


@dataclass(frozen=True)
class Listed:
    """An object in a list; ``modified`` is the store's own clock."""

    key: str
    size: int
    modified: datetime
    mark: Mark


class Objects(Protocol):
    """Every method blocks, and raises StoreAway where the store does not answer, StoreRefused where it says no."""

    def get(self, key: str) -> tuple[bytes, Mark]:
        """Raises Missing."""
        ...

    def stream(self, key: str) -> Iterator[bytes]:
        """The bytes in parts. Raises Missing, before the first or at it."""
        ...

    def head(self, key: str) -> Listed:
        """Raises Missing."""
        ...

    def put(self, key: str, content: bytes | Path) -> Mark:
        """Whole or not at all, over whatever is there."""
        ...

    def create(self, key: str, content: bytes) -> Mark:
        """Raises Preceded where the key has an object."""
        ...

    def replace(self, key: str, content: bytes, mark: Mark) -> Mark:
        """Raises Preceded where the object is not in that state any more."""
        ...

    def list(self, prefix: str) -> Iterator[Listed]:
        """Everything whose key begins with the folder ``prefix``, in the order of the keys."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """What is not there is no error."""
        ...


def is_remote(store: str) -> bool:
    """Whether that names a store that several servers share, and no folder of this machine."""
    return "://" in store


def open_objects(url: str, *, timeout_s: float, retries: int) -> Objects:
    """The store at ``url``; nothing is asked of it yet. Raises StoreRefused for what is no address of one.

    ``timeout_s`` bounds one request; after so many ``retries`` it is over.
    """
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise StoreRefused(
            f"'{url}' is no store that is known here; name a folder, or {', '.join(f'{s}://' for s in SCHEMES)}",
            field="store", got=url,
        )  # fmt: skip
    if scheme == "file":
        from service.store.shared_folder import SharedFolder

        return SharedFolder(Path(urlsplit(url).path))
    return CloudObjects(url, timeout_s=timeout_s, retries=retries)


class CloudObjects:
    """See ``Objects``; by obstore, which takes keys and endpoints from the environment, as the cloud's own tools do."""

    def __init__(self, url: str, *, timeout_s: float, retries: int) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise StoreRefused(
                "stores in a cloud need obstore; install it with: pip install 'adaptserve[store]'", field="store"
            ) from error
        self._url, self._api = url, obstore
        wait = timedelta(seconds=timeout_s)
        try:
            self._store: ObjectStore = from_url(
                url,
                client_options={
                    "timeout": wait, "connect_timeout": min(wait, timedelta(seconds=2)), "allow_http": _says_http(),
                },
                retry_config={
                    "max_retries": retries, "retry_timeout": wait,
                    "backoff": {"init_backoff": _FIRST_PAUSE, "max_backoff": _MOST_PAUSE, "base": 2},
                },
            )  # fmt: skip
        except Exception as error:
            raise StoreRefused(f"the store {url} cannot be used: {_first_line(error)}", field="store") from error

    def get(self, key: str) -> tuple[bytes, Mark]:
        with self._errors():
            found = self._api.get(self._store, key)
            return bytes(found.bytes()), _mark(found.meta)

    def stream(self, key: str) -> Iterator[bytes]:
        with self._errors():
            for part in self._api.get(self._store, key).stream(CHUNK_BYTES):
                yield bytes(part)

    def head(self, key: str) -> Listed:
        with self._errors():
            return _listed(self._api.head(self._store, key))

    def put(self, key: str, content: bytes | Path) -> Mark:
        return self._put(key, content, "overwrite")

    def create(self, key: str, content: bytes) -> Mark:
        return self._put(key, content, "create")

    def replace(self, key: str, content: bytes, mark: Mark) -> Mark:
        known = {"e_tag": mark.tag, "version": mark.version}
        return self._put(key, content, cast("UpdateVersion", {name: value for name, value in known.items() if value}))

    def list(self, prefix: str) -> Iterator[Listed]:
        with self._errors():
            for page in self._api.list(self._store, prefix, chunk_size=1000):
                yield from map(_listed, page)

    def delete(self, keys: Sequence[str]) -> None:
        with self._errors():
            for key in keys:  # one by one: not every S3 server deletes many at once
                try:
                    self._api.delete(self._store, key)
                except FileNotFoundError:
                    continue

    def _put(self, key: str, content: bytes | Path, mode: PutMode) -> Mark:
        with self._errors():
            return _mark(self._api.put(self._store, key, content, mode=mode, use_multipart=False))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What the store raises, as ours. The store's own words go along: they name buckets, and no secret."""
        failures = self._api.exceptions
        try:
            yield
        except FileNotFoundError as error:
            raise Missing from error
        except (failures.AlreadyExistsError, failures.PreconditionError) as error:
            raise Preceded from error
        except (failures.PermissionDeniedError, failures.UnauthenticatedError) as error:
            raise StoreRefused(
                f"the store refuses this server's credentials ({_first_line(error)})", denied=True
            ) from error
        except failures.NotSupportedError as error:
            raise StoreRefused(f"the store cannot do what is needed ({_first_line(error)})") from error
        except failures.BaseError as error:
            raise StoreAway(f"the store does not answer ({_first_line(error)})") from error


def _says_http() -> bool:
    """Whether an address in the environment, for an S3 server of one's own, says that it goes without encryption."""
    names = (name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_")))
    return any(os.environ[name].startswith("http://") for name in names)


def _mark(found: Any) -> Mark:
    return Mark(found.get("e_tag") or "", found.get("version") or "")


def _listed(found: Any) -> Listed:
    return Listed(found["path"], found["size"], found["last_modified"], _mark(found))


def _first_line(error: BaseException) -> str:
    """What it says, without the pages of debugging below it, and without addresses, which are nobody's business."""
    line = str(error).partition("\n")[0].strip()
    return re.sub(r"https?://\S+", "its address", line)[:200]
