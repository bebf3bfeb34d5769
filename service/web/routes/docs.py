"""/docs: the API to read and to try, from files that this server has itself, under a policy that lets in no others.

Swagger UI's files are those of the package fastapi-swagger, whose code is not used: it calls a script within the page.
"""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse
from starlette.exceptions import HTTPException

from service.web.routes.guard import NEEDS

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; "  # icons within the style sheet
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
KEPT = "max-age=3600"

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>AdaptServe</title>
<link rel="icon" href="{root}/docs/favicon-32x32.png">
<link rel="stylesheet" href="{root}/docs/swagger-ui.css">
<script src="{root}/docs/swagger-ui-bundle.js" defer></script>
<script src="{root}/docs/start.js" defer></script>
</head>
<body>
<div id="swagger-ui" data-document="{root}/openapi.json"><noscript>This page needs JavaScript. The API is also in
<a href="{root}/openapi.json">openapi.json</a>.</noscript></div>
</body>
</html>
"""
START = """const place = document.getElementById("swagger-ui");
SwaggerUIBundle({
  domNode: place,
  url: place.dataset.document,
  deepLinking: true,
  validatorUrl: null,
  queryConfigEnabled: false,
  tryItOutEnabled: true,
  displayRequestDuration: true,
});
"""
_ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript", "favicon-32x32.png": "image/png"}

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "a key, from `adaptserve keys create`"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same, past a proxy"},
}


def install(app: FastAPI) -> None:
    """Add the page, what it loads, and to the document which calls need a key."""
    folder = files("fastapi_swagger") / "resources"

    async def page(request: Request) -> Response:
        root = escape(request.scope.get("root_path", ""))
        return HTMLResponse(PAGE.format(root=root), headers=HEADERS | {"Cache-Control": "no-cache"})

    async def asset(request: Request) -> Response:
        name, headers = request.path_params["name"], HEADERS | {"Cache-Control": KEPT}
        if name == "start.js":
            return Response(START, headers=headers, media_type="text/javascript")
        if name not in _ASSETS:
            raise HTTPException(404)
        return FileResponse(str(folder / name), headers=headers, media_type=_ASSETS[name])

    app.add_route("/docs", page, include_in_schema=False)
    app.add_route("/docs/{name}", asset, include_in_schema=False)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    """FastAPI's own without the 422 that is 400 here, and where the server has keys, with the calls that need one."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        keys = bool(app.state.keys)
        for path, calls in document["paths"].items():
            for method, call in calls.items():
                if call["responses"].get("422", {}).get("description") == "Validation Error":
                    del call["responses"]["422"]
                if keys and NEEDS.get((method.upper(), path), "admin") is not None:
                    call["security"] = [{name: []} for name in SCHEMES]
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        if keys:
            document["components"]["securitySchemes"] = SCHEMES
        app.openapi_schema = document
    return app.openapi_schema
