"""The upload endpoint: an adapter file in, a version out.

It does not know what makes a file good; ``service.web.uploads`` does.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.web.caller import Caller
from service.web.routes.bodies import exchange, receive
from service.web.routes.callers import asker_of
from service.web.routes.common import (
    TaskName,
    TheCatalogue,
    TheSettings,
    TheUploads,
    file_body,
    problems,
    tell_generation,
)
from service.web.routes.guard import By, Holder
from service.web.routes.tasks import version_fields
from service.web.schemas import UploadAnswer

router = APIRouter(tags=["tasks"])

_BODY = file_body(
    "A .safetensors adapter file, as raw bytes with any or no Content-Type, or as the field `file` of a form.",
    ["application/octet-stream"],
    ["file"],
)


@router.put(
    "/v1/tasks/{task}/adapter",
    status_code=201,
    openapi_extra=_BODY,
    responses=problems(408, 413, 415, 422, 429, 500, 503, 504, 507)
    | {200: {"description": "The task has had these very bytes before.", "model": UploadAnswer}},
)
async def upload(
    request: Request,
    response: Response,
    settings: TheSettings,
    catalogue: TheCatalogue,
    uploads: TheUploads,
    task: TaskName,
    holder: Holder,
    by: By,
    activate: Annotated[bool, Query(description="false stages the version: it waits for an activate call")] = True,
) -> UploadAnswer:
    """Publish a version. It is checked and tried first; when this returns, it answers and survives a crash."""
    limit = settings.max_adapter_bytes
    caller = Caller(settings.upload_timeout_s, asker_of(holder))
    async with uploads.staging(limit) as staged:
        filename = await receive(
            request, staged, settings, limit=limit, limit_name="max_adapter_bytes", fields=["file"]
        )
        caller.restart()
        caller.watch(exchange(request).departed)
        done = await uploads.publish(staged, task, filename, caller, activate=activate, by=by)
    response.status_code = 201 if done.created else 200
    root = request.scope.get("root_path", "")
    response.headers["Location"] = f"{root}/v1/tasks/{task}/versions/{done.info.number}"
    tell_generation(response, catalogue, task)
    config = done.header.config
    return UploadAnswer(
        **version_fields(catalogue, done.info),
        modality=config.modality,
        labels=list(config.labels),
        parameters=done.header.parameters,
        share=done.header.parameters / catalogue.layout.parameters,
    )
