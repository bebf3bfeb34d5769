"""An S3 server for tests: what object stores promise, in memory, and the ways in which they fail.

ETags, conditional puts and gets, pages of lists, deletes of many; over HTTP/1.1 on the loopback. Signatures are not
checked. `python -m tests.s3 PORT` is one in a process of its own.
"""

from __future__ import annotations

import hashlib
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
PAGE = 1000

Fault = Literal["cut", "lost", "500", "wrong", "slow", "ignore"]
"""``cut``: the connection ends before anything was done; ``lost``: it was done, but the answer never comes; ``500``;
``wrong``: other bytes than were put; ``slow``: after ``SLOW_S``; ``ignore``: a put's condition is not looked at."""
SLOW_S = 0.3
Choose = Callable[[str, str], Fault | None]
"""Of a method and a key."""


@dataclass(frozen=True)
class Kept:
    """An object."""

    content: bytes
    tag: str
    modified: float


class Bucket:
    """What is stored, who asked how often, and what goes wrong."""

    def __init__(self) -> None:
        self.objects: dict[str, Kept] = {}
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.fault: Choose = lambda method, key: None
        self.away_until = 0.0
        self._puts = 0

    def put(self, key: str, content: bytes, *, age_s: float = 0.0) -> str:
        """As if it had been put so long ago; the ETag. For the lock's holder, or while nobody asks."""
        self._puts += 1
        tag = f'"{hashlib.md5(content).hexdigest()}-{self._puts}"'
        self.objects[key] = Kept(content, tag, time.time() - age_s)
        return tag

    def age(self, key: str, seconds: float) -> None:
        kept = self.objects[key]
        self.objects[key] = Kept(kept.content, kept.tag, kept.modified - seconds)

    def away(self, seconds: float) -> None:
        """Nobody is answered from now on, for so long."""
        self.away_until = time.monotonic() + seconds

    def keys(self, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(key for key in self.objects if key.startswith(prefix))


class _Cut(Exception):
    """The connection ends here."""


class Handler(BaseHTTPRequestHandler):
    """One connection; path-style addresses of one bucket."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    bucket: Bucket

    def log_message(self, format: str, *args: object) -> None: ...

    def _begin(self) -> tuple[str, dict[str, str], bytes, Fault | None]:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        key = unquote(url.path).removeprefix(f"/{BUCKET}").lstrip("/")
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        bucket = self.bucket
        with bucket.lock:
            bucket.asked[f"LIST {query.get('prefix', '')}" if "list-type" in query else f"{self.command} {key}"] += 1
        fault = "cut" if time.monotonic() < bucket.away_until else bucket.fault(self.command, key)
        if fault == "cut":
            raise _Cut
        if fault == "slow":
            time.sleep(SLOW_S)
        return key, query, body, fault

    def _answer(self, status: int, content: bytes = b"", headers: Mapping[str, str] = {}) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _fail(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self._answer(status, text.encode(), {"Content-Type": "application/xml"})

    def _handle(self) -> None:
        try:
            key, query, body, fault = self._begin()
            if fault == "500":
                self._fail(500, "InternalError")
                return
            if fault == "lost":
                self._answer = lambda *_, **__: (_ for _ in ()).throw(_Cut())  # type: ignore[assignment]
            method: Callable[..., None] = getattr(self, f"_{self.command.lower()}")
            method(key, query, body, fault)
        except _Cut:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _handle  # noqa: N815

    def _get(self, key: str, query: dict[str, str], body: bytes, fault: Fault | None) -> None:
        if "list-type" in query:
            self._list(query)
            return
        kept = self.bucket.objects.get(key)
        if kept is None:
            self._fail(404, "NoSuchKey")
            return
        headers = {"ETag": kept.tag, "Last-Modified": formatdate(kept.modified, usegmt=True)}
        if self.headers.get("if-none-match") == kept.tag:
            self._answer(304, b"", headers)
            return
        content = kept.content
        if fault == "wrong":
            content = bytes([content[0] ^ 1]) + content[1:]
        if self.command == "HEAD":
            headers["Content-Length"] = str(len(content))
        self._answer(200, content, headers)

    _head = _get

    def _put(self, key: str, query: dict[str, str], body: bytes, fault: Fault | None) -> None:
        bucket, headers = self.bucket, self.headers
        with bucket.lock:
            kept = bucket.objects.get(key)
            exists, other = headers.get("if-none-match"), headers.get("if-match")
            if fault != "ignore" and ((exists and kept) or (other and (not kept or kept.tag != other))):
                self._fail(412, "PreconditionFailed")
                return
            tag = bucket.put(key, body)
        self._answer(200, b"", {"ETag": tag})

    def _delete(self, key: str, query: dict[str, str], body: bytes, fault: Fault | None) -> None:
        with self.bucket.lock:
            self.bucket.objects.pop(key, None)
        self._answer(204)

    def _post(self, key: str, query: dict[str, str], body: bytes, fault: Fault | None) -> None:
        if key == "-/away":  # for whoever has this server in another process
            self.bucket.away(float(query["seconds"]))
        elif key == "-/asked":
            self._answer(200, repr(dict(self.bucket.asked)).encode())
            return
        elif "delete" in query:
            keys = re.findall(r"<Key>([^<]*)</Key>", body.decode())
            with self.bucket.lock:
                for each in keys:
                    self.bucket.objects.pop(each, None)
            done = "".join(f"<Deleted><Key>{each}</Key></Deleted>" for each in keys)
            self._answer(200, f"<?xml version='1.0'?><DeleteResult>{done}</DeleteResult>".encode())
            return
        self._answer(200)

    def _list(self, query: dict[str, str]) -> None:
        prefix = query.get("prefix", "")
        after = query.get("continuation-token") or query.get("start-after") or ""
        found = [key for key in self.bucket.keys(prefix) if key > after]
        page = found[: min(PAGE, int(query.get("max-keys", PAGE)))]
        more = len(page) < len(found)
        parts = ["<?xml version='1.0'?><ListBucketResult><Name>bucket</Name>"]
        parts.append(f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>")
        if more:
            parts.append(f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>")
        for key in page:
            kept = self.bucket.objects.get(key)
            if kept is not None:
                when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(kept.modified))
                parts.append(
                    f"<Contents><Key>{escape(key)}</Key><LastModified>{when}</LastModified><ETag>{escape(kept.tag)}"
                    f"</ETag><Size>{len(kept.content)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
                )
        self._answer(200, "".join([*parts, "</ListBucketResult>"]).encode(), {"Content-Type": "application/xml"})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


def options(url: str) -> dict[str, str]:
    """The environment of whoever is to use it, as for any other S3 server."""
    return {
        "AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
    }  # fmt: skip


@contextmanager
def s3(bucket: Bucket | None = None) -> Iterator[tuple[Bucket, str]]:
    """One in this process: its bucket, and its address."""
    kept = bucket or Bucket()
    with _Server(("127.0.0.1", 0), type("_Handler", (Handler,), {"bucket": kept})) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield kept, f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    with _Server(("127.0.0.1", int(sys.argv[1])), type("_Handler", (Handler,), {"bucket": Bucket()})) as alone:
        print(alone.server_address[1], flush=True)
        alone.serve_forever()
