"""Tasks and their versions: list, history, activate, delete.

It does not know files or folders; the catalogue and the repository do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel
from pydantic.json_schema import SkipJsonSchema

from service.errors import BadRequest
from service.store.catalogue import Listing
from service.store.repository import TaskInfo, VersionInfo
from service.web.pages import Page, page, starting_with
from service.web.parts import Parts
from service.web.routes.common import AtHand, Number, TaskName, problems
from service.web.routes.guard import Holder
from service.web.schemas import TaskAnswer, TaskCounts, TasksAnswer, VersionAnswer, VersionsAnswer

router = APIRouter(tags=["tasks"])

MAX_NAME = 64
"""Characters of a task's name."""

Limit = Annotated[int | SkipJsonSchema[None], Query(ge=1, description="the most on this page; up to max_page_items")]
"""None: the setting page_items."""


@router.get("/v1/tasks", response_model=TasksAnswer, responses=problems(400))
async def tasks(
    parts: AtHand,
    key: Holder,
    limit: Limit = None,
    after: Annotated[
        str | SkipJsonSchema[None],
        Query(max_length=MAX_NAME, description="start after this name: the last page's next"),
    ] = None,
    prefix: Annotated[str, Query(max_length=MAX_NAME, description="only names that start so")] = "",
) -> Response:
    """What is served and the key may see, in the order of the names, a page at a time.

    Follow `next` until it is null: a task that is there all the while comes exactly once.
    """
    names = parts.catalogue.names() if key.tasks is None else [n for n in sorted(key.tasks) if parts.catalogue.has(n)]
    shown = page(starting_with(names, prefix), after, _limit(parts, limit))
    return await _rendered(lambda: _tasks(parts, shown))


@router.get("/v1/tasks/{task}", responses=problems(400, 404))
async def one_task(parts: AtHand, task: TaskName) -> TaskAnswer:
    """One task: its labels, its active version, where that is, and how often it was asked."""
    return await _task(parts, task)


@router.get("/v1/tasks/{task}/versions", response_model=VersionsAnswer, responses=problems(400, 404))
async def versions(
    parts: AtHand,
    task: TaskName,
    limit: Limit = None,
    after: Annotated[
        int | SkipJsonSchema[None], Query(ge=0, description="start after this number: the last page's next")
    ] = None,
) -> Response:
    """The versions that are kept, oldest first, a page at a time."""
    info = parts.repository.task(task)
    shown = page(sorted(info.versions), after, _limit(parts, limit))
    return await _rendered(lambda: _versions(parts, info, shown))


@router.get("/v1/tasks/{task}/versions/{version}", responses=problems(400, 404))
async def one_version(parts: AtHand, task: TaskName, version: Number) -> VersionAnswer:
    """One version: its digest, size and age."""
    return VersionAnswer(**version_fields(parts, parts.repository.version(task, version)))


@router.post("/v1/tasks/{task}/versions/{version}/activate", responses=problems(400, 404, 503, 507))
async def activate(parts: AtHand, task: TaskName, version: Number) -> TaskAnswer:
    """Let a version answer, at once: roll back, roll forward, or start one that was staged."""
    await asyncio.to_thread(parts.catalogue.activate, task, version)
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


def _limit(parts: Parts, asked: int | None) -> int:
    """How much goes on a page. Raises BadRequest."""
    most = parts.settings.max_page_items
    if asked is None:
        return min(parts.settings.page_items, most)
    if asked > most:
        raise BadRequest(
            f"limit is {asked}, the most on one page is {most} (max_page_items); follow next for the rest",
            field="limit", limit=most, value=asked,
        )  # fmt: skip
    return asked


async def _rendered(make: Callable[[], BaseModel]) -> Response:
    """An answer of any length, made and written as JSON off the event loop."""
    content = await asyncio.to_thread(lambda: make().model_dump_json())
    return Response(content, media_type="application/json")


def _tasks(parts: Parts, shown: Page[str]) -> TasksAnswer:
    layout = parts.catalogue.layout
    return TasksAnswer(
        backbone=layout.model,
        fingerprint=layout.fingerprint,
        parameters=layout.parameters,
        dtype=cast(Any, str(parts.backbone.dtype).removeprefix("torch.")),
        tasks=[_answer(parts, listed) for listed in parts.catalogue.listings(shown.items)],
        count=shown.count,
        next=shown.next,
    )


def _versions(parts: Parts, task: TaskInfo, shown: Page[int]) -> VersionsAnswer:
    return VersionsAnswer(
        task=task.name,
        versions=[VersionAnswer(**version_fields(parts, task.versions[number])) for number in shown.items],
        count=shown.count,
        next=shown.next,
    )


async def _task(parts: Parts, name: str) -> TaskAnswer:
    return _answer(parts, await parts.catalogue.listing(name))


def _answer(parts: Parts, listed: Listing) -> TaskAnswer:
    config, active = listed.config, listed.task.active
    answered, failed = parts.counts.of(listed.task.name)
    return TaskAnswer(
        task=listed.task.name,
        modality=config.modality if config else None,
        version=active,
        digest=listed.shown.digest if active is not None else None,
        labels=list(config.labels) if config else [],
        classes=listed.classes,
        score=config.score if config else None,
        frames=config.frames if config else None,
        parameters=listed.parameters,
        share=None if listed.parameters is None else listed.parameters / parts.catalogue.layout.parameters,
        residency=cast(Any, parts.bank.tier(listed.shown.digest)),
        versions=len(listed.task.versions),
        problem=listed.problem,
        requests=TaskCounts(answered=answered, failed=failed),
    )
