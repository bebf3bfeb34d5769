"""Tasks and their versions: list, history, download, activate, delete.

It does not know files or folders; the catalogue and the repository do.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, BinaryIO, cast

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.repository import VersionInfo
from service.routes.common import AtHand, TaskName, problems
from service.routes.guard import Holder
from service.schemas import TaskAnswer, TaskCounts, TasksAnswer, VersionAnswer, VersionsAnswer
from service.serving.parts import Parts

router = APIRouter(tags=["tasks"])

CHUNK = 256 * 1024

Number = Annotated[int, Path(ge=1, description="a version's number", examples=[1])]


@router.get("/v1/tasks")
async def tasks(parts: AtHand, key: Holder) -> TasksAnswer:
    """Everything that is served and that the key may see, in the order of the names."""
    layout = parts.catalogue.layout
    return TasksAnswer(
        backbone=layout.model,
        fingerprint=layout.fingerprint,
        parameters=layout.parameters,
        tasks=[await _task(parts, name) for name in parts.catalogue.names() if key.sees(name)],
    )


@router.get("/v1/tasks/{task}", responses=problems(400, 404))
async def one_task(parts: AtHand, task: TaskName) -> TaskAnswer:
    """One task: its labels, its active version, where that is, and how often it was asked."""
    return await _task(parts, task)


@router.get("/v1/tasks/{task}/versions", responses=problems(400, 404))
async def versions(parts: AtHand, task: TaskName) -> VersionsAnswer:
    """Every version that is kept, oldest first."""
    kept = parts.repository.task(task).versions
    return VersionsAnswer(
        task=task, versions=[VersionAnswer(**version_fields(parts, info)) for _, info in sorted(kept.items())]
    )


@router.get("/v1/tasks/{task}/versions/{version}", responses=problems(400, 404))
async def one_version(parts: AtHand, task: TaskName, version: Number) -> VersionAnswer:
    """One version: its digest, size and age."""
    return VersionAnswer(**version_fields(parts, parts.repository.version(task, version)))


@router.get(
    "/v1/tasks/{task}/versions/{version}/adapter",
    response_class=StreamingResponse,
    responses=problems(400, 404)
    | {200: {"content": {"application/octet-stream": {}}}, 304: {"description": "You have it."}},
)
async def download(request: Request, parts: AtHand, task: TaskName, version: Number) -> Response:
    """The file as it was uploaded; its digest is the ETag."""
    info = parts.repository.version(task, version)
    headers = {"ETag": f'"{info.digest}"', "Cache-Control": "no-cache"}
    if info.digest in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    # Opened before the answer starts, so a version deleted meanwhile is still sent whole.
    file = await asyncio.to_thread(parts.catalogue.open, task, version)
    headers["Content-Length"] = str(info.size)
    headers["Content-Disposition"] = f'attachment; filename="{task}-{version}.safetensors"'
    return _Download(file, headers=headers, media_type="application/octet-stream")


@router.post("/v1/tasks/{task}/versions/{version}/activate", responses=problems(400, 404, 503, 507))
async def activate(parts: AtHand, task: TaskName, version: Number) -> TaskAnswer:
    """Let a version answer, at once: roll back, roll forward, or start one that was staged."""
    await asyncio.to_thread(parts.repository.activate, task, version)
    return await _task(parts, task)


@router.delete("/v1/tasks/{task}", status_code=204, responses=problems(400, 404, 503, 507))
async def delete_task(parts: AtHand, task: TaskName) -> None:
    """Remove a task with all its versions. Requests under way end on it."""
    await asyncio.to_thread(parts.catalogue.delete_task, task)
    parts.counts.forget(task)


@router.delete("/v1/tasks/{task}/versions/{version}", status_code=204, responses=problems(400, 404, 409, 503, 507))
async def delete_version(parts: AtHand, task: TaskName, version: Number) -> None:
    """Remove a version that is not the active one."""
    await asyncio.to_thread(parts.catalogue.delete_version, task, version)


def version_fields(parts: Parts, info: VersionInfo) -> dict[str, Any]:
    """A version as the wire shows it."""
    return {
        "task": info.task,
        "version": info.number,
        "digest": info.digest,
        "bytes": info.size,
        "created": info.created,
        "active": parts.catalogue.active(info.task) == info.number,
    }


async def _task(parts: Parts, name: str) -> TaskAnswer:
    listed = await parts.catalogue.listing(name)
    description, active = listed.description, listed.task.active
    config = description.config if description else None
    parameters = description.parameters if description else None
    answered, failed = parts.counts.of(name)
    return TaskAnswer(
        task=name,
        modality=config.modality if config else None,
        version=active,
        digest=listed.shown.digest if active is not None else None,
        labels=list(config.labels) if config else [],
        score=config.score if config else None,
        frames=config.frames if config else None,
        parameters=parameters,
        share=None if parameters is None else parameters / parts.catalogue.layout.parameters,
        residency=cast(Any, parts.bank.tier(listed.shown.digest)),
        versions=len(listed.task.versions),
        problem=listed.problem,
        requests=TaskCounts(answered=answered, failed=failed),
    )


class _Download(StreamingResponse):
    """A file's bytes; however the answer ends, the file is closed with it."""

    def __init__(self, file: BinaryIO, **kwargs: Any) -> None:
        self._file = file
        super().__init__(iter(lambda: file.read(CHUNK), b""), **kwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)
