"""Bodies of other servers' protocols -> the files in them: gzip, JSON and base64, held to bounds before they are read.

Pure: bytes in, bytes out, the refusals ours. It knows no protocol.
"""

from __future__ import annotations

import binascii
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from adapters.errors import MediaTooLarge, UnsupportedMedia
from service.errors import BadRequest, BodyTooLarge
from service.settings import Settings
from service.web.routes.parameters import unknown
from service.web.routes.predict import TOP_K

T = TypeVar("T")

VALUES_PER_ITEM, OTHER_VALUES = 16, 256
"""Values that a JSON body may have: each takes many times its bytes in memory, and files as base64 need few."""
MAX_NUMBER = 2**53
STEP = 4 * 256 * 1024
"""Bytes of text that are worked on at once: each step holds the interpreter, which other requests want as well."""
_ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""What zlib calls them. Deflate is zlib's form, as HTTP has it and clients send it; some send it without the frame."""
_BARE = -15
_MAYBE_BASE64 = re.compile(rb"\s*+(?:data:[^,]{0,256}+,)?+[A-Za-z0-9+/_\-\s]++=*+\s*+")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_SPACE = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one request may hold; the fields are the settings that say so."""

    max_items_per_request: int
    max_body_bytes: int
    max_request_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> Bounds:
        return cls(settings.max_items_per_request, settings.max_body_bytes, settings.max_request_bytes)

    def check_items(self, count: int) -> None:
        """Raises BadRequest for none, BodyTooLarge for too many."""
        if count < 1:
            raise BadRequest("the request has no picture or clip; send one at least", field="body")
        if count > self.max_items_per_request:
            raise BodyTooLarge(
                f"the request has {count} pictures or clips, the limit is {self.max_items_per_request} "
                "(max_items_per_request); split it",
                field="max_items_per_request", limit=self.max_items_per_request, value=count,
            )  # fmt: skip

    def check_size(self, place: str, size: int) -> None:
        """Raises MediaTooLarge for a file of more bytes than a picture or clip may have."""
        if size > self.max_body_bytes:
            raise MediaTooLarge(
                f"{place} has {size} bytes, the limit is {self.max_body_bytes} (max_body_bytes); send a smaller file",
                field="max_body_bytes", limit=self.max_body_bytes, value=size,
            )  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """What a body asks: files, how many labels of each, how scores are made (None: as the task has it), and by when."""

    files: Sequence[bytes]
    top_k: int = TOP_K
    score: str | None = None
    seconds: float | None = None


def inflated(body: bytes, encoding: str | None, bounds: Bounds) -> bytes:
    """The body without its Content-Encoding. Raises UnsupportedMedia, BadRequest or BodyTooLarge."""
    name = (encoding or "").strip().lower()
    if name in ("", "identity"):
        return body
    if name not in _ENCODINGS:
        raise UnsupportedMedia(
            f"header Content-Encoding: '{name[:40]}' is not read here; send gzip, deflate or nothing",
            field="Content-Encoding", expected=["gzip", "deflate", "identity"], got=name[:40],
        )  # fmt: skip
    bits = _ENCODINGS[name]
    if name == "deflate" and not _is_zlib(body):
        bits = _BARE
    limit, stream = bounds.max_request_bytes, zlib.decompressobj(bits)
    try:
        whole = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise BadRequest(f"the body is not {name}, as Content-Encoding says it is: {error}", field="body") from error
    if len(whole) > limit:
        raise BodyTooLarge(
            f"the body has over {limit} bytes once it is unpacked, which is the limit (max_request_bytes); split it",
            field="max_request_bytes", limit=limit,
        )  # fmt: skip
    if not stream.eof or stream.unused_data:
        what = "goes on after its end" if stream.eof else "ends before it is whole"
        raise BadRequest(f"the body's {name} {what}; send it again", field="body")
    return whole


def _is_zlib(body: bytes) -> bool:
    return len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0


def json_of(body: bytes, kind: type[T], bounds: Bounds) -> T:
    """The body's JSON as ``kind``, unknown members left out. Raises BadRequest, or BodyTooLarge for too many values."""
    most = OTHER_VALUES + VALUES_PER_ITEM * bounds.max_items_per_request
    if _values(body) > most:
        raise BodyTooLarge(
            f"the JSON has over {most} values, and {bounds.max_items_per_request} pictures (max_items_per_request) "
            "need fewer; send files as base64, not their pixels as numbers",
            field="body", limit=most,
        )  # fmt: skip
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise BadRequest(f"the body is not the JSON that this call takes: {_said(error)}", field="body") from error


def _values(body: bytes) -> int:
    """How many values JSON has at the most: each stands after one of these, but for the first of all."""
    slices = (body[at : at + STEP] for at in range(0, len(body), STEP))
    return sum(part.count(b",") + part.count(b"[") + part.count(b"{") for part in slices)


def _said(error: Exception) -> str:
    text = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    return text[:1].lower() + text[1:200]


def is_json(body: bytes) -> bool:
    """True for a JSON object, by its first byte: no picture and no clip begins with a brace."""
    return body[:64].lstrip()[:1] == b"{"


def from_base64(text: str | bytes, place: str, bounds: Bounds) -> bytes:
    """A file out of base64, of either alphabet, with or without padding, line breaks or ``data:`` before it.

    ``place`` says which for the refusal. Raises MediaTooLarge before anything is decoded, and BadRequest.
    """
    if len(text) * 3 // 4 <= bounds.max_body_bytes:
        with suppress(ValueError):  # binascii's own is one
            return _decoded(text)  # as most send it, without a copy
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    if raw[:8].lower().startswith((b"http://", b"https://", b"file://")):
        raise BadRequest(f"{place} is an address; this server fetches nothing, send the file itself", field="body")
    if raw[:5].lower() == b"data:":
        head, _, raw = raw.partition(b",")
        if not head.lower().endswith(b";base64"):
            raise BadRequest(f"{place} is a data: URL that is not base64; send base64", field="body")
    plain = raw.translate(_URL_SAFE, _SPACE).rstrip(b"=")
    bounds.check_size(place, len(plain) * 3 // 4)
    try:
        return _decoded(plain + b"=" * (-len(plain) % 4))
    except binascii.Error as error:
        wrong = str(error).lower()
        raise BadRequest(f"{place} is not base64: {wrong}; send the file's bytes in base64", field="body") from error


def _decoded(text: str | bytes) -> bytes:
    """Standard base64 with its padding, in steps. Raises ValueError, binascii's own too."""
    parts = [binascii.a2b_base64(text[at : at + STEP], strict_mode=True) for at in range(0, len(text), STEP)]
    if any(len(part) < STEP // 4 * 3 for part in parts[:-1]):
        raise binascii.Error("padding within it")
    return b"".join(parts)


def file_of(data: bytes, place: str, bounds: Bounds) -> bytes:
    """A file that came as it is, or as base64, which some clients send where bytes would do."""
    if _MAYBE_BASE64.fullmatch(data):
        try:
            return from_base64(data, place, bounds)
        except BadRequest:
            pass  # then it is none, and whoever decodes it has the words for what it is
    bounds.check_size(place, len(data))
    return data


def check_known(kind: str, given: Mapping[str, Any], known: Sequence[str], ignored: Collection[str] = ()) -> None:
    """Raises BadRequest for a parameter in a body that nothing here heeds, as one in the address is refused."""
    strange = [name for name in given if name not in known and name not in ignored]
    if strange:
        raise BadRequest(
            unknown(kind, strange, known), field=strange[0][:64], expected=list(known),
            got=[name[:64] for name in strange[:8]],
        )  # fmt: skip


def positive(name: str, value: Any) -> int:
    """A whole number from 1. Raises BadRequest."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_NUMBER:
        raise BadRequest(f"'{name}' must be a whole number from 1; {shown(value)} came", field=name)
    return value


def shown(value: Any) -> str:
    """A value out of JSON for a sentence: numbers may have more digits than Python writes, and lists any length."""
    if isinstance(value, str | float | bool) or (isinstance(value, int) and abs(value) <= MAX_NUMBER):
        return repr(value)[:40]
    if value is None:
        return "null"
    return {int: "a larger number", list: "an array", dict: "an object"}[type(value)]
