"""A source's file, brought here: bounded in bytes and time, from whatever kind of place.

What a place says goes on as a sentence without its answers' bodies, addresses with secrets, or headers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from adapters.errors import AdapterTooLarge
from service.errors import SourceFailed, StoreAway, StoreRefused
from service.settings import Settings
from service.source_address import OBJECTS, SourceAddress
from service.store.objects import Missing, open_objects
from service.store.staging import Staging

CHUNK: Final = 1024 * 1024
WORD_S: Final = 10.0
"""Of one answer's next bytes, where there is so much time."""
MOST_REDIRECTS: Final = 5


@dataclass(frozen=True)
class FetchBounds:
    """Of one fetch: bytes of the file, seconds in all, and when they are over on the monotonic clock."""

    max_bytes: int
    seconds: float
    end: float

    @property
    def word_s(self) -> float:
        """How long one answer's next bytes may take."""
        return min(WORD_S, self.seconds)

    def check_time(self) -> None:
        """Raises SourceFailed once they are over."""
        if time.monotonic() > self.end:
            raise SourceFailed(f"the file did not come within {self.seconds:g} s (source_timeout_s)")

    def check_size(self, size: int) -> None:
        """Whether a file of that size may come. Raises AdapterTooLarge."""
        if size > self.max_bytes:
            raise AdapterTooLarge(
                f"the file has {size} bytes, the limit is {self.max_bytes} (max_adapter_bytes)",
                field="max_adapter_bytes", limit=self.max_bytes, value=size,
            )  # fmt: skip


class Fetcher:
    """``fetch`` blocks. ``folder`` is where paths begin."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._folder, self._seconds, self._limit = folder, settings.source_timeout_s, settings.max_adapter_bytes

    def fetch(self, source: SourceAddress, staging: Staging) -> None:
        """Write the source's file. Raises SourceFailed, AdapterTooLarge or a storage error."""
        bounds = FetchBounds(self._limit, self._seconds, time.monotonic() + self._seconds)
        for chunk in self._parts(source, bounds):
            bounds.check_time()
            staging.write(chunk)

    def _parts(self, source: SourceAddress, bounds: FetchBounds) -> Iterator[bytes]:
        if not source.scheme:
            return self._path(source)
        if source.scheme in OBJECTS:
            return _object(source, bounds)
        if source.scheme == "https":
            return _https(source, bounds)
        if source.scheme == "hf":
            from service.sources.hub import hub_file  # a third of a second

            return hub_file(source, bounds)
        from service.sources.registry import registry_file

        return registry_file(source, bounds)

    def _path(self, source: SourceAddress) -> Iterator[bytes]:
        path = self._folder / source.path
        try:
            if not path.resolve().is_relative_to(self._folder.resolve()):
                raise SourceFailed(
                    f"{source.path} leads out of the folder of the tasks file; put the file itself there"
                )
            if path.exists() and not path.is_file():
                raise SourceFailed(f"{source.path} is no file")
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
        except OSError as error:
            raise SourceFailed(f"{source.path} cannot be read ({error.strerror})") from error


def _object(source: SourceAddress, bounds: FetchBounds) -> Iterator[bytes]:
    folder, _, name = source.path.rpartition("/")
    where = f"{source.scheme}://{source.host}/{folder}".rstrip("/")
    try:
        objects = open_objects(where, timeout_s=bounds.word_s, retries=2)
        bounds.check_size(objects.head(name).size)
        yield from objects.stream(name)
    except Missing as error:
        raise SourceFailed(f"there is no object {source.path} in {source.scheme}://{source.host}") from error
    except (StoreAway, StoreRefused) as error:
        raise SourceFailed(error.message) from error


def _https(source: SourceAddress, bounds: FetchBounds) -> Iterator[bytes]:
    with said("the host"), client(bounds) as http:
        yield from stream(http, source.text, {}, bounds, host=source.host)


@contextmanager
def client(bounds: FetchBounds) -> Iterator[httpx.Client]:
    """For one fetch. It heeds proxies and certificates of the environment, and sends no one's password."""
    with httpx.Client(timeout=bounds.word_s, follow_redirects=False, trust_env=True) as made:
        yield made


def stream(
    http: httpx.Client, url: str, headers: dict[str, str], bounds: FetchBounds, host: str = ""
) -> Iterator[bytes]:
    """The body at an address, in parts. With ``host`` redirects stay there; ``headers`` never go to another one."""
    asked = urlsplit(url)
    for _ in range(MOST_REDIRECTS + 1):
        with http.stream("GET", url, headers=headers | {"Accept-Encoding": "identity"}, auth=no_netrc) as answer:
            if not answer.has_redirect_location:
                check_status(answer)
                length = answer.headers.get("content-length", "")
                bounds.check_size(int(length) if length.isdecimal() else 0)
                yield from answer.iter_raw()  # as it comes, so that the time is looked at
                return
            to = urlsplit(str(answer.next_request.url if answer.next_request else ""))
        if asked.scheme == "https" != to.scheme or to.scheme not in ("http", "https"):
            raise SourceFailed("it redirects to an address without encryption; that is not followed")
        if to.netloc != urlsplit(url).netloc:
            if host:
                raise SourceFailed(f"it redirects to another host, {to.hostname}; name that one in the tasks file")
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        url = to.geturl()
    raise SourceFailed(f"it redirects more than {MOST_REDIRECTS} times")


def no_netrc(request: httpx.Request) -> httpx.Request:
    """Instead of what httpx finds in ~/.netrc, which is for people."""
    return request


def check_status(answer: httpx.Response) -> None:
    """Raises SourceFailed for all but 200; the body is nobody's business."""
    words = {
        401: "it asks for credentials (401)", 403: "it refuses (403)", 404: "there is nothing at that address (404)",
        429: "it is asked too often (429)",
    }  # fmt: skip
    if answer.status_code != 200:
        raise SourceFailed(words.get(answer.status_code, f"it answers with status {answer.status_code}"))


@contextmanager
def said(who: str) -> Iterator[None]:
    """What the network does, as ours."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise SourceFailed(f"{who} does not answer in time") from error
    except httpx.ConnectError as error:
        why = "its certificate is not trusted" if "CERTIFICATE" in str(error) else "no connection"
        raise SourceFailed(f"{who} cannot be reached ({why})") from error
    except httpx.HTTPError as error:
        raise SourceFailed(f"{who} broke off the answer ({type(error).__name__})") from error
    except httpx.InvalidURL as error:
        raise SourceFailed(f"{who} gives an address that is none") from error
