"""TensorFlow Serving's REST API and KServe's first one, which is much the same; docs/CLIENTS.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from service.errors import BadRequest
from service.store.catalogue import Catalogue
from service.web.routes.common import Number, TaskName, TheCatalogue, TheEngine, problems
from service.web.routes.compat.common import (
    PROBLEMS,
    DeadlineMs,
    TheBatchCalls,
    Translated,
    json_body,
    written,
)
from service.web.routes.compat.reading import Bounds, Inputs, from_base64, json_of, shown
from service.web.routes.guard import Holder, visible
from service.web.routes.predict import TOP_K, TopK

router = APIRouter(tags=["tensorflow serving, kserve v1"], route_class=Translated)

INPUT = "image_bytes"
KNOWN = (INPUT, "b64", "image", "data", "content", "input", "file", "video")
"""Names under which an object with several members may hold the file."""
ROWS, COLUMNS, EXAMPLES = "instances", "inputs", "examples"
MAX_DEPTH = 3

_ONE, _VERSION = "/v1/models/{task}", "/v1/models/{task}/versions/{version}"
_FILES = {"type": "array", "minItems": 1, "items": {"type": "object"}}


def _call(*names: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": dict.fromkeys(names, _FILES), "minProperties": 1}
    body = json_body('Pictures or clips, each {"b64": "..."}, alone or as a named input.', schema)
    return {"openapi_extra": body, "responses": PROBLEMS}


@dataclass(frozen=True, kw_only=True)
class ServingInputs(Inputs):
    """``columns``: the request was in the column form, and so is the answer."""

    columns: bool


@router.get("/")
async def alive(response: Response) -> dict[str, str]:
    """The process runs and answers. Who asks for HTML gets the page."""
    response.headers["Vary"] = "Accept"
    return {"status": "alive"}


@router.get("/v1/models")
async def models(catalogue: TheCatalogue, key: Holder) -> dict[str, Sequence[str]]:
    """The tasks that the key may see."""
    return {"models": list(visible(catalogue, key))}


@router.post(_ONE + ":predict", **_call(ROWS, COLUMNS))
async def predict(
    request: Request, batches: TheBatchCalls, task: TaskName, top_k: TopK = TOP_K, deadline_ms: DeadlineMs = None
) -> Response:
    """Classify pictures or clips: labels and scores of each, best first, in the form that the request had."""
    return await _predict(request, batches, task, None, top_k, deadline_ms)


@router.post(_VERSION + ":predict", **_call(ROWS, COLUMNS))
async def predict_version(
    request: Request, batches: TheBatchCalls, task: TaskName, version: Number, top_k: TopK = TOP_K,
    deadline_ms: DeadlineMs = None,
) -> Response:  # fmt: skip
    """The same by a version, active or not."""
    return await _predict(request, batches, task, version, top_k, deadline_ms)


@router.post(_ONE + ":classify", **_call(EXAMPLES))
async def classify(
    request: Request, batches: TheBatchCalls, task: TaskName, top_k: TopK = TOP_K, deadline_ms: DeadlineMs = None
) -> Response:
    """Classify pictures or clips: a list of pairs for each, best first."""
    return await _classify(request, batches, task, None, top_k, deadline_ms)


@router.post(_VERSION + ":classify", **_call(EXAMPLES))
async def classify_version(
    request: Request, batches: TheBatchCalls, task: TaskName, version: Number, top_k: TopK = TOP_K,
    deadline_ms: DeadlineMs = None,
) -> Response:  # fmt: skip
    """The same by a version, active or not."""
    return await _classify(request, batches, task, version, top_k, deadline_ms)


@router.get(_ONE, responses=problems(404, 422, 503))
async def status(catalogue: TheCatalogue, engine: TheEngine, task: TaskName) -> dict[str, Any]:
    """That the task answers, in the words of both servers; its versions answer whoever names them."""
    return await _status(catalogue, engine, task, None)


@router.get(_VERSION, responses=problems(404, 422, 503))
async def version_status(catalogue: TheCatalogue, engine: TheEngine, task: TaskName, version: Number) -> dict[str, Any]:
    """The same of a version."""
    return await _status(catalogue, engine, task, version)


@router.get(_ONE + "/metadata", responses=problems(404, 422))
async def metadata(catalogue: TheCatalogue, task: TaskName) -> dict[str, Any]:
    """The signature of `:predict`, as TensorFlow Serving writes it."""
    return await _metadata(catalogue, task, None)


@router.get(_VERSION + "/metadata", responses=problems(404, 422))
async def version_metadata(catalogue: TheCatalogue, task: TaskName, version: Number) -> dict[str, Any]:
    """The same of a version."""
    return await _metadata(catalogue, task, version)


async def _predict(
    request: Request, batches: TheBatchCalls, task: str, version: int | None, top_k: int, deadline_ms: int | None
) -> Response:
    read = partial(read_serving, names=(ROWS, COLUMNS), top_k=top_k, bounds=batches.bounds)
    asked, outcomes = await batches.answer(request, task, version, deadline_ms, read)

    def write() -> bytes:
        labels = [[one.label for one in row.predictions] for row in outcomes.results]
        scores = [[one.score for one in row.predictions] for row in outcomes.results]
        if asked.columns:
            return msgspec.json.encode({"outputs": {"labels": labels, "scores": scores}})
        rows = [{"labels": row, "scores": values} for row, values in zip(labels, scores, strict=True)]
        return msgspec.json.encode({"predictions": rows})

    return Response(await written(outcomes, write), media_type="application/json")


async def _classify(
    request: Request, batches: TheBatchCalls, task: str, version: int | None, top_k: int, deadline_ms: int | None
) -> Response:
    read = partial(read_serving, names=(EXAMPLES,), top_k=top_k, bounds=batches.bounds)
    _, outcomes = await batches.answer(request, task, version, deadline_ms, read)

    def write() -> bytes:
        pairs = [[[one.label, one.score] for one in row.predictions] for row in outcomes.results]
        return msgspec.json.encode({"result": pairs})

    return Response(await written(outcomes, write), media_type="application/json")


def read_serving(body: bytes, names: Sequence[str], top_k: int, bounds: Bounds) -> ServingInputs:
    """A request's body, whose files stand under one of ``names``. Raises BadRequest and more, never anything else."""
    found = json_of(body, dict[str, Any], bounds)
    given = [name for name in names if found.get(name) is not None]
    if len(given) != 1:
        listed = " or ".join(f"'{name}'" for name in names)
        raise BadRequest(f"the request must hold {listed}, and one of them; it has {len(given)}", field="body")
    name = given[0]
    values = _column(found[name]) if name == COLUMNS else found[name]
    if not isinstance(values, list):
        raise BadRequest(f"'{name}' must be an array of pictures or clips; {shown(values)} came", field=name)
    bounds.check_items(len(values))
    files = [_file(value, f"element {place} of '{name}'", bounds) for place, value in enumerate(values)]
    return ServingInputs(files=files, top_k=top_k, columns=name == COLUMNS)


def _column(value: Any) -> Any:
    """The files of the column form: of the one input, named or not; one of them may stand alone."""
    if isinstance(value, dict) and "b64" not in value:
        if len(value) != 1:
            raise BadRequest(f"'{COLUMNS}' has {len(value)} inputs, and a task takes one", field=COLUMNS)
        (value,) = value.values()
    return value if isinstance(value, list) else [value]


def _file(value: Any, place: str, bounds: Bounds, depth: int = 0) -> bytes:
    """``{"b64": "..."}``, that under a name, or a string, which can be base64 alone: no file is text."""
    if isinstance(value, str):
        return from_base64(value, place, bounds)
    if isinstance(value, dict) and depth < MAX_DEPTH:
        names = list(value) if len(value) == 1 else [name for name in KNOWN if name in value]
        if len(names) == 1:
            return _file(value[names[0]], place, bounds, depth + 1)
    raise BadRequest(
        f'{place} is {shown(value)}, and must be {{"b64": "..."}} or {{"{INPUT}": {{"b64": "..."}}}}: the file of a '
        "picture or clip in base64, not its pixels",
        field="body",
    )


async def _status(catalogue: Catalogue, engine: TheEngine, task: str, version: int | None) -> dict[str, Any]:
    served = await catalogue.resolve(task, version)
    await engine.ready()
    every = sorted(catalogue.repository.task(task).versions, reverse=True)
    numbers = every if version is None else [served.version]
    fine = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    return {
        "name": task,
        "ready": True,
        "model_version_status": [{"version": str(number), **fine} for number in numbers],
    }


async def _metadata(catalogue: Catalogue, task: str, version: int | None) -> dict[str, Any]:
    served = await catalogue.resolve(task, version)

    def tensor(name: str, kind: str, sides: int) -> dict[str, Any]:
        shape = {"dim": [{"size": "-1", "name": ""}] * sides, "unknown_rank": False}
        return {"dtype": kind, "tensor_shape": shape, "name": name}

    signature = {
        "inputs": {INPUT: tensor(INPUT, "DT_STRING", 1)},
        "outputs": {"labels": tensor("labels", "DT_STRING", 2), "scores": tensor("scores", "DT_FLOAT", 2)},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": task, "signature_name": "", "version": str(served.version)},
        "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
    }
