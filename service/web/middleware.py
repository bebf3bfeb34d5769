"""Around every request: an id, a count and a log line, and a last resort; plain ASGI: streams stay streams.

It does not know what a route does; routes name their tasks in ``scope["state"]["tasks"]``.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Draining
from service.keys import EVERYBODY
from service.watch import logs
from service.web.problems import respond, respond_plain
from service.web.protocol import REFUSAL, Refusal

log = logging.getLogger(__name__)

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

COUNTED = ("/v1/", "/v2/models", "/v2/repository", "/models", "/predictions")
"""How paths begin whose requests are in the metrics: all but those of who only asks whether the server is there."""

PROGRESS = "progress"
"""In the state of a batch call: what became of it, for its log line."""

OnDone = Callable[[Sequence[str], int, float | None], None]
"""Called with the tasks, the status and the seconds of each request that is counted; without seconds for a batch
call, and for one whose address never came.
"""


class RequestContext:
    """Adds ``X-Request-Id`` (the caller's own where it is sane) and reports the outcome."""

    def __init__(self, app: ASGIApp, on_done: OnDone) -> None:
        self._app, self._on_done = app, on_done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        state = scope.setdefault("state", {})
        if REFUSAL in state:
            await self._refuse(state[REFUSAL], scope, receive, send)
            return
        state["request_id"] = request_id = _request_id(scope)
        state["tasks"] = ()
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id.encode()))
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        finally:
            seconds, status = time.perf_counter() - start, status or 499
            if scope["path"].removeprefix(scope.get("root_path", "")).startswith(COUNTED):
                # A batch call takes as long as it has items, which says nothing of how long requests take.
                self._on_done(state["tasks"], status, None if PROGRESS in state else seconds)
            _log(scope, state, status, seconds)

    async def _refuse(self, refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        """The server could not read this request to the end of its headers."""
        request_id = secrets.token_hex(8)
        response = respond(refusal.error, request_id)
        response.headers["X-Request-Id"] = request_id
        self._on_done((), response.status_code, None)
        logs.request(request_id, scope["method"], None, (), None, response.status_code, refusal.seconds)
        await response(scope, receive, send)


class LastResort:
    """Answers the unforeseen, and whom a stop does not wait for; inside of whatever adds headers to answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:  # uvicorn's, when the time of a stop is over; nobody else cancels a request
            if scope["type"] != "http" or begun:
                raise
            await given_up(scope)(scope, receive, send)
        except Exception as error:
            if scope["type"] != "http":
                raise
            answer = unforeseen(scope, error)
            if begun:
                raise  # half an answer is out; the connection must break
            await answer(scope, receive, send)


def given_up(scope: Scope) -> Response:
    """For whom a stop does not wait."""
    over = Draining("the server has stopped and did not wait for this request any longer (drain_s)")
    return respond(over, scope["state"]["request_id"])


def unforeseen(scope: Scope, error: Exception) -> Response:
    """The log has the error, and the client hears where."""
    request_id = scope["state"]["request_id"]
    log.error("request %s: %s %r failed", request_id, scope["method"], scope["path"], exc_info=error)
    return respond_plain(500, f"the server made a mistake; its log has the details under {request_id}", request_id)


def _log(scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
    route, key = scope.get("route"), state.get("key")
    template = None if route is None else route.path
    holder = None if key is None or key is EVERYBODY else key.name
    logs.request(
        state["request_id"], scope["method"], template, state["tasks"], holder, status, seconds, state.get(PROGRESS)
    )


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else secrets.token_hex(8)
