"""A client on a raw socket: it sends what a test says, in the pieces it says, and reads one answer after the other."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field
from typing import Any, Self

WAIT = 20.0


@dataclass
class Answer:
    """One HTTP answer off the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    def problem(self, status: int) -> dict[str, Any]:
        """The problem document, which must have this status."""
        assert self.status == status, self.body
        assert self.headers["content-type"] == "application/problem+json"
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == status
        assert document["request_id"] == self.headers["x-request-id"]
        return document


@dataclass
class Wire:
    """An open connection."""

    connection: socket.socket
    _buffer: bytes = field(default=b"", init=False)

    @classmethod
    def to(cls, url: str, receive_buffer: int | None = None) -> Wire:
        host, port = url.removeprefix("http://").split(":")
        made = socket.socket()
        made.settimeout(WAIT)
        if receive_buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.connect((host, int(port)))
        return cls(made)

    def send(self, *pieces: bytes) -> None:
        """Each piece in a segment of its own, as far as the kernel lets one say so."""
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            self.connection.sendall(piece)

    def answer(self) -> Answer:
        """The next answer; it must have a Content-Length."""
        head = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        size = int(headers.get("content-length", 0))
        while len(self._buffer) < size:
            self._more()
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return Answer(int(head[0].split()[1]), headers, body)

    def ended(self) -> bool:
        """Wait for the end; whether it is one, and not a reset nor further bytes."""
        try:
            return self._buffer == b"" and self.connection.recv(1) == b""
        except ConnectionResetError:
            return False

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._more()
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def _more(self) -> None:
        chunk = self.connection.recv(65536)
        if not chunk:
            raise EOFError(f"the server closed after {self._buffer!r}")
        self._buffer += chunk

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def post(path: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """A POST with a Content-Length: that of the body, or another that is claimed."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(path: str, *chunks: bytes, headers: tuple[str, ...] = (), end: bytes = b"0\r\n\r\n") -> bytes:
    """A POST whose body comes in chunks."""
    head = "\r\n".join(
        [f"POST {path} HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", *headers, "", ""]
    ).encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()
