"""A batch's body off the wire: a form, a zip or a tar, told apart by its first bytes, onto the spool as it comes in.

What an archive holds is for ``service.web.archives``; here are forms, gzip and the choice between them.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from python_multipart.multipart import parse_options_header

from adapters.errors import BrokenMedia, UnsupportedMedia
from service.errors import BadRequest, BodyTooLarge
from service.pool import Pool
from service.settings import Settings
from service.web.archives import BLOCK, Entry, bad, check_count, is_tar, of_tar, of_zip, text_of, too_large
from service.web.caller import Caller
from service.web.routes.forms import MultipartForm
from service.web.spool import Spool
from service.web.uploads import BUFFER_BYTES

if TYPE_CHECKING:
    from zlib import _Decompress

FORM, ZIP, TAR, GZIP = "multipart/form-data", "application/zip", "application/x-tar", "application/gzip"
ALONE = "application/octet-stream"
"""One picture or clip, as it is."""
TYPES = {
    ZIP: ZIP, "application/x-zip-compressed": ZIP, "application/x-zip": ZIP, TAR: TAR, "application/tar": TAR,
    GZIP: GZIP, "application/x-gzip": GZIP, "application/x-gtar": TAR, "application/x-compressed-tar": GZIP,
    "application/x-tgz": GZIP, FORM: FORM,
}  # fmt: skip
"""What clients call them; heeded where the first bytes do not tell."""
OTHERS = {
    b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar",
}  # fmt: skip
_BOUNDARY = re.compile(rb"--([0-9A-Za-z'()+_,\-./:=? ]{1,70})\r\nContent-", re.IGNORECASE)
PIECE, STEP = 64 * 1024, 1024 * 1024
"""Bytes that are unpacked at once, and bytes that they may come to at once."""
OTHER_PARTS = 16
"""Parts of a form that are no files: a browser sends one for each input that was left empty."""


class BatchBody:
    """A sink for ``bodies.receive``; ``entries`` tells what came, in order."""

    def __init__(self, content_type: str | None, parameters: Collection[str], spool: Spool, pool: Pool,
                 settings: Settings, *, alone: bool = False) -> None:  # fmt: skip
        """``parameters``: names that belong into the address, and may not be fields of a form.

        ``alone``: what is none of these is one picture or clip, which may be given its ``name`` once it is there.
        """
        self._alone, self.name = alone, ""
        kind, self._options = parse_options_header(content_type)
        self._declared = TYPES.get(kind.decode("latin-1"))
        self._spool, self._pool, self._settings = spool, pool, settings
        self._parameters = parameters
        self._head, self._kind = bytearray(), ""
        self._buffer = bytearray()
        self._form: _ManyFiles | None = None
        self._gzip: _Inflating | None = None

    async def write(self, chunk: bytes) -> None:
        """Raises UnsupportedMedia, BadRequest, BodyTooLarge, and what the disk raises."""
        if not self._kind:
            self._head += chunk
            if len(self._head) < BLOCK:
                return
            chunk = self._begin()
        self._take(chunk)
        if len(self._buffer) >= BUFFER_BYTES:
            await self._flush()

    async def entries(self, caller: Caller) -> list[Entry]:
        """The files of a body that has come whole. Raises the same, and BrokenMedia where it cannot be opened."""
        if not self._kind and self._head:
            self._take(self._begin())
        await self._flush()
        found: list[Entry] = []
        if self._kind:
            (found,) = await caller.wait([self._pool.submit(self._read)], "reading the body")
        if not found:
            raise BadRequest("the batch has no picture or clip; send one at least", field="body")
        return found

    def _begin(self) -> bytes:
        """Decide what it is; its first bytes."""
        head = bytes(self._head)
        self._head.clear()
        self._kind = self._told(head)
        if self._kind == FORM:
            boundary = self._options.get(b"boundary")
            if boundary is None and (first := _BOUNDARY.match(head)) is not None:
                boundary = first[1]
            self._form = _ManyFiles(boundary, self._parameters, self._spool, self._buffer, self._settings)
        elif self._kind == GZIP:
            self._gzip = _Inflating(self._spool, self._settings)
        return head

    def _told(self, head: bytes) -> str:
        if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            return ZIP
        if head[:2] == b"\x1f\x8b":
            return GZIP
        if self._declared == FORM or _BOUNDARY.match(head):
            return FORM
        if is_tar(head):
            return TAR
        other = next((name for magic, name in OTHERS.items() if head.startswith(magic)), None)
        if other is not None:
            raise UnsupportedMedia(
                f"the body is packed as {other}, which is not read here; send a form with many files, a zip, a tar "
                "or a tar packed by gzip",
                field="body",
            )
        if self._declared in (ZIP, TAR):  # whoever opens it has the words
            return self._declared
        if self._alone:
            return ALONE
        raise UnsupportedMedia(
            "the body is no form, no zip and no tar; a batch is one of these, and one picture alone goes to /predict",
            field="body",
        )

    def _take(self, chunk: bytes) -> None:
        if self._form is not None:
            self._form.feed(chunk)
        else:
            self._buffer += chunk

    async def _flush(self) -> None:
        whole = bytes(self._buffer)
        self._buffer.clear()
        if whole:
            store = self._spool.write if self._gzip is None else self._gzip.write
            await asyncio.wrap_future(self._pool.submit(partial(store, whole)))

    def _read(self) -> list[Entry]:
        if self._form is not None:
            self._form.check_ended()
            return self._form.entries
        if self._kind == ZIP:
            return of_zip(self._spool, self._settings)
        if self._kind == ALONE:
            size = self._spool.size
            if size > self._settings.max_body_bytes:
                return [bad(self.name, too_large(size, self._settings))]
            return [Entry(self.name, partial(self._spool.read, 0, size))]
        if self._gzip is not None and not is_tar(self._spool.read(0, BLOCK)):
            raise UnsupportedMedia(
                "the body is packed by gzip, and what is in it is no tar"
                + ("" if self._gzip.whole else ", or is damaged") + "; send a tar, packed or not, or a zip",
                field="body",
            )  # fmt: skip
        found = of_tar(self._spool, self._settings)
        if self._gzip is not None and not self._gzip.whole and found and (found[-1].name or not found[-1].wrong):
            wrong = BrokenMedia("the gzip around the tar is damaged or ends early; check that the whole file was sent")
            found.append(bad("", wrong))
        return found


class _ManyFiles(MultipartForm):
    """The files of a form, under any field names, side by side on the spool."""

    def __init__(
        self, boundary: bytes | None, parameters: Collection[str], spool: Spool, buffer: bytearray, settings: Settings
    ) -> None:
        super().__init__(boundary)
        self.entries: list[Entry] = []
        self._parameters, self._spool, self._buffer, self._settings = parameters, spool, buffer, settings
        self._put = self._size = self._parts = 0
        self._name, self._empty = "", False

    def begin(self, name: str, filename: str | None) -> None:
        if filename is None and name in self._parameters:
            raise BadRequest(f"'{name[:64]}' is a field of the form; parameters go into the address, as ?top_k=3",
                             field=name[:64])  # fmt: skip
        self._parts += 1
        check_count(max(len(self.entries) + 1, self._parts - OTHER_PARTS), self._settings)
        self._name, self._empty, self._size = text_of(filename or name), filename == "", 0

    def data(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= self._settings.max_body_bytes:
            self._buffer += piece
            self._put += len(piece)

    def end(self) -> None:
        size, limit = self._size, self._settings.max_body_bytes
        if self._empty and not size:  # an input of a browser's form that was left empty
            return
        if size > limit:
            self.entries.append(bad(self._name, too_large(size, self._settings)))
        else:
            self.entries.append(Entry(self._name, partial(self._spool.read, self._put - size, size)))


class _Inflating:
    """Bytes packed by gzip, onto the spool as they are; ``whole`` once the end of what came was an end."""

    def __init__(self, spool: Spool, settings: Settings) -> None:
        self._spool, self._limit = spool, settings.max_batch_bytes
        self._stream = zlib.decompressobj(31)
        self._begun = self._over = self._damaged = False

    @property
    def whole(self) -> bool:
        return not self._damaged and not self._begun

    def write(self, data: bytes) -> None:
        """What cannot be unpacked is left, with all that follows. Raises BodyTooLarge; blocks."""
        while not self._over and not self._damaged:
            if not self._begun:
                data = data.lstrip(b"\0")  # tapes were filled up with them
                if not data:
                    return
                if data[:1] != b"\x1f":
                    self._over = True  # what stands after the end is nobody's
                    return
                self._begun = True
            before, piece = self._stream.copy(), data[:PIECE]
            try:
                found = self._stream.decompress(piece, STEP)
            except zlib.error:
                self._damaged = True
                self._keep(_up_to_the_damage(before, piece))
                return
            self._keep(found)
            data = self._stream.unconsumed_tail + data[PIECE:]
            if self._stream.eof:
                data = self._stream.unused_data + data
                self._stream, self._begun = zlib.decompressobj(31), False
            elif not data and len(found) < STEP:
                return

    def _keep(self, found: bytes) -> None:
        if self._spool.size + len(found) > self._limit:
            raise BodyTooLarge(
                f"the body has over {self._limit} bytes once it is unpacked, the limit (max_batch_bytes); split it",
                field="max_batch_bytes", limit=self._limit,
            )  # fmt: skip
        self._spool.write(found)


def _up_to_the_damage(stream: _Decompress, piece: bytes) -> bytes:
    """What can be unpacked of the piece: the library gives nothing at all of a call in which it finds damage."""
    found = bytearray()
    with suppress(zlib.error):
        for place in range(len(piece)):
            found += stream.decompress(piece[place : place + 1])
    return bytes(found)
