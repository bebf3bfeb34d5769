"""Hugging Face's inference API as its ``InferenceClient`` speaks it; docs/CLIENTS.md."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from adapters.errors import AdaptError
from service.errors import BadRequest
from service.web.outcomes import Outcome
from service.web.routes.callers import TheCaller
from service.web.routes.common import TaskName, TheCatalogue, TheEngine, problems
from service.web.routes.compat.common import PROBLEMS, TheBatchCalls, Translated, json_body, written
from service.web.routes.compat.reading import (
    Bounds,
    Inputs,
    check_known,
    file_of,
    from_base64,
    is_json,
    json_of,
    positive,
    shown,
)
from service.web.routes.predict import FIELDS, TOP_K, TopK, Version

MAX_HEADER = 500


class Explained(Translated):
    """With the sentence in the header that the client shows."""

    def refusal(self, error: AdaptError, request: Request) -> Response:
        response = super().refusal(error, request)
        plain = "".join(letter if " " <= letter <= "~" else "?" for letter in error.message[:MAX_HEADER])
        response.headers["X-Error-Message"] = plain
        return response


router = APIRouter(tags=["hugging face"], route_class=Explained)

FUNCTIONS = ("softmax", "sigmoid", "none")
PARAMETERS = ("top_k", "function_to_apply")
FIXED = ("num_frames", "frame_sampling_rate")
"""Parameters of video-classification that a task's file has fixed."""


class HubRequest(msgspec.Struct):
    """The JSON form; ``options`` and what else there is are left out."""

    inputs: str | list[str]
    parameters: dict[str, Any] | None = None


_BODY = json_body(
    "A picture or clip as it is, or in base64 as `inputs`; a list of them is answered with a list of lists.",
    {
        "type": "object",
        "required": ["inputs"],
        "properties": {"inputs": {"type": "string"}, "parameters": {"type": "object"}},
    },
    "application/octet-stream", "image/jpeg", "video/mp4",
)  # fmt: skip


@router.post("/models/{task}", openapi_extra=_BODY, responses=PROBLEMS)
async def classify(
    request: Request, batches: TheBatchCalls, caller: TheCaller, task: TaskName, top_k: TopK = TOP_K,
    version: Version = None,
) -> Response:  # fmt: skip
    """Classify a picture or clip: a list of labels and scores, best first."""
    read = partial(read_hub, top_k=top_k, bounds=batches.bounds)
    asked, outcomes = await batches.answer(request, task, version, caller, read, [*FIELDS, "inputs"])
    several = isinstance(asked, ListedInputs)

    def write() -> bytes:
        rows = [_row(one) for one in outcomes.results]
        return msgspec.json.encode(rows if several else rows[0])

    return Response(await written(outcomes, write), media_type="application/json")


@router.get("/models/{task}/health", responses=problems(404, 422, 503))
async def health(catalogue: TheCatalogue, engine: TheEngine, task: TaskName) -> dict[str, str]:
    """The task has an active version that runs here, and the device computes."""
    await catalogue.resolve(task)
    await engine.ready()
    return {"status": "ok"}


@router.get("/models/{task}/info", responses=problems(404, 422))
async def info(catalogue: TheCatalogue, engine: TheEngine, task: TaskName) -> dict[str, Any]:
    """What answers: the version, its file's digest and labels, the backbone, the device."""
    served, facts = await catalogue.resolve(task), engine.facts
    return {
        "model_id": task,
        "model_sha": served.digest,
        "model_version": served.version,
        "task": f"{served.config.modality}-classification",
        "labels": list(served.config.labels),
        "backbone": facts.layout.model,
        "device": facts.device,
        "dtype": facts.dtype,
    }


class ListedInputs(Inputs):
    """A list was sent, so a list of answers comes back, also for one."""


def read_hub(body: bytes, top_k: int, bounds: Bounds) -> Inputs:
    """A request's body, JSON or a file. Raises BadRequest and more, never anything else."""
    if not is_json(body):
        return Inputs([file_of(body, "the body", bounds)], top_k)
    request = json_of(body, HubRequest, bounds)
    parameters = {name: value for name, value in (request.parameters or {}).items() if value is not None}
    if fixed := [name for name in parameters if name in FIXED]:
        raise BadRequest(
            f"'{fixed[0]}' cannot be chosen: the task's adapter file says which frames it sees; leave it out",
            field=fixed[0],
        )
    check_known("parameter", parameters, PARAMETERS)
    function = parameters.get("function_to_apply")
    if function is not None and function not in FUNCTIONS:
        raise BadRequest(
            f"'function_to_apply' must be one of {', '.join(FUNCTIONS)}; {shown(function)} came",
            field="function_to_apply", expected=list(FUNCTIONS),
        )  # fmt: skip
    texts: Sequence[str] = request.inputs if isinstance(request.inputs, list) else [request.inputs]
    bounds.check_items(len(texts))
    if isinstance(request.inputs, list):
        files = [from_base64(text, f"element {place} of 'inputs'", bounds) for place, text in enumerate(texts)]
    else:
        files = [from_base64(request.inputs, "'inputs'", bounds)]
    kind = ListedInputs if isinstance(request.inputs, list) else Inputs
    return kind(files, positive("top_k", parameters.get("top_k", top_k)), function)


def _row(outcome: Outcome) -> list[dict[str, str | float]]:
    return [{"label": one.label, "score": one.score} for one in outcome.predictions]
