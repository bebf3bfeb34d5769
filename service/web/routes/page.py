"""/: the page, for whoever asks for HTML, from files of this package under a policy that lets in nothing else.

They are read once, at start, and a name is looked up among them: none becomes a path.
"""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import Scope

from service.store.demo import DEMO
from service.web.routes import docs
from service.web.routes.download import matches

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; "  # what is dropped, and the pictures within reports
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = docs.HEADERS | {
    "Content-Security-Policy": POLICY,
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",  # kept, and asked for again by its ETag
}
INDEX = "index.html"
SAMPLES = (
    "digits-9.png", "digit-collage-0-3-7.png", "animal-or-vehicle-animal.png", "moving-digit-left.mp4",
)  # fmt: skip
"""Those of the demo that the page offers; try.js has the same names."""
ROOT = b"{root}"
_SERVED = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Asset:
    """A file as it goes out."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, content: bytes, media_type: str) -> Asset:
        return cls(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


class ForPeople(Route):
    """A route that is not there for whoever does not ask for HTML: other servers' clients know ``/`` as theirs."""

    def matches(self, scope: Scope) -> tuple[Match, dict[str, Any]]:
        if scope["type"] == "http" and not wants_html(Headers(scope=scope).getlist("accept")):
            return Match.NONE, {}
        match, found = super().matches(scope)
        return match, dict(found)


def install(app: FastAPI, root_path: str) -> None:
    """Add the page and its files. Comes before whatever else answers at ``/``."""
    index, assets = index_of(root_path), assets_of()

    async def page(request: Request) -> Response:
        return _answer(request, index, {"Vary": "Accept"})

    async def asset(request: Request) -> Response:
        found = assets.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        return _answer(request, found, {})

    app.router.routes.append(ForPeople("/", page, include_in_schema=False))
    app.add_route("/page/{name}", asset, include_in_schema=False)


def index_of(root_path: str) -> Asset:
    """The document, whose addresses begin with the path that a proxy puts before ours."""
    text = (files("service.web") / "page" / INDEX).read_bytes()
    return Asset.of(text.replace(ROOT, escape(root_path).encode()), "text/html")


def assets_of() -> dict[str, Asset]:
    """What the document loads, and the demo's samples, by name."""
    found = {
        path.name: Asset.of(path.read_bytes(), _SERVED[suffix])
        for path in (files("service.web") / "page").iterdir()
        if (suffix := f".{path.name.rpartition('.')[2]}") in _SERVED
    }
    samples = {
        path.name: Asset.of(path.read_bytes(), mimetypes.types_map[path.suffix])
        for path in (DEMO / "samples" / name for name in SAMPLES)
    }
    return samples | found


def wants_html(accepts: list[str]) -> bool:
    """Whether these Accept headers name text/html, and JSON not before it; ``*/*`` alone is no browser's."""
    wishes: dict[str, float] = {}
    for part in ",".join(accepts).split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        wishes[kind] = _quality(parameters)
    html = wishes.get("text/html", 0.0)
    return html > 0 and html >= wishes.get("application/json", 0.0)


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _answer(request: Request, asset: Asset, more: dict[str, str]) -> Response:
    headers = HEADERS | {"ETag": asset.etag} | more
    if matches(", ".join(request.headers.getlist("if-none-match")), asset.etag):
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.media_type)
