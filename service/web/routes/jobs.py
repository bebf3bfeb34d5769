"""Trainings over HTTP: ask for one, look how far it is, stop it, read its report.

It knows the jobs' records; what a training is, the trainer knows.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

from service.errors import BadRequest, Conflict, UnknownJob
from service.keys import Key
from service.store.examples import Examples
from service.store.staging import disk_errors
from service.teach.jobs import Jobs
from service.teach.records import MAX_EPOCHS, JobAnswer, JobMethod, State, TrainingJob
from service.teach.split import check_examples
from service.web.routes.bodies import Memory, receive
from service.web.routes.common import (
    JobAdded,
    TaskName,
    TheBodies,
    TheExamples,
    TheJobs,
    TheSettings,
    checked_name,
    problems,
)
from service.web.routes.guard import By, Holder
from service.web.routes.tasks import Limit, page_limit

router = APIRouter(tags=["teach"])

MAX_BODY_BYTES = 4096
REPORT_HEADERS = {
    # Its styles are its own, within it; nothing else may run or be loaded, whatever a label says.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class TrainingRequest(BaseModel):
    """What to train; every member may be left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: JobMethod = Field(
        "auto",
        description="`auto`: a linear head at once, then an AdaptFormer, each activated where held-out examples say "
        "that it is better; the others: just that",
    )
    epochs: int | None = Field(
        None, ge=1, le=MAX_EPOCHS, description="passes over the examples; by default about 1,000 steps"
    )
    activate: bool = Field(True, description="false stages what is trained: it waits for an activate call")


class JobsAnswer(BaseModel):
    """One page of trainings, newest first."""

    model_config = ConfigDict(frozen=True)

    jobs: list[JobAnswer]
    count: int = Field(description="trainings on all pages together", examples=[3])
    next: str | None = Field(description="ask for the next page with ?after= this id; null: there is none")


_BODY = {
    "requestBody": {
        "required": False,
        "content": {"application/json": {"schema": TrainingRequest.model_json_schema()}},
    }
}


@router.post(
    "/v1/tasks/{task}/training",
    status_code=202,
    openapi_extra=_BODY,
    responses=problems(400, 408, 409, 413, 415, 422, 429, 503, 507),
)
async def start_training(
    request: Request, response: Response, settings: TheSettings, examples: TheExamples, jobs: TheJobs,
    added: JobAdded, bodies: TheBodies, task: TaskName, by: By,
) -> JobAnswer:  # fmt: skip
    """Train a task on its labelled examples, beside the serving: the answer is a job to look at."""
    if not settings.max_trainings:
        raise Conflict("this server trains nothing (max_trainings is 0); train with `adaptserve train`, and upload")
    async with Memory(bodies) as memory:
        await receive(
            request, memory, settings, limit=MAX_BODY_BYTES, limit_name="of this call's JSON", fields=(), json=True
        )
        asked = _asked(memory.take())
    job = await asyncio.to_thread(_add, jobs, examples, task, asked, settings.max_classes, by.key)
    added()
    response.headers["Location"] = f"{_root(request)}/v1/jobs/{job.id}"
    return _told(job, _root(request))


@router.get("/v1/jobs", responses=problems(400))
async def list_jobs(
    request: Request, settings: TheSettings, jobs: TheJobs, key: Holder,
    task: Annotated[str | SkipJsonSchema[None], Query(description="only trainings of this task")] = None,
    state: Annotated[State | SkipJsonSchema[None], Query(description="only trainings in this state")] = None,
    limit: Limit = None,
    after: Annotated[
        str | SkipJsonSchema[None], Query(max_length=64, description="start after this id: the last page's next")
    ] = None,
) -> JobsAnswer:  # fmt: skip
    """Trainings that wait, run or are over, newest first, a page at a time. Of the latter the last are kept."""
    wanted = None if task is None else checked_name(task)
    most = page_limit(settings, limit)
    found = [
        job
        for job in await asyncio.to_thread(jobs.all)
        if key.sees(job.task) and wanted in (None, job.task) and state in (None, job.state)
    ]
    rest = [job for job in found if after is None or job.id < after]
    shown = [_told(job, _root(request)) for job in rest[:most]]
    return JobsAnswer(jobs=shown, count=len(found), next=shown[-1].id if len(rest) > most else None)


@router.get("/v1/jobs/{job}", responses=problems(404))
async def one_job(request: Request, jobs: TheJobs, key: Holder, job: str) -> JobAnswer:
    """One training: how far it is, how good, what it has published."""
    return _told(await asyncio.to_thread(_seen, jobs, key, job), _root(request))


@router.delete("/v1/jobs/{job}", status_code=204, responses=problems(404, 503, 507))
async def stop_job(jobs: TheJobs, key: Holder, job: str) -> None:
    """Stop a training, if it is not over. What it has published stays."""
    await asyncio.to_thread(_seen, jobs, key, job)
    await asyncio.to_thread(jobs.cancel, job)


@router.get("/v1/jobs/{job}/reports/{version}", response_class=HTMLResponse, responses=problems(404))
async def report(jobs: TheJobs, key: Holder, job: str, version: int) -> Response:
    """The page that a training wrote: curves, classes, mistakes with their pictures."""
    await asyncio.to_thread(_seen, jobs, key, job)
    return HTMLResponse(await asyncio.to_thread(_page, jobs, job, version), headers=REPORT_HEADERS)


def _asked(body: bytes) -> TrainingRequest:
    """Raises BadRequest."""
    if not body.strip():
        return TrainingRequest()
    try:
        return TrainingRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        known = ", ".join(TrainingRequest.model_fields)
        raise BadRequest(
            f"the body is not the JSON that this call takes: {f'{where}: ' if where else ''}{first['msg'][:200]}; it "
            f"may have {known}",
            field=where or "body",
        ) from error  # fmt: skip


def _add(
    jobs: Jobs, examples: Examples, task: str, asked: TrainingRequest, max_classes: int, by: str | None
) -> TrainingJob:
    found = examples.of(task)
    check_examples(found, max_classes)
    return jobs.add(task, asked.method, found.counts, epochs=asked.epochs, activate=asked.activate, by=by)


def _seen(jobs: Jobs, key: Key, job_id: str) -> TrainingJob:
    """Of a task that the key may see; what another has is as if it were not there. Raises UnknownJob."""
    job = jobs.get(job_id)
    if not key.sees(job.task):
        raise jobs.unknown(job_id)
    return job


def _told(job: JobAnswer, root: str) -> JobAnswer:
    """Without what is the trainer's, and with addresses as this caller reaches them."""
    known: dict[str, Any] = {name: getattr(job, name) for name in JobAnswer.model_fields}
    if root:
        known["published"] = [one.model_copy(update={"report": root + one.report}) for one in job.published]
    return JobAnswer(**known)


def _page(jobs: Jobs, job_id: str, version: int) -> bytes:
    with disk_errors():
        try:
            return jobs.report(job_id, version).read_bytes()
        except FileNotFoundError as error:
            raise UnknownJob(f"the report of version {version} could not be written, or is gone") from error


def _root(request: Request) -> str:
    root: str = request.scope.get("root_path", "")
    return root
