"""The Open Inference Protocol's extension for model repositories: what there is, load and unload; docs/CLIENTS.md."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request, Response

from service.errors import BadRequest
from service.store.catalogue import Catalogue
from service.web.routes.bodies import Memory, receive
from service.web.routes.common import TaskName, TheCatalogue, TheSettings, problems, tell_generation
from service.web.routes.compat.common import Translated
from service.web.routes.compat.reading import MAX_NUMBER, Bounds, json_of, shown
from service.web.routes.guard import By, Holder, visible

router = APIRouter(tags=["open inference protocol"], route_class=Translated)

MAX_CONTROL_BYTES = 64 * 1024
"""Of the bodies of calls that infer nothing."""


class Specific(msgspec.Struct):
    """Versions by their numbers."""

    versions: list[Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER)]]


class Policy(msgspec.Struct):
    """Which versions are to be loaded; others than specific ones mean nothing here."""

    specific: Specific | None = None


class ModelConfig(msgspec.Struct):
    """What is heeded of a configuration that comes with ``load``."""

    version_policy: Policy | None = None


@router.post("/v2/repository/index", responses=problems(400))
async def index(request: Request, catalogue: TheCatalogue, settings: TheSettings, key: Holder) -> list[dict[str, str]]:
    """What the key may see: each task by its active version, or why it does not answer."""
    asked = await _control(request, settings)
    names, only_ready = visible(catalogue, key), asked.get("ready", False)
    if not isinstance(only_ready, bool):
        raise BadRequest(f"'ready' must be true or false; {shown(only_ready)} came", field="ready")
    return await asyncio.to_thread(_index, catalogue, names, only_ready)


@router.post("/v2/repository/models/{task}/load", response_class=Response, responses=problems(400, 404, 503, 507))
async def load(request: Request, catalogue: TheCatalogue, settings: TheSettings, task: TaskName, by: By) -> Response:
    """Let a task answer: its newest version, or the one that `config` names, where none is active."""
    parameters = (await _control(request, settings)).get("parameters") or {}
    number = _version_asked(parameters, Bounds.of(settings))
    info = catalogue.repository.task(task)
    if number is not None or info.active is None:
        await catalogue.run(lambda: catalogue.activate(task, max(info.versions) if number is None else number, by))
    response = Response()
    tell_generation(response, catalogue, task)
    return response


@router.post("/v2/repository/models/{task}/unload", response_class=Response, responses=problems(400, 404, 503, 507))
async def unload(request: Request, catalogue: TheCatalogue, settings: TheSettings, task: TaskName, by: By) -> Response:
    """Let no version of a task answer unless it is named; all are kept, and `load` or an activation brings it back."""
    await _control(request, settings)
    await catalogue.run(lambda: catalogue.deactivate(task, by))
    response = Response()
    tell_generation(response, catalogue, task)
    return response


def _index(catalogue: Catalogue, names: Sequence[str], only_ready: bool) -> list[dict[str, str]]:
    rows = []
    for listed in catalogue.listings(names):
        ready = listed.problem is None
        if ready or not only_ready:
            state = "READY" if ready else "UNAVAILABLE"
            version = str(listed.shown.number)
            rows.append({"name": listed.task.name, "version": version, "state": state, "reason": listed.problem or ""})
    return rows


async def _control(request: Request, settings: TheSettings) -> dict[str, Any]:
    """The small JSON object of a call that infers nothing, or nothing."""
    async with Memory(request.app.state.bodies) as memory:
        name = "which is the most of this call"
        await receive(request, memory, settings, limit=MAX_CONTROL_BYTES, limit_name=name, fields=(), json=True)
        body = memory.take()
    asked: dict[str, Any] = json_of(body, dict[str, Any], Bounds.of(settings)) if body.strip() else {}
    if not isinstance(asked.get("parameters") or {}, dict):
        raise BadRequest("'parameters' must be an object", field="parameters")
    return asked


def _version_asked(parameters: dict[str, Any], bounds: Bounds) -> int | None:
    """The one version that a configuration's policy names, if it has one. Raises BadRequest."""
    if any(name.startswith("file:") for name in parameters):
        raise BadRequest(
            "files come here as one adapter: PUT /v1/tasks/{task}/adapter; 'load' takes none", field="parameters"
        )
    text = parameters.get("config")
    if text is None:
        return None
    if not isinstance(text, str):
        raise BadRequest(f"'config' must be a string of JSON; {shown(text)} came", field="config")
    policy = json_of(text.encode(), ModelConfig, bounds).version_policy
    if policy is None:
        return None
    versions = [] if policy.specific is None else policy.specific.versions
    if len(versions) != 1:
        raise BadRequest(
            "one version of a task is active at a time: 'version_policy' must be specific, with one version",
            field="version_policy",
        )
    return versions[0]
