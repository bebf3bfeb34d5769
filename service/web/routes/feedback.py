"""Feedback: a wrong answer becomes an example of the right label; and what the server was least sure of, to label.

It does not know how examples and inputs are kept; the store does.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import ValidationError

from service.errors import BadLabel, BadRequest, UnknownRequest
from service.store.recents import Recents, key_of
from service.web.archives import Entry
from service.web.caller import Caller
from service.web.example_schemas import FeedbackAnswer, FeedbackAsked, UncertainAnswer, UncertainItem
from service.web.intake import checked_label
from service.web.routes.bodies import Memory, exchange, receive
from service.web.routes.common import TaskName, TheBodies, TheIntake, TheRecents, TheSettings, file_body, problems
from service.web.routes.examples import JPEG, GivenLabel, small_picture
from service.web.routes.predict import FIELDS
from service.web.schemas import LabelScore

router = APIRouter(tags=["examples"])

MOST_UNSURE = 100
_BODY = file_body(
    "The picture or clip, as raw bytes or as one field of a form, and `?label=`; or JSON that names the request of the "
    "answer, where this server keeps inputs (`ADAPTSERVE_KEEP_RECENT`).",
    ["application/octet-stream", "image/jpeg", "video/mp4"],
    FIELDS,
)
_BODY["requestBody"]["content"]["application/json"] = {"schema": FeedbackAsked.model_json_schema()}
OFF = "this server keeps no inputs (keep_recent is 0): send the picture itself, with ?label="

Key = Annotated[
    str, Path(description="of an input, as `thumbnail` has it", json_schema_extra={"pattern": "^[0-9a-f]{32}$"})
]


@router.post(
    "/v1/tasks/{task}/feedback",
    status_code=201,
    openapi_extra=_BODY,
    responses=problems(404, 408, 413, 415, 422, 429, 500, 503, 504, 507),
)
async def feedback(
    request: Request,
    settings: TheSettings,
    bodies: TheBodies,
    intake: TheIntake,
    recents: TheRecents,
    task: TaskName,
    label: GivenLabel,
) -> FeedbackAnswer:
    """Say what is right: the picture or clip becomes an example of that label."""
    caller = Caller(settings.upload_timeout_s)
    async with Memory(bodies) as memory:
        limit = settings.max_body_bytes
        await receive(request, memory, settings, limit=limit, limit_name="max_body_bytes", fields=FIELDS, json=True)
        caller.restart()
        caller.watch(exchange(request).departed)
        data = memory.take()
        key = None
        if data.lstrip()[:1] == b"{":
            asked = _asked(data)
            told = checked_label(asked.label)
            if label not in (None, told):
                raise BadRequest(
                    f"the label is '{label}' in the address and '{told}' in the body; give one", field="label"
                )
            label, key = told, key_of(asked.request_id)
            data = await _kept(recents, task, key)
        elif label is None:
            raise BadLabel("the right label is missing; send it as ?label=cat", field="label")
        taken = await intake.add(task, [(Entry("", lambda: data), label)], caller)
    if key is not None and recents is not None:
        await asyncio.to_thread(recents.forget, task, key)
    (digest,) = taken.tally.digests
    return FeedbackAnswer(task=task, digest=digest, label=label, counts=dict(taken.tally.examples.counts))


@router.get("/v1/tasks/{task}/uncertain", responses=problems(503))
async def uncertain(request: Request, recents: TheRecents, task: TaskName) -> UncertainAnswer:
    """What the task was least sure of among the last inputs, the least sure first; empty where none are kept."""
    if recents is None:
        return UncertainAnswer(kept=False, items=[])
    root = request.scope.get("root_path", "")
    found = await asyncio.to_thread(recents.unsure, task, MOST_UNSURE)
    return UncertainAnswer(
        kept=True,
        items=[
            UncertainItem(
                request_id=one.request_id, created=one.created,
                predictions=[LabelScore(**said) for said in one.answers[task]],
                thumbnail=f"{root}/v1/tasks/{task}/uncertain/{one.key}/thumbnail",
            )
            for one in found
        ],
    )  # fmt: skip


@router.get(
    "/v1/tasks/{task}/uncertain/{key}/thumbnail",
    response_class=Response,
    responses=problems(404, 422, 429, 503, 504) | JPEG,
)
async def thumbnail_of_input(
    request: Request, settings: TheSettings, recents: TheRecents, intake: TheIntake, task: TaskName, key: Key
) -> Response:
    """A small JPEG of an input that is kept."""
    if recents is None:
        raise UnknownRequest(OFF, field="keep_recent")
    found = await asyncio.to_thread(recents.find, task, key)
    return await small_picture(request, key, lambda caller: intake.small(found.read, caller), settings)


async def _kept(recents: Recents | None, task: str, key: str) -> bytes:
    if recents is None:
        raise UnknownRequest(OFF, field="keep_recent")
    found = recents

    return await asyncio.to_thread(lambda: found.find(task, key).read())


def _asked(data: bytes) -> FeedbackAsked:
    """Raises BadRequest."""
    try:
        return FeedbackAsked.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise BadRequest(
            f'{where}: {first["msg"].lower()}; send {{"request_id": "...", "label": "cat"}}', field=where
        ) from error
