"""Who may come in before any route is looked at: the name that is asked for, the page that asks, the proxy in between.

Plain ASGI, and no body is read for it. It does not know keys: ``service.web.routes.guard`` does.
"""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from adapters.errors import AdaptError
from adapters.limits import variable
from service.errors import BadRequest, ForeignOrigin, UnknownHost
from service.hosts import ANY, Hosts, Origin, Place, listed, of_this_machine, origin, place
from service.settings import Settings
from service.web.problems import respond

SAFE = {"GET", "HEAD", "OPTIONS"}
"""Methods that change nothing: a page may send them, and the browser hides the answer from it."""
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
EXPOSED = (
    "X-Request-Id", "Server-Timing", "Retry-After", "Location", "ETag", "Content-Range", "Accept-Ranges", "Allow",
    "X-Error-Message", "Inference-Header-Content-Length", "X-AdaptServe-Generation",
)  # fmt: skip
"""Headers of an answer that a page of an allowed origin may read, beside those that any may."""


class Proxies(ProxyHeadersMiddleware):
    """Uvicorn's, with ``X-Forwarded-Host``: headers of proxies count when they come from one that is trusted."""

    def __init__(self, app: Any, settings: Settings) -> None:
        super().__init__(app, listed(settings.trusted_proxies))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope.get("client") and scope["client"][0] in self.trusted_hosts:
            given = [value for name, value in scope["headers"] if name == b"x-forwarded-host"]
            if given:
                # The last one is of the proxy next to us; what stands before it may be the client's own.
                host = given[-1].rpartition(b",")[2].strip()
                kept = [(name, value) for name, value in scope["headers"] if name != b"host"]
                scope["headers"] = [(b"host", host), *kept]
        await super().__call__(scope, receive, send)


def hosts_of(settings: Settings) -> Hosts:
    """The names that this server goes by."""
    names = of_this_machine(settings.host, settings.published_host)
    return Hosts(names | set(listed(settings.allowed_hosts)))


class KnownHost:
    """Refuses requests for a name that is not this server's: a page that made its own name point here sends them."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = hosts_of(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except AdaptError as error:
                await respond(error, scope["state"]["request_id"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        given = Headers(scope=scope).getlist("host")
        if not given and scope["http_version"] == "1.0":
            return  # older than names, and than pages that could ask
        if len(given) != 1:
            raise BadRequest(f"{len(given) or 'no'} Host headers came; send one", field="Host")
        try:
            host = place(given[0])
        except ValueError as error:
            raise BadRequest(f"header Host: {error}", field="Host", got=given[0][:80]) from error
        if host not in self._hosts:
            raise UnknownHost(
                f"this server does not go by the name '{host.host[:80]}'; ask for it as localhost or by its IP "
                f"address, or let it have the name: add it to {variable('allowed_hosts')} (allowed_hosts)",
                field="Host", got=host.host[:80],
            )  # fmt: skip


class KnownOrigin:
    """Refuses what a page of another origin asks to change; a client that is no browser names none, and passes."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._allowed = frozenset(listed(settings.allowed_origins))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE:
            try:
                self._check(scope)
            except ForeignOrigin as error:
                await respond(error, scope["state"]["request_id"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        origins, site = headers.getlist("origin"), headers.get("sec-fetch-site")
        if ANY in self._allowed or (not origins and site is None):
            return
        if origins and all(text in self._allowed for text in origins):
            return
        own = all(self._is_own(text, scope["scheme"], headers, site) for text in origins)
        if own and site in (None, "same-origin", "none"):  # another port of this machine is of the same site, not ours
            return
        page = f"a page of {origins[0][:80]!r}" if origins else f"a page of another origin (Sec-Fetch-Site: {site})"
        raise ForeignOrigin(
            f"{page} asks for this, and only this server's own pages may change something; to let it, name its origin "
            f"in {variable('allowed_origins')} (allowed_origins)" + self._hint(origins, headers),
            field="Origin", got=[text[:80] for text in origins[:2]],
        )  # fmt: skip

    def _is_own(self, text: str, scheme: str, headers: Headers, site: str | None) -> bool:
        """The scheme is not held against a page that the browser says is ours: a proxy may have ended its TLS."""
        page, host = _read(text, headers)
        return (
            page is not None
            and host is not None
            and page.is_at(host)
            and (page.scheme == scheme or (site == "same-origin" and {page.scheme, scheme} == {"http", "https"}))
        )

    def _hint(self, origins: list[str], headers: Headers) -> str:
        page, host = _read(origins[0], headers) if origins else (None, None)
        if page is None or host is None or not page.is_at(host):
            return ""
        return f"; is it this server's own, behind a proxy with TLS, name the proxy in {variable('trusted_proxies')}"


def _read(text: str, headers: Headers) -> tuple[Origin | None, Place | None]:
    try:
        return origin(text), place(headers.get("host", ""))
    except ValueError:
        return None, None


class Cors(CORSMiddleware):
    """Starlette's, for the origins of the settings; a refusal is a problem document."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        super().__init__(
            app,
            allow_origins=listed(settings.allowed_origins),
            allow_methods=METHODS,
            allow_headers=[ANY],
            allow_private_network=True,
            expose_headers=EXPOSED,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" and scope["method"] == "OPTIONS" else Headers()
        if "origin" in headers and "access-control-request-method" in headers:
            answer = self.preflight_response(headers)
            if answer.status_code != 200:
                answer = respond(self._refusal(headers), scope["state"]["request_id"])
            await answer(scope, receive, send)
            return
        await super().__call__(scope, receive, send)

    def _refusal(self, headers: Headers) -> AdaptError:
        page, method = headers["origin"][:80], headers["access-control-request-method"][:80]
        if not self.is_allowed_origin(headers["origin"]):
            return ForeignOrigin(
                f"pages of {page!r} may not call this server; to let them, name their origin in "
                f"{variable('allowed_origins')} (allowed_origins)",
                field="Origin", got=page,
            )  # fmt: skip
        return BadRequest(
            f"pages may use {', '.join(METHODS)} here, not {method!r}",
            field="Access-Control-Request-Method",
            got=method,
        )
