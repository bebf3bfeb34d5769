"""The one place that decides who may call what; it runs before parameters are checked and before a body is read.

It does not know how keys are kept; ``service.keys`` does. Nothing here looks at Host or Origin; ``web.door`` does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Annotated

from fastapi import Depends, Request

from service.errors import BadRequest, Draining, Forbidden, Unauthorised
from service.keys import EVERYBODY, Key, Keys, Scope
from service.store.catalogue import Catalogue
from service.store.events import Actor
from service.web.protocol import CROWDED, too_many
from service.web.routes.common import GENERATION
from service.web.server import DRAINING


def _of_task(path: str, calls: list[str]) -> list[str]:
    """Calls of a task, and of its versions."""
    return [f"{path}/{whose}{call}" for whose in ("{task}", "{task}/versions/{version}") for call in calls]


NEEDS: dict[tuple[str, str], Scope | None] = {
    ("POST", "/v1/tasks/{task}/predict"): "predict",
    ("POST", "/v1/tasks/{task}/batch"): "predict",
    ("POST", "/v1/predict"): "predict",
    ("POST", "/v1/embed"): "predict",
    ("GET", "/v1/tasks"): "predict",
    ("GET", "/v1/tasks/{task}"): "predict",
    ("GET", "/v1/tasks/{task}/versions"): "predict",
    ("GET", "/v1/tasks/{task}/versions/{version}"): "predict",
    ("GET", "/v1/tasks/{task}/versions/{version}/config"): "predict",
    ("GET", "/v1/tasks/{task}/traffic"): "predict",
    ("GET", "/v1/key"): None,
    ("GET", "/livez"): None,
    ("GET", "/readyz"): None,
    # Of other servers' protocols: what tells whether the server is there is open, what changes tasks needs admin.
    ("GET", "/"): None,
    ("GET", "/ping"): None,
    ("GET", "/v2"): None,
    ("GET", "/v2/health/live"): None,
    ("GET", "/v2/health/ready"): None,
    **dict.fromkeys(
        [
            *product(["GET"], _of_task("/v2/models", ["", "/ready", "/config"])),
            *product(["POST"], _of_task("/v2/models", ["/infer"])),
            *product(["GET"], ["/v2/models", "/v2/models/stats", "/v2/models/{task}/stats"]),
            ("POST", "/v2/repository/index"),
            *product(["POST"], _of_task("/v1/models", [":predict", ":classify"])),
            ("GET", "/v1/models"),
            *product(["GET"], _of_task("/v1/models", ["", "/metadata"])),
            *product(["GET"], ["/models", "/models/{task}", "/models/{task}/{version}"]),
            *product(["GET"], ["/models/{task}/health", "/models/{task}/info"]),
            ("POST", "/models/{task}"),
            *product(["POST", "PUT"], ["/predictions/{task}", "/predictions/{task}/{version}"]),
        ],
        "predict",
    ),
}
"""The scope of each endpoint, None for open ones. Whatever is not listed needs ``admin``."""

WHOLE_SERVER = {"/metrics", "/v1/stats", "/v1/history"}
"""Endpoints that tell of all tasks at once: not for a key that is limited to some."""

ORIGINS = {"adaptserve-cli/": "cli", "adaptserve-client/": "client"}
"""How the User-Agent of our own tools begins -> the origin of their changes in the history."""

WHILE_DRAINING = {"/livez", "/metrics", "/v1/stats", "/v2/health/live", "/"}
"""What a server that stops still answers: it lives, and can be watched."""

WHEN_CROWDED = {"/livez", "/readyz", "/metrics", "/v1/stats", "/v2/health/live", "/v2/health/ready", "/ping", "/"}
"""What is answered even when every connection is taken: whoever watches the server must see that."""


async def still_open(request: Request) -> None:
    """Let the call pass unless the server was told to stop before it came, or is full. Raises Draining and more."""
    if request.scope["state"].get(DRAINING) and request.scope["route"].path not in WHILE_DRAINING:
        raise Draining("the server is stopping and takes no new requests; try another one, or again in a moment")
    if request.scope["state"].get(CROWDED) and request.scope["route"].path not in WHEN_CROWDED:
        raise too_many(request.app.state.settings)


async def guard(request: Request) -> None:
    """Let the call pass, and note its key in the request's state. Raises Unauthorised or Forbidden.

    From here on it sees what any process of this server has acknowledged before.

    A key that is limited to tasks hears the same of every other task, whether that exists or not.
    """
    path: str = request.scope["route"].path
    scope = NEEDS.get((request.method, path), "admin")
    if scope is None:
        return
    keys: Keys = request.app.state.keys
    request.state.key = key = _holder(request, keys, scope) if keys else EVERYBODY
    if not key.may(scope):
        raise Forbidden(
            f"this call needs a key with the scope '{scope}', and key '{key.name}' has '{key.scope}'",
            scope=scope, got=key.scope,
        )  # fmt: skip
    if key.tasks is not None and not _within(request, path, key):
        raise Forbidden(
            f"this call needs the scope '{scope}' for what it names, and key '{key.name}' is limited to other tasks",
            scope=scope,
        )  # fmt: skip
    catalogue: Catalogue = request.app.state.catalogue
    await catalogue.catch_up()
    if catalogue.repository.follows:
        await _see_others(request, catalogue)


async def _see_others(request: Request, catalogue: Catalogue) -> None:
    """See what other servers of the store have acknowledged, as far as the request says that it was."""
    asked = request.headers.get(GENERATION)
    if asked is not None:
        if not re.fullmatch("[0-9]{1,16}", asked):
            raise BadRequest(
                f"{GENERATION} is a number that an answer had in that header; '{asked[:40]}' came", field=GENERATION
            )
        await catalogue.see(int(asked))
    task, version = (request.path_params.get(name) for name in ("task", "version"))
    if task is not None and version is not None and re.fullmatch("[1-9][0-9]{0,8}", version):
        await catalogue.look_for(task, int(version))


async def caller_key(request: Request) -> Key:
    """The key that ``guard`` let pass."""
    key: Key = request.state.key
    return key


Holder = Annotated[Key, Depends(caller_key)]


async def actor(request: Request, key: Holder) -> Actor:
    """Who asks for a change, for the history: the key's name, and by which way, as far as the request tells."""
    return Actor(None if key is EVERYBODY else key.name, _origin(request))


By = Annotated[Actor, Depends(actor)]


def visible(catalogue: Catalogue, key: Key) -> Sequence[str]:
    """The tasks that the key may see, in order."""
    return catalogue.names() if key.tasks is None else [name for name in sorted(key.tasks) if catalogue.has(name)]


def holder(request: Request, keys: Keys, scope: Scope = "predict") -> Key | None:
    """Whose key came with the request; None where none came. Raises Unauthorised for one that nobody has."""
    secret = _secret(request)
    if secret is None:
        return None
    key = keys.find(secret)
    if key is None:
        raise Unauthorised(
            f"the key that came is none of this server's; this call needs one with the scope '{scope}'", scope=scope
        )
    return key


def _holder(request: Request, keys: Keys, scope: Scope) -> Key:
    key = holder(request, keys, scope)
    if key is None:
        raise Unauthorised(
            f"this call needs a key with the scope '{scope}'; send it as 'Authorization: Bearer KEY'", scope=scope
        )
    return key


def _origin(request: Request) -> str:
    """Only browsers say of which page a change is; ``web.door`` lets no other page's through than this server's own."""
    if "origin" in request.headers:
        return "page"
    agent = request.headers.get("user-agent", "")
    return next((origin for begins, origin in ORIGINS.items() if agent.startswith(begins)), "http")


def _secret(request: Request) -> str | None:
    """The bearer token, else X-API-Key; a proxy may use Authorization for another scheme."""
    kind, _, token = request.headers.get("authorization", "").strip().partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    return request.headers.get("x-api-key")


def _within(request: Request, path: str, key: Key) -> bool:
    """The names are taken from where the endpoints take them: the path, else the query."""
    if path in WHOLE_SERVER:
        return False
    named = request.path_params.get("task")
    asked = request.query_params.getlist("task") if named is None else [named]
    return all(key.sees(task) for task in asked)
