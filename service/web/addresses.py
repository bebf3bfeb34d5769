"""Addresses: what is true of every one alike: HEAD, OPTIONS, a slash at the end, and the path that a proxy puts before.

It knows the application's routes by what they match, and nothing of what they do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")
HEAD = "head"
"""In the state of a request whose answer's body nobody will see: a GET that need not read a file for it."""


class PlainPath:
    """Outermost: the path as the routes have it, with the root path before it and no slash behind.

    A slash at the end is taken off here, since a redirect would lose bodies and keys.
    """

    def __init__(self, app: ASGIApp, root_path: str, framework: Starlette) -> None:
        self._app, self._root_path, self._framework = app, root_path, framework

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["root_path"], scope["app"] = self._root_path, self._framework
            scope["path"] = _plain(scope)
        await self._app(scope, receive, send)


class Methods:
    """Innermost: OPTIONS is answered, and HEAD becomes the GET whose headers it asks for.

    The server under us leaves the body out.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
        elif scope["method"] == "HEAD":
            await self._head(scope, receive, send)
        elif methods := allowed(scope):
            await Response(status_code=204, headers={"Allow": ", ".join(methods)})(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"][HEAD] = True
        asked: dict[str, Any] = dict(scope, method="GET")
        try:
            await self._app(asked, receive, send)
        finally:
            if "route" in asked:
                scope["route"] = asked["route"]  # for the log


def allowed(scope: Scope) -> list[str]:
    """The methods that the address takes, for ``Allow``; none where there is nothing at it."""
    methods = list(_taken(scope, scope["path"]))
    if "GET" in methods:
        methods.insert(1, "HEAD")
    return [*methods, "OPTIONS"] if methods else []


def _taken(scope: Scope, path: str) -> Iterator[str]:
    routes: Sequence[BaseRoute] = scope["app"].routes
    for method in METHODS:
        asked = dict(scope, path=path, method=method)
        if any(route.matches(asked)[0] is Match.FULL for route in routes):
            yield method


def _plain(scope: Scope) -> str:
    """The path with the root path before it, which a proxy may have taken off or not.

    Where both can be read into it, as into /v1/tasks under /v1, the one at which there is something counts.
    """
    root, path, raw = scope.get("root_path", ""), scope["path"], scope.get("raw_path", b"")
    if b"%2f" in raw.lower():
        path = raw.decode("latin-1")  # a slash written so parts nothing; it stays in the name, which is none then
    if len(path) > 1 and path.endswith("/") and not path.endswith("//"):
        path = path[:-1]
    if not root:
        return str(path)
    whole = f"{root}{path}"
    if path == root:  # the page, which is at the slash behind it
        return whole if any(_taken(scope, whole)) else f"{root}/"
    if not path.startswith(root + "/"):
        return whole
    return str(path) if any(_taken(scope, path)) or not any(_taken(scope, whole)) else whole
