"""What an engine and a front end, or either and their supervisor, say to each other over a local socket.

msgpack, each message after its length. It knows no device and no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import msgspec

from adapters.config import Pool
from adapters.errors import AdaptError
from service.errors import KINDS

LENGTH_BYTES = 4
ALIVE = "alive"
"""Told by the supervisor, and told back at once by the event loop of whoever hears it."""
JOB = "job"
"""Told by a front end: there is another training to carry out."""
DECLARED, BRING, BROUGHT = "declared", "bring", "brought"
"""Told between front ends and the process of sources: which tasks have a source, and which of them are pinned (None
asks for it); that one is wanted; that it is here, or why not: its name, and an error as ``Failed`` has it."""
VERSIONS = "versions"
"""Told by a front end: how versions did that a rule names; asked by one: how a task's have done at all front ends."""
RESIDENTS = "residents"
"""Told: the digests that came into slots, and those that left."""


BARE: dict[str, Pool] = {
    "bare backbone": "backbone", "bare backbone, cls": "cls", "bare backbone, avg": "avg",
    "bare backbone, cls+avg": "cls+avg",
}  # fmt: skip
"""Stand for a digest where no adapter is meant, and how the backbone's vector is pooled then; a digest is 64 digits."""


def bare(pool: Pool = "backbone") -> Item:
    """The backbone itself is to answer, with its vector."""
    return Item("", next(digest for digest, known in BARE.items() if known == pool), ())


@dataclass(frozen=True, slots=True)
class Item:
    """A version that is to answer: its task's name, its digest, and the files that hold its bytes, likeliest first."""

    task: str
    digest: str
    files: tuple[str, ...]


class Asker(NamedTuple):
    """Who asks: whose key it is, empty where there are none, and how urgent it is among that holder's own, 0 to 9."""

    holder: str = ""
    priority: int = 5


NOBODY = Asker()


class Hello(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """A front end's first message: which pixels are its own."""

    front_end: int


class Ask(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """One input, by its rows of the front end's pixels, for some versions, each answered by its place in ``items``.

    ``embed``: with their pooled vectors. ``background``: only while nobody else's rows wait.
    """

    number: int
    rows: list[int]
    picture: bytes
    deadline: float
    items: list[Item]
    embed: bool = False
    background: bool = False
    asker: Asker = NOBODY


class Cancel(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Nobody waits for that answer any more."""

    number: int
    item: int


class Call(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Anything else that is asked, by name."""

    number: int
    name: str
    arguments: list[Any]


class Answered(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Logits as float32 bytes, and where the time went, in seconds; the pooled vector likewise, empty if not asked."""

    number: int
    item: int
    logits: bytes
    queue_s: float
    compute_s: float
    batch_rows: int
    vector: bytes = b""


class Failed(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """One of our errors, by its class and what it holds; for an answer that was cancelled no class."""

    number: int
    item: int
    kind: str
    held: dict[str, Any]


class Reply(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """What a call came to."""

    number: int
    value: Any


class Told(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """News that nobody asked for, by name."""

    name: str
    value: Any


Message = Hello | Ask | Cancel | Call | Answered | Failed | Reply | Told
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class Channel(asyncio.Protocol):
    """One end of a connection, on the event loop's thread."""

    def __init__(self, on_message: Callable[[Message], None], on_lost: Callable[[], None]) -> None:
        self._on_message, self._on_lost = on_message, on_lost
        self._transport: asyncio.WriteTransport | None = None
        self._left = bytearray()
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._loop = cast(asyncio.WriteTransport, transport), asyncio.get_running_loop()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        self._left += data
        for message in taken(self._left):
            self._on_message(message)

    def send(self, *messages: Message) -> None:
        """What is sent after the connection was lost is lost too; ``on_lost`` has said so.

        What one turn of the loop sends goes in one piece: each wakes the other process, which then takes the core.
        """
        if self._transport is not None:
            if not self._out:
                self._loop.call_soon(self._flush)
            self._out += map(framed, messages)

    def _flush(self) -> None:
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def close(self) -> None:
        """What was sent before is still delivered."""
        self._flush()
        if self._transport is not None:
            self._transport.close()


def framed(message: Message) -> bytes:
    """A message as it goes over a socket."""
    content = _encode(message)
    return len(content).to_bytes(LENGTH_BYTES, "little") + content


def taken(buffer: bytearray) -> Iterator[Message]:
    """The whole messages at the buffer's beginning, which are removed from it."""
    start = 0
    try:
        while len(buffer) - start >= LENGTH_BYTES:
            end = start + LENGTH_BYTES + int.from_bytes(buffer[start : start + LENGTH_BYTES], "little")
            if len(buffer) < end:
                break
            message = _decode(memoryview(buffer)[start + LENGTH_BYTES : end])
            start = end
            yield message
    finally:
        del buffer[:start]


def failed(number: int, item: int, error: AdaptError) -> Failed:
    """An error on its way; facts that have no place in a message go as text."""
    held = {name: value for name, value in vars(error).items() if not name.startswith("__")}
    return Failed(number, item, type(error).__name__, msgspec.to_builtins(held, enc_hook=str))


def error_of(failure: Failed) -> AdaptError:
    """The error again, of the same class; of the base class where this process does not know it."""
    kind = KINDS.get(failure.kind, AdaptError)
    message = failure.held.get("message", "")
    error = kind.__new__(kind, message)
    error.__dict__.update({"message": message, "facts": {}} | failure.held)
    return error
