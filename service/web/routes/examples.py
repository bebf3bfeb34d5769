"""Labelled examples of a task: add, list, look at, delete.

It does not know where they are kept, nor what makes a file good; the store and ``service.web.intake`` do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic.json_schema import SkipJsonSchema

from service.settings import Settings
from service.watch.logs import BatchProgress
from service.web.caller import Caller
from service.web.example_schemas import ExampleAnswer, ExamplesAdded, ExamplesAnswer, RejectedExample
from service.web.intake import SHORT_SIDE, SUFFIXES, Taken, checked_label, labelled
from service.web.middleware import PROGRESS
from service.web.pages import page
from service.web.problems import document
from service.web.routes.batch_body import ALONE, GZIP, TAR, ZIP, BatchBody
from service.web.routes.bodies import exchange, receive
from service.web.routes.common import TaskName, TheBatches, TheExamples, TheIntake, TheSettings, problems
from service.web.routes.download import KeptFile, matches
from service.web.routes.parameters import declared
from service.web.routes.tasks import Limit, page_limit, rendered
from service.web.schemas import Problem

router = APIRouter(tags=["examples"])

PATH = "/v1/tasks/{task}/examples"
_FILE = {"type": "string", "format": "binary"}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One picture or clip as raw bytes, or many: as a form with files under any field names, as a "
        "zip, or as a tar, which gzip may have packed. Which of them is found out from the bytes.",
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "additionalProperties": _FILE, "minProperties": 1}},
            **{kind: {"schema": _FILE} for kind in (ALONE, "image/jpeg", "video/mp4", ZIP, TAR, GZIP)},
        },
    }
}
JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": _FILE}}},
    304: {"description": "You have it."},
}

Digest = Annotated[
    str, Path(description="sha256 of the example's bytes", json_schema_extra={"pattern": "^[0-9a-f]{64}$"})
]


async def given_label(
    label: Annotated[
        str | SkipJsonSchema[None], Query(description="the label, 1 to 256 characters", examples=["cat"])
    ] = None,
) -> str | None:
    """Raises TrainingError for what cannot be one."""
    return None if label is None else checked_label(label)


GivenLabel = Annotated[str | None, Depends(given_label)]


@router.post(
    PATH, status_code=201, openapi_extra=_BODY, responses=problems(408, 413, 415, 422, 429, 500, 503, 504, 507)
)
async def add_examples(
    request: Request,
    settings: TheSettings,
    batches: TheBatches,
    intake: TheIntake,
    task: TaskName,
    label: GivenLabel,
) -> ExamplesAdded:
    """Add labelled pictures or clips to a task, which need not exist yet. They are kept until they are deleted.

    Without `label` each file of an archive has that of its folder: `cat/1.jpg`. Each is decoded before it is taken. The
    same bytes again change nothing; under another label they move there.
    """
    caller = Caller(settings.batch_timeout_s)
    progress = request.scope["state"][PROGRESS] = BatchProgress()
    place = await batches.enter()
    try:
        headers = request.headers
        query = declared(request).query
        body = BatchBody(headers.get("content-type"), query, place.spool, batches.pool, settings, alone=True)
        limit = settings.max_batch_bytes
        name = await receive(request, body, settings, limit=limit, limit_name="max_batch_bytes", fields=())
        body.name = name or ""
        caller.restart()
        caller.watch(exchange(request).departed)
        files = labelled(await body.entries(caller), label)
        progress.items = progress.failed = len(files)
        taken = await intake.add(task, files, caller)
    finally:
        place.leave()
    progress.failed = len(taken.rejected)
    progress.answered = progress.items - progress.failed
    return added(task, taken, request.state.request_id)


@router.get(PATH, response_model=ExamplesAnswer, responses=problems(422))
async def list_examples(
    request: Request,
    settings: TheSettings,
    examples: TheExamples,
    task: TaskName,
    label: GivenLabel,
    limit: Limit = None,
    after: Annotated[
        int | SkipJsonSchema[None], Query(ge=0, description="start after this number: the last page's next")
    ] = None,
) -> Response:
    """A task's examples, of one label or of all, oldest first, a page at a time."""
    most, root = page_limit(settings, limit), request.scope.get("root_path", "")

    def make() -> ExamplesAnswer:
        found = examples.of(task)
        shown = {e.number: e for e in found.items if label in (None, e.label)}
        part = page(list(shown), after, most)
        return ExamplesAnswer(
            task=task, counts=dict(found.counts), bytes=found.bytes, count=part.count, next=part.next,
            examples=[
                ExampleAnswer(
                    digest=e.digest, label=e.label, modality=e.modality, media_type=e.media_type, bytes=e.bytes,
                    added=e.added, thumbnail=f"{root}/v1/tasks/{task}/examples/{e.digest}/thumbnail",
                )
                for e in (shown[number] for number in part.items)
            ],
        )  # fmt: skip

    return await rendered(make)


@router.get(
    PATH + "/{digest}",
    response_class=Response,
    responses=problems(404, 416)
    | {
        200: {"content": {kind: {"schema": _FILE} for kind in SUFFIXES}},
        206: {"description": "The bytes that Range asks for."},
        304: {"description": "You have it."},
    },
)
async def one_example(request: Request, examples: TheExamples, task: TaskName, digest: Digest) -> Response:
    """The bytes as they were sent, or one range of them; the digest is the ETag."""
    found = await asyncio.to_thread(examples.example, task, digest)
    name = f"{digest[:16]}.{SUFFIXES.get(found.media_type, 'bin')}"
    kept = KeptFile(digest, found.bytes, name, lambda: examples.open(task, digest), found.media_type)
    return await kept.answer(request)


@router.get(PATH + "/{digest}/thumbnail", response_class=Response, responses=problems(404, 422, 429, 504) | JPEG)
async def thumbnail_of_example(
    request: Request, settings: TheSettings, examples: TheExamples, intake: TheIntake, task: TaskName, digest: Digest
) -> Response:
    """A small JPEG, 96 pixels on its short side; of a clip its middle frame."""
    await asyncio.to_thread(examples.example, task, digest)
    return await small_picture(request, digest, lambda caller: intake.thumbnail(task, digest, caller), settings)


@router.delete(PATH, status_code=204, responses=problems(404, 422, 507))
async def delete_examples(examples: TheExamples, task: TaskName, label: GivenLabel) -> None:
    """Remove a task's examples, of one label or all; what was trained with them stays."""
    if label is None:
        await asyncio.to_thread(examples.clear, task)
    else:
        await asyncio.to_thread(lambda: examples.remove(task, label=label))


@router.delete(PATH + "/{digest}", status_code=204, responses=problems(404, 507))
async def delete_example(examples: TheExamples, task: TaskName, digest: Digest) -> None:
    """Remove one example."""
    await asyncio.to_thread(lambda: examples.remove(task, digest=digest))


def added(task: str, taken: Taken, request_id: str) -> ExamplesAdded:
    """An addition as the wire shows it."""
    tally = taken.tally
    return ExamplesAdded(
        task=task, added=tally.added, duplicates=tally.duplicates, moved=tally.moved,
        counts=dict(tally.examples.counts), bytes=tally.examples.bytes,
        rejected=[
            RejectedExample(name=name, problem=Problem.model_validate(document(error, request_id)))
            for name, error in taken.rejected
        ],
    )  # fmt: skip


async def small_picture(
    request: Request, digest: str, make: Callable[[Caller], Awaitable[bytes]], settings: Settings
) -> Response:
    """A small JPEG of bytes that never change, or word that the caller has it already."""
    tag = f'"{digest[:32]}-{SHORT_SIDE}"'
    headers = {
        "ETag": tag, "Cache-Control": "private, max-age=86400", "Vary": "Authorization, X-API-Key",
        "X-Content-Type-Options": "nosniff",
    }  # fmt: skip
    if matches(", ".join(request.headers.getlist("if-none-match")), tag):
        return Response(status_code=304, headers=headers)
    caller = Caller(settings.deadline_s)
    caller.watch(exchange(request).departed)
    return Response(await make(caller), headers=headers, media_type="image/jpeg")
