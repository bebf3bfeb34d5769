"""The Open Inference Protocol v2, as clients of KServe and Triton speak it over HTTP; docs/CLIENTS.md.

It does not know how tensors lie in bytes; ``tensors`` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Request, Response
from pydantic.json_schema import SkipJsonSchema

from adapters.version import installed_version
from service.errors import BadRequest
from service.store.catalogue import Catalogue
from service.web.routes.bodies import Memory, receive
from service.web.routes.common import Number, TaskName, TheCatalogue, TheEngine, TheSettings, problems
from service.web.routes.compat.common import (
    PROBLEMS,
    DeadlineMs,
    TheBatches,
    Translated,
    json_body,
    seen_names,
    written,
)
from service.web.routes.compat.reading import MAX_NUMBER, Bounds, json_of, shown
from service.web.routes.compat.tensors import HEADED, OUTPUTS, read_infer, write_infer
from service.web.routes.guard import Holder

router = APIRouter(tags=["open inference protocol"], route_class=Translated)

INPUT = "INPUT"
PLATFORM = "adaptserve"
EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "parameters"]
MAX_CONTROL_BYTES = 64 * 1024
"""Of the bodies of calls that infer nothing."""

HeaderLength = Annotated[
    str | SkipJsonSchema[None], Header(alias=HEADED, description="bytes of the body that are JSON; tensors follow")
]
_ONE, _VERSION = "/v2/models/{task}", "/v2/models/{task}/versions/{version}"
_INFER: dict[str, Any] = {
    "openapi_extra": json_body(
        "One BYTES input, whose elements are pictures or clips: base64 in JSON, or as they are behind it.",
        {"type": "object", "required": ["inputs"], "properties": {"inputs": {"type": "array", "minItems": 1}}},
        "application/octet-stream",
    ),
    "responses": PROBLEMS,
}


class Specific(msgspec.Struct):
    """Versions by their numbers."""

    versions: list[Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER)]]


class Policy(msgspec.Struct):
    """Which versions are to be loaded; others than specific ones mean nothing here."""

    specific: Specific | None = None


class ModelConfig(msgspec.Struct):
    """What is heeded of a configuration that comes with ``load``."""

    version_policy: Policy | None = None


@router.get("/v2")
async def server() -> dict[str, Any]:
    """What this server is, and which extensions of the protocol it has."""
    return {"name": "adaptserve", "version": installed_version(), "extensions": EXTENSIONS}


@router.get("/v2/health/live")
async def live() -> dict[str, bool]:
    """The process runs and answers."""
    return {"live": True}


@router.get("/v2/health/ready", responses=problems(503))
async def ready(engine: TheEngine) -> dict[str, bool]:
    """The device computes."""
    await engine.ready()
    return {"ready": True}


@router.get(_ONE, responses=problems(404))
async def model(catalogue: TheCatalogue, task: TaskName) -> dict[str, Any]:
    """A task: its versions, and the tensors that infer takes and gives."""
    return await _metadata(catalogue, task, None)


@router.get(_VERSION, responses=problems(404))
async def model_version(catalogue: TheCatalogue, task: TaskName, version: Number) -> dict[str, Any]:
    """The same of a version."""
    return await _metadata(catalogue, task, version)


@router.get(_ONE + "/ready", responses=problems(404, 422, 503))
async def model_ready(catalogue: TheCatalogue, engine: TheEngine, task: TaskName) -> dict[str, Any]:
    """The task has an active version that runs here, and the device computes."""
    await catalogue.resolve(task)
    await engine.ready()
    return {"name": task, "ready": True}


@router.get(_VERSION + "/ready", responses=problems(404, 422, 503))
async def model_version_ready(
    catalogue: TheCatalogue, engine: TheEngine, task: TaskName, version: Number
) -> dict[str, Any]:
    """The version runs here, active or not, and the device computes."""
    await catalogue.resolve(task, version)
    await engine.ready()
    return {"name": task, "version": str(version), "ready": True}


@router.get(_ONE + "/config", responses=problems(404, 422))
async def config(catalogue: TheCatalogue, settings: TheSettings, task: TaskName) -> dict[str, Any]:
    """What Triton calls a model's configuration, as far as a task has one."""
    return await _config(catalogue, settings.max_items_per_request, task, None)


@router.get(_VERSION + "/config", responses=problems(404, 422))
async def version_config(
    catalogue: TheCatalogue, settings: TheSettings, task: TaskName, version: Number
) -> dict[str, Any]:
    """The same of a version."""
    return await _config(catalogue, settings.max_items_per_request, task, version)


@router.post(_ONE + "/infer", **_INFER)
async def infer(
    request: Request, batches: TheBatches, task: TaskName, deadline_ms: DeadlineMs = None, header: HeaderLength = None
) -> Response:
    """Classify one or more pictures or clips; they are computed together and answered in order, all or none."""
    return await _infer(request, batches, task, None, deadline_ms, header)


@router.post(_VERSION + "/infer", **_INFER)
async def infer_version(
    request: Request, batches: TheBatches, task: TaskName, version: Number, deadline_ms: DeadlineMs = None,
    header: HeaderLength = None,
) -> Response:  # fmt: skip
    """The same by a version, active or not."""
    return await _infer(request, batches, task, version, deadline_ms, header)


@router.post("/v2/repository/index", responses=problems(400))
async def index(request: Request, catalogue: TheCatalogue, settings: TheSettings, key: Holder) -> list[dict[str, str]]:
    """What the key may see: each task by its active version, or why it does not answer."""
    asked = await _control(request, settings)
    names, only_ready = seen_names(catalogue, key), asked.get("ready", False)
    if not isinstance(only_ready, bool):
        raise BadRequest(f"'ready' must be true or false; {shown(only_ready)} came", field="ready")
    return await asyncio.to_thread(_index, catalogue, names, only_ready)


@router.post("/v2/repository/models/{task}/load", responses=problems(400, 404, 503, 507))
async def load(request: Request, catalogue: TheCatalogue, settings: TheSettings, task: TaskName) -> Response:
    """Let a task answer: its newest version, or the one that `config` names, where none is active."""
    parameters = (await _control(request, settings)).get("parameters") or {}
    number = _version_asked(parameters, Bounds.of(settings))
    info = catalogue.repository.task(task)
    if number is not None or info.active is None:
        await asyncio.to_thread(catalogue.activate, task, max(info.versions) if number is None else number)
    return Response()


@router.post("/v2/repository/models/{task}/unload", responses=problems(400, 404, 503, 507))
async def unload(request: Request, catalogue: TheCatalogue, settings: TheSettings, task: TaskName) -> Response:
    """Let no version of a task answer unless it is named; all are kept, and `load` or an activation brings it back."""
    await _control(request, settings)
    await asyncio.to_thread(catalogue.deactivate, task)
    return Response()


async def _infer(
    request: Request, batches: TheBatches, task: str, version: int | None, deadline_ms: int | None, header: str | None
) -> Response:
    read = partial(read_infer, header_length=header, bounds=batches.bounds)
    asked, outcomes = await batches.answer(request, task, version, deadline_ms, read)
    found, rows = outcomes.results[0].served.version, [one.predictions for one in outcomes.results]
    body, json_bytes = await written(outcomes, lambda: write_infer(asked, task, found, rows))
    if json_bytes is None:
        return Response(body, media_type="application/json")
    return Response(body, headers={HEADED: str(json_bytes)}, media_type="application/octet-stream")


async def _metadata(catalogue: Catalogue, task: str, version: int | None) -> dict[str, Any]:
    info = catalogue.repository.task(task)
    if version is not None:
        catalogue.repository.version(task, version)  # there is one
    numbers: Sequence[int] = list(info.versions) if version is None else [version]
    return {
        "name": task,
        "versions": [str(number) for number in numbers],
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1, 1]}],
        "outputs": [{"name": name, "datatype": kind, "shape": [-1, -1]} for name, kind in OUTPUTS.items()],
    }


async def _config(catalogue: Catalogue, most: int, task: str, version: int | None) -> dict[str, Any]:
    served = await catalogue.resolve(task, version)
    kinds = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32"}
    return {
        "name": task,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"specific": {"versions": [served.version]}},
        "max_batch_size": most,
        "input": [{"name": INPUT, "data_type": "TYPE_STRING", "dims": [1]}],
        "output": [{"name": name, "data_type": kinds[kind], "dims": [-1]} for name, kind in OUTPUTS.items()],
        "parameters": {
            "modality": {"string_value": served.config.modality},
            "classes": {"string_value": str(len(served.config.labels))},
            "digest": {"string_value": served.digest},
        },
    }


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
        name = "the limit of this call"
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
