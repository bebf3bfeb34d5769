"""The Open Inference Protocol v2, as clients of KServe and Triton speak it over HTTP; docs/CLIENTS.md.

It does not know how tensors lie in bytes; ``tensors`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from pydantic.json_schema import SkipJsonSchema

from adapters.version import installed_version
from service.store.catalogue import Catalogue
from service.watch.counts import Counting
from service.web.caller import Caller
from service.web.routes.callers import TheCaller
from service.web.routes.common import Number, TaskName, TheCatalogue, TheCounts, TheEngine, TheSettings, problems
from service.web.routes.compat.common import (
    PROBLEMS,
    TheBatchCalls,
    Translated,
    json_body,
    written,
)
from service.web.routes.compat.tensors import HEADED, OUTPUTS, read_infer, write_infer
from service.web.routes.guard import Holder, visible

router = APIRouter(tags=["open inference protocol"], route_class=Translated)

INPUT = "INPUT"
PLATFORM = "adaptserve"
EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
]
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
    "responses": PROBLEMS | {200: {"content": {"application/json": {}, "application/octet-stream": {}}}},
}


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


@router.get("/v2/models")
async def models(catalogue: TheCatalogue, key: Holder) -> dict[str, Sequence[str]]:
    """The tasks that the key may see, as KServe lists them."""
    return {"models": list(visible(catalogue, key))}


@router.get("/v2/models/stats")
async def statistics(catalogue: TheCatalogue, counts: TheCounts, key: Holder) -> dict[str, Any]:
    """How often each task that the key may see was asked. A task of the name `stats` is described here too."""
    names = visible(catalogue, key)
    about = _metadata(catalogue, "stats", None) if "stats" in names else {}
    return about | await _statistics(catalogue, counts, names)


@router.get(_ONE + "/stats", responses=problems(404))
async def task_statistics(catalogue: TheCatalogue, counts: TheCounts, task: TaskName) -> dict[str, Any]:
    """How often a task was asked, whatever its version."""
    catalogue.repository.task(task)  # it is there
    return await _statistics(catalogue, counts, [task])


@router.get(_ONE, responses=problems(404))
async def model(catalogue: TheCatalogue, task: TaskName) -> dict[str, Any]:
    """A task: its versions, and the tensors that infer takes and gives."""
    return _metadata(catalogue, task, None)


@router.get(_VERSION, responses=problems(404))
async def model_version(catalogue: TheCatalogue, task: TaskName, version: Number) -> dict[str, Any]:
    """The same of a version."""
    return _metadata(catalogue, task, version)


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
    request: Request,
    batches: TheBatchCalls,
    caller: TheCaller,
    task: TaskName,
    header: HeaderLength = None,
) -> Response:
    """Classify one or more pictures or clips; they are computed together and answered in order, all or none."""
    return await _infer(request, batches, task, None, caller, header)


@router.post(_VERSION + "/infer", **_INFER)
async def infer_version(
    request: Request, batches: TheBatchCalls, caller: TheCaller, task: TaskName, version: Number,
    header: HeaderLength = None,
) -> Response:  # fmt: skip
    """The same by a version, active or not."""
    return await _infer(request, batches, task, version, caller, header)


async def _infer(
    request: Request,
    batches: TheBatchCalls,
    task: str,
    version: int | None,
    caller: Caller,
    header: str | None,
) -> Response:
    read = partial(read_infer, header_length=header, bounds=batches.bounds)
    asked, outcomes = await batches.answer(request, task, version, caller, read)
    found, rows = outcomes.results[0].served.version, [one.predictions for one in outcomes.results]
    body, json_bytes = await written(outcomes, lambda: write_infer(asked, task, found, rows))
    if json_bytes is None:
        return Response(body, media_type="application/json")
    return Response(body, headers={HEADED: str(json_bytes)}, media_type="application/octet-stream")


def _metadata(catalogue: Catalogue, task: str, version: int | None) -> dict[str, Any]:
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


async def _statistics(catalogue: Catalogue, counts: Counting, names: Sequence[str]) -> dict[str, Any]:
    found = await counts.of(names)
    rows = []
    for name in names:
        answered, failed = found[name]
        stages = {"success": {"count": answered}, "fail": {"count": failed}}
        version = str(catalogue.active(name) or "")
        rows.append({"name": name, "version": version, "inference_count": answered, "inference_stats": stages})
    return {"model_stats": rows}


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
