"""TorchServe's inference API, and of its management API what tells; docs/CLIENTS.md."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from adapters.errors import AdaptError
from service.engine.interface import Link
from service.errors import (
    BadRequest,
    Draining,
    Forbidden,
    NotReady,
    QueueFull,
    Unauthorised,
    UnknownTask,
    UnknownVersion,
    status_of,
)
from service.store.catalogue import Catalogue
from service.store.manifest import VersionInfo
from service.web.caller import Caller
from service.web.pages import page
from service.web.problems import respond
from service.web.routes.callers import TheCaller
from service.web.routes.common import TaskName, TheCatalogue, TheEngine, problems
from service.web.routes.compat.common import (
    TheBatchCalls,
    Translated,
    json_body,
    written,
)
from service.web.routes.compat.reading import Bounds, Inputs, file_of, from_base64, is_json, json_of
from service.web.routes.guard import Holder, visible
from service.web.routes.predict import FIELDS, TOP_K, TopK

KINDS: dict[type[AdaptError], str] = {
    UnknownTask: "ModelNotFoundException",
    UnknownVersion: "ModelVersionNotFoundException",
    Unauthorised: "InvalidKeyException",
    Forbidden: "InvalidKeyException",
    QueueFull: "ServiceUnavailableException",
    NotReady: "ServiceUnavailableException",
    Draining: "ServiceUnavailableException",
}
"""Its names for what goes wrong; others are by their status."""


class TorchServeRefusal(BaseModel):
    """An error, in TorchServe's three members."""

    code: int = Field(examples=[404])
    type: str = Field(examples=["ModelNotFoundException"])
    message: str = Field(examples=["there is no task 'nosuch'; GET /v1/tasks lists them"])


class Named(Translated):
    """With TorchServe's three members, and this server's own status."""

    def refusal(self, error: AdaptError, request: Request) -> Response:
        status = status_of(error)
        kind = next((KINDS[one] for one in type(error).__mro__ if one in KINDS), None)
        kind = kind or ("BadRequestException" if status < 500 else "InternalServerException")
        own = respond(error, request.state.request_id)
        headers = {name: value for name, value in own.headers.items() if not name.startswith("content-")}
        return JSONResponse({"code": status, "type": kind, "message": error.message}, status, headers)


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of an endpoint for /docs."""
    told = problems(400, 401, 403, 404, 503, *statuses)
    return {status: {"description": one["description"], "model": TorchServeRefusal} for status, one in told.items()}


router = APIRouter(tags=["torchserve"], route_class=Named)

NAMES = ("data", "body")
_VERSION = re.compile(r"([1-9][0-9]{0,8})(?:\.0)?")
_BODY: dict[str, Any] = {
    "openapi_extra": json_body(
        "A picture or clip as it is, or as the field `data` of a form.",
        {"type": "object", "properties": {"data": {"type": "string"}}},
        "application/octet-stream", "multipart/form-data",
    ),
    "responses": _refusals(408, 413, 415, 422, 429, 500, 504, 507),
}  # fmt: skip


@router.get("/ping", responses={503: {"description": "It does not.", "model": dict[str, str]}})
async def ping(engine: TheEngine) -> Response:
    """Whether the device computes."""
    try:
        await engine.ready()
    except AdaptError as error:
        return JSONResponse({"status": "Unhealthy", "message": error.message}, status_of(error))
    return JSONResponse({"status": "Healthy"})


@router.post("/predictions/{task}", **_BODY)
@router.put("/predictions/{task}", **_BODY)
async def predictions(
    request: Request, batches: TheBatchCalls, caller: TheCaller, task: TaskName, top_k: TopK = TOP_K
) -> Response:
    """Classify a picture or clip: an object of labels and scores, best first."""
    return await _predict(request, batches, task, None, top_k, caller)


@router.post("/predictions/{task}/{version}", **_BODY)
@router.put("/predictions/{task}/{version}", **_BODY)
async def version_predictions(
    request: Request, batches: TheBatchCalls, caller: TheCaller, task: TaskName, version: str, top_k: TopK = TOP_K,
) -> Response:  # fmt: skip
    """The same by a version, active or not: `3`, or `3.0`."""
    return await _predict(request, batches, task, _number(task, version), top_k, caller)


@router.get("/models", responses=_refusals())
async def models(
    catalogue: TheCatalogue,
    key: Holder,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    next_page_token: Annotated[str | SkipJsonSchema[None], Query(max_length=64)] = None,
) -> dict[str, Any]:
    """The tasks that the key may see, a page at a time."""
    part = page(visible(catalogue, key), next_page_token, limit)
    found: dict[str, Any] = {"models": [{"modelName": name, "modelUrl": f"{name}.safetensors"} for name in part.items]}
    return found | ({} if part.next is None else {"nextPageToken": part.next})


@router.get("/models/{task}", responses=_refusals())
async def describe(catalogue: TheCatalogue, engine: TheEngine, task: TaskName) -> list[dict[str, Any]]:
    """The active version; the newest while none is."""
    info = catalogue.repository.task(task)
    return [_description(catalogue, engine, info.shown)]


@router.get("/models/{task}/{version}", responses=_refusals())
async def describe_version(
    catalogue: TheCatalogue, engine: TheEngine, task: TaskName, version: str
) -> list[dict[str, Any]]:
    """A version, or `all` of them."""
    if version == "all":
        return [_description(catalogue, engine, one) for one in catalogue.repository.task(task).versions.values()]
    return [_description(catalogue, engine, catalogue.repository.version(task, _number(task, version)))]


async def _predict(
    request: Request, batches: TheBatchCalls, task: str, version: int | None, top_k: int, caller: Caller
) -> Response:
    read = partial(read_prediction, top_k=top_k, bounds=batches.bounds)
    _, outcomes = await batches.answer(request, task, version, caller, read, [*NAMES, *FIELDS])
    (outcome,) = outcomes.results
    row = {one.label: one.score for one in outcome.predictions}
    return Response(await written(outcomes, lambda: msgspec.json.encode(row)), media_type="application/json")


def read_prediction(body: bytes, top_k: int, bounds: Bounds) -> Inputs:
    """A file, or JSON with its base64 as ``data``. Raises BadRequest and more, never anything else."""
    if not is_json(body):
        return Inputs([file_of(body, "the body", bounds)], top_k)
    found = json_of(body, dict[str, Any], bounds)
    given = [name for name in NAMES if isinstance(found.get(name), str)]
    if len(given) != 1:
        raise BadRequest("the JSON must hold the file's base64 as 'data'; or send the file as it is", field="data")
    return Inputs([from_base64(found[given[0]], f"'{given[0]}'", bounds)], top_k)


def _number(task: str, version: str) -> int:
    match = _VERSION.fullmatch(version)
    if match is None:
        raise UnknownVersion(f"version '{version[:20]}' of '{task}' is no number, as 3 or 3.0", task=task)
    return int(match[1])


def _description(catalogue: Catalogue, engine: Link, info: VersionInfo) -> dict[str, Any]:
    ready = catalogue.active(info.task) == info.number
    return {
        "modelName": info.task,
        "modelVersion": str(info.number),
        "modelUrl": f"{info.task}.safetensors",
        "runtime": "python",
        "loadedAtStartup": ready,
        "workers": [{"id": engine.facts.device, "startTime": info.created, "status": "READY"}] if ready else [],
    }
