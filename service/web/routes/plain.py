"""Calls in their usual form, taken off the wire without the framework's machinery, which costs more than the rest.

What is checked and answered is the same: the endpoint's own work, behind the same guard. Any other form, right or
wrong, goes through the framework, which knows all forms and has the words for what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.web.routes.guard import guard, still_open

_NUMBER = rb"[1-9][0-9]{0,8}"
_ONE = re.compile(rb"(?:top_k=(%b))?(?:(?:^|&)version=(%b))?" % (_NUMBER, _NUMBER))
_MANY = re.compile(rb"(task=[a-z0-9._-]+(?:&task=[a-z0-9._-]+)*)(?:&top_k=(%b))?" % _NUMBER)
TOP_K = 5


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asks: for ``tasks``, or for one in its path; None where the default holds."""

    tasks: tuple[str, ...]
    top_k: int
    version: int | None
    deadline_ms: int | None


def asked(request: Request) -> Asked | None:
    """None unless the call is in a usual form: then nothing is wrong with any of its parameters."""
    deadlines = [value for name, value in request.scope["headers"] if name == b"x-deadline-ms"]
    if deadlines and (len(deadlines) > 1 or not re.fullmatch(_NUMBER, deadlines[0])):
        return None
    query: bytes = request.scope["query_string"]
    one = "task" in request.path_params
    match = (_ONE if one else _MANY).fullmatch(query)
    if match is None:
        return None
    top_k, version = (match[1], match[2]) if one else (match[2], None)
    tasks = () if one else tuple(name[5:].decode() for name in match[1].split(b"&"))
    return Asked(
        tasks, int(top_k or TOP_K), None if version is None else int(version),
        int(deadlines[0]) if deadlines else None,
    )  # fmt: skip


class PlainRoute(APIRoute):
    """A route of the framework, in its document too, that answers the usual calls itself."""

    async def answer(self, request: Request, asked: Asked) -> Response:
        """What the endpoint answers too."""
        raise NotImplementedError

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As the framework asks for it."""
        careful = super().get_route_handler()

        async def handler(request: Request) -> Response:
            call = asked(request)
            if call is None:
                return await careful(request)
            await still_open(request)
            await guard(request)
            return await self.answer(request, call)

        return handler
