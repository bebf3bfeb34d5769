"""The download endpoint: a version's file, whole or a part of it, or word that the caller has it already.

It does not know files or folders; the catalogue does.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.errors import BadRange
from service.web.addresses import HEAD
from service.web.routes.common import Number, TaskName, TheCatalogue, problems

router = APIRouter(tags=["tasks"])

CHUNK = 256 * 1024
FILE = "application/octet-stream"

_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?("[^"]*")')


@router.get(
    "/v1/tasks/{task}/versions/{version}/adapter",
    response_class=StreamingResponse,
    responses=problems(404, 416, 503)
    | {
        200: {"content": {FILE: {}}},
        206: {"description": "The bytes that Range asks for.", "content": {FILE: {}}},
        304: {"description": "You have it."},
    },
)
async def download(request: Request, catalogue: TheCatalogue, task: TaskName, version: Number) -> Response:
    """The file as it was uploaded, or one range of it; its digest is the ETag."""
    info = catalogue.repository.version(task, version)
    # Opened before the answer starts, so a version deleted meanwhile is still sent whole.
    name = f"{task}-{version}.safetensors"
    kept = KeptFile(
        info.digest, info.size, name, lambda: catalogue.open(task, version),
        bring=lambda: catalogue.repository.bring(info),
    )  # fmt: skip
    return await kept.answer(request)


@dataclass(frozen=True)
class KeptFile:
    """A file that is never written again: sent whole, or a range of it, or word that the caller has it already."""

    digest: str
    size: int
    name: str
    open: Callable[[], BinaryIO]
    media_type: str = FILE
    bring: Callable[[], Awaitable[object]] | None = None
    """Has the file at hand, if that takes more than to open it."""

    async def answer(self, request: Request) -> Response:
        """Raises BadRange, and what ``open`` raises."""
        tag, asked = f'"{self.digest}"', request.headers
        headers = {"ETag": tag, "Cache-Control": "no-cache", "Accept-Ranges": "bytes"}
        if matches(", ".join(asked.getlist("if-none-match")), tag):
            return Response(status_code=304, headers=headers)
        headers["Content-Disposition"] = f'attachment; filename="{self.name}"'
        headers["X-Content-Type-Options"] = "nosniff"
        start, end, status = 0, self.size, 200
        if request.scope["state"].get(HEAD):
            headers["Content-Length"] = str(self.size)
            return Response(headers=headers, media_type=self.media_type)
        if "range" in asked and asked.get("if-range", tag).strip() == tag:  # by a strong tag alone: no date is told
            part = byte_range(asked["range"], self.size)
            if part is not None:
                start, end = part
                status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{self.size}"
        if self.bring is not None:
            await self.bring()
        file = await asyncio.to_thread(self.open)
        headers["Content-Length"] = str(end - start)
        return _Download(file, start, end, status, headers, self.media_type)


def matches(header: str, tag: str) -> bool:
    """True when an ``If-None-Match`` names the tag, weakly or not, or is ``*``."""
    return header.strip() == "*" or tag in _TAG.findall(header)


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """Where the range that ``Range`` asks for begins, and where it ends, exclusive.

    None, and the whole is sent, for several ranges, for other units and for what cannot be read, as HTTP has it. Raises
    BadRange when there is no byte in it.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, end = max(0, size - int(match[2])), size
    else:
        start, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    if start >= size:
        raise BadRange(f"the file has {size} bytes, and none of them is in {header[:80]!r}", size=size)
    return start, end


class _Download(StreamingResponse):
    """The bytes from ``start`` to ``end`` of a file; however the answer ends, the file is closed with it."""

    def __init__(
        self, file: BinaryIO, start: int, end: int, status: int, headers: dict[str, str], media_type: str
    ) -> None:
        self._file = file
        super().__init__(_chunks(file, start, end), status, headers, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)


def _chunks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (chunk := file.read(min(CHUNK, end - start))):
        start += len(chunk)
        yield chunk
