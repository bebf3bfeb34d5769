"""The application where another one speaks HTTP, as Ray Serve's proxy does, and the server's own protocol does not.

It knows ASGI alone: what ``service.web.protocol`` adds to a request is made here from what there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.protocol import EXCHANGE

REQUEST_ID, REPLICA = b"x-request-id", b"x-adaptserve-replica"
LEAVE_S = 5.0
"""How long a request whose client has left may take to end in order."""


class Behind:
    """The server's application, and the name of the server in its answers."""

    def __init__(self, app: ASGIApp, replica: str, end: Callable[[], Awaitable[None]]) -> None:
        """``replica`` is its name, which answers carry; ``end`` is called after the last of them."""
        self._app, self._name, self._end = app, replica.encode(), end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return
        departed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        scope["state"] = {EXCHANGE: ProxiedExchange(departed)}
        given = dict(scope["headers"]).get(REQUEST_ID)

        async def heard() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not departed.done():
                departed.set_result(None)
            return message

        async def said(message: Message) -> None:
            if message["type"] == "http.response.start":  # Ray's proxy adds the one that it gave the request
                headers = [pair for pair in message["headers"] if pair != (REQUEST_ID, given)]
                message["headers"] = [*headers, (REPLICA, self._name)]
            await send(message)

        answering = asyncio.ensure_future(self._app(scope, heard, said))
        try:
            await asyncio.shield(answering)
        except asyncio.CancelledError:  # Ray's, when the client has left or its time is over
            if not departed.done():
                departed.set_result(None)
            await asyncio.wait([answering], timeout=LEAVE_S)
            answering.cancel()
            raise

    async def _live(self, receive: Receive, send: Send) -> None:
        """The protocol lifespan, by which Ray says when a replica begins and ends."""
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._end()
        await send({"type": "lifespan.shutdown.complete"})


@dataclass(frozen=True)
class ProxiedExchange:
    """A request as ``service.web.protocol.Exchange`` has it; the body may come in parts."""

    departed: asyncio.Future[None]
    whole: bool = False
