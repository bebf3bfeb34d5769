"""Errors on their way out: one handler for ours, one for the framework's, each a problem document (RFC 9457).

It does not know what went wrong; ``service.errors`` has the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from adapters.errors import AdaptError
from service.errors import (
    BadRange,
    BadRequest,
    Draining,
    QueueFull,
    RequestTimeout,
    SourceFailed,
    StoreAway,
    Unauthorised,
    problem,
    status_of,
)
from service.web.addresses import allowed

MEDIA_TYPE = "application/problem+json"

_HINTS = {
    404: "there is nothing at this address; the calls are listed under /docs",
    405: "this address does not take that method; the calls are listed under /docs",
}


class ProblemResponse(JSONResponse):
    """A problem document."""

    media_type = MEDIA_TYPE


def respond(error: AdaptError, request_id: str) -> ProblemResponse:
    """One of our errors as a response; the request id is its ``instance``."""
    headers = {}
    if isinstance(error, QueueFull | StoreAway | SourceFailed):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, BadRange):
        headers["Content-Range"] = f"bytes */{error.size}"
    if isinstance(error, Unauthorised):
        headers["WWW-Authenticate"] = 'Bearer realm="adaptserve"'
    if isinstance(error, RequestTimeout | Draining):
        headers["Connection"] = "close"  # what is slow would go on; a server that stops takes nothing more
    return ProblemResponse(document(error, request_id), status_of(error), headers)


def document(error: AdaptError, request_id: str) -> dict[str, object]:
    """The problem document of one of our errors."""
    found = problem(error, f"urn:adaptserve:request:{request_id}")
    return found | {"error": error.message, "request_id": request_id}


def respond_plain(status: int, detail: str, request_id: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A problem that is none of our classes: the framework's own, or an unforeseen one."""
    return ProblemResponse(plain_document(status, detail, request_id), status, dict(headers or {}))


def plain_document(status: int, detail: str, request_id: str) -> dict[str, object]:
    """The problem document of such a one."""
    phrase = HTTPStatus(status).phrase
    return {
        "type": "urn:adaptserve:problem:" + phrase.lower().replace(" ", "-"),
        "title": phrase.capitalize(),
        "status": status,
        "detail": detail,
        "error": detail,
        "instance": f"urn:adaptserve:request:{request_id}",
        "request_id": request_id,
    }


def install(app: FastAPI) -> None:
    """Add the handlers; anything they do not catch is the middleware's business."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, AdaptError)
        return respond(error, request.state.request_id)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return respond(bad_request(error), request.state.request_id)

    async def framework(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        detail, headers = _HINTS.get(error.status_code, str(error.detail)), dict(error.headers or {})
        if error.status_code == 404 and "//" in request.scope["path"]:
            detail = "there is nothing at this address: it has two slashes side by side; leave one out"
        if error.status_code == 405:
            headers["Allow"] = ", ".join(allowed(request.scope))  # of all routes at the address, not the first alone
        return respond_plain(error.status_code, detail, request.state.request_id, headers)

    app.add_exception_handler(AdaptError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, framework)


def bad_request(error: RequestValidationError) -> BadRequest:
    """The first thing wrong with a query or path, as our error."""
    first: dict[str, Any] = dict(error.errors()[0])
    place, *rest = (str(part) for part in first["loc"])
    field = rest[0] if rest else place  # what follows is how we declared it: which type of a union, which item
    came = repr(first.get("input"))[:80]
    if place == "header":
        field = "-".join(word.capitalize() for word in field.split("-"))  # the framework has it in lower case
    where = f"header {field}" if place == "header" else f"{place} parameter '{field}'"
    return BadRequest(f"{where}: {first['msg'].lower()}; {came} came", field=field, got=came)
