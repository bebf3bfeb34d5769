"""Tasks and their versions: list, history, activate, delete.

It does not know files or folders; the catalogue and the repository do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel
from pydantic.json_schema import SkipJsonSchema

from adapters.config import AdapterConfig
from service.engine.interface import Facts, Link
from service.errors import BadRequest, UnknownTask
from service.settings import Settings
from service.store.catalogue import Catalogue, Listing
from service.store.events import Actor
from service.store.examples import Examples
from service.store.recents import Recents
from service.store.repository import TaskInfo, VersionInfo
from service.watch.counts import Counting
from service.web.pages import Page, page, starting_with
from service.web.routes.common import (
    Number,
    TaskName,
    TheCatalogue,
    TheCounts,
    TheEngine,
    TheExamples,
    TheJobs,
    TheRecents,
    TheSettings,
    problems,
    tell_generation,
)
from service.web.routes.guard import By, Holder, visible
from service.web.schemas import TaskAnswer, TaskCounts, TasksAnswer, VersionAnswer, VersionsAnswer

router = APIRouter(tags=["tasks"])

MAX_NAME = 64
"""Characters of a task's name."""

Limit = Annotated[int | SkipJsonSchema[None], Query(ge=1, description="the most on this page; up to max_page_items")]
"""None: the setting page_items."""


class Shown:
    """Tasks as the wire shows them: what the catalogue, the engine and the counts know of each."""

    def __init__(self, catalogue: Catalogue, engine: Link, counts: Counting) -> None:
        self.catalogue, self._engine, self._counts = catalogue, engine, counts

    async def one(self, name: str) -> TaskAnswer:
        """Raises UnknownTask."""
        (answer,) = await self._answers([await self.catalogue.listing(name)])
        return answer

    async def page(self, shown: Page[str]) -> TasksAnswer:
        """Those of its tasks that are still there."""
        facts = self._engine.facts
        listed = await asyncio.to_thread(lambda: list(self.catalogue.listings(shown.items)))
        return TasksAnswer(
            backbone=facts.layout.model,
            fingerprint=facts.layout.fingerprint,
            parameters=facts.layout.parameters,
            input_size=facts.layout.input_size,
            frames=facts.layout.frames,
            dtype=cast(Any, facts.dtype),
            tasks=await self._answers(listed),
            count=shown.count,
            next=shown.next,
        )

    async def _answers(self, listed: Sequence[Listing]) -> list[TaskAnswer]:
        tiers = await self._engine.tiers([one.shown.digest for one in listed])
        counts = await self._counts.of([one.task.name for one in listed])
        facts = self._engine.facts
        return await asyncio.to_thread(
            lambda: [_answer(facts, one, tier, counts[one.task.name]) for one, tier in zip(listed, tiers, strict=True)]
        )


async def shown(catalogue: TheCatalogue, engine: TheEngine, counts: TheCounts) -> Shown:
    """For the endpoints that answer with tasks."""
    return Shown(catalogue, engine, counts)


TheTasks = Annotated[Shown, Depends(shown)]


@router.get("/v1/tasks", response_model=TasksAnswer, responses=problems(400))
async def tasks(
    shown: TheTasks,
    settings: TheSettings,
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
    names = visible(shown.catalogue, key)
    answer = await shown.page(page(starting_with(names, prefix), after, page_limit(settings, limit)))
    return await rendered(lambda: answer)


@router.get("/v1/tasks/{task}", responses=problems(400, 404))
async def one_task(shown: TheTasks, task: TaskName) -> TaskAnswer:
    """One task: its labels, its active version, where that is, and how often it was asked."""
    return await shown.one(task)


@router.get("/v1/tasks/{task}/versions", response_model=VersionsAnswer, responses=problems(400, 404))
async def versions(
    catalogue: TheCatalogue,
    settings: TheSettings,
    task: TaskName,
    limit: Limit = None,
    after: Annotated[
        int | SkipJsonSchema[None], Query(ge=0, description="start after this number: the last page's next")
    ] = None,
) -> Response:
    """The versions that are kept, oldest first, a page at a time."""
    info = catalogue.repository.task(task)
    part = page(sorted(info.versions), after, page_limit(settings, limit))
    return await rendered(lambda: _versions(catalogue, info, part))


@router.get("/v1/tasks/{task}/versions/{version}", responses=problems(400, 404))
async def one_version(catalogue: TheCatalogue, task: TaskName, version: Number) -> VersionAnswer:
    """One version: its digest, size and age."""
    return VersionAnswer(**version_fields(catalogue, catalogue.repository.version(task, version)))


@router.get("/v1/tasks/{task}/versions/{version}/config", response_model=AdapterConfig, responses=problems(400, 404))
async def version_config(catalogue: TheCatalogue, task: TaskName, version: Number) -> Response:
    """What the file of a version says of itself, how it was trained as well."""
    info = catalogue.repository.version(task, version)
    await catalogue.repository.bring(info)
    return await rendered(lambda: catalogue.header(info).config)


@router.post("/v1/tasks/{task}/versions/{version}/activate", responses=problems(400, 404, 503, 507))
async def activate(shown: TheTasks, response: Response, task: TaskName, version: Number, by: By) -> TaskAnswer:
    """Let a version answer, at once: roll back, roll forward, or start one that was staged."""
    catalogue = shown.catalogue
    await catalogue.run(lambda: catalogue.activate(task, version, by))
    tell_generation(response, catalogue, task)
    return await shown.one(task)


@router.delete("/v1/tasks/{task}", status_code=204, responses=problems(400, 404, 503, 507))
async def delete_task(
    catalogue: TheCatalogue, counts: TheCounts, examples: TheExamples, recents: TheRecents, jobs: TheJobs,
    response: Response, task: TaskName, by: By,
) -> None:  # fmt: skip
    """Remove a task with all its versions, labelled examples and trainings. Requests under way end on it."""
    await asyncio.to_thread(jobs.forget, task)
    await catalogue.run(lambda: _delete_task(catalogue, examples, recents, task, by))
    tell_generation(response, catalogue, task)
    counts.forget(task)


def _delete_task(catalogue: Catalogue, examples: Examples, recents: Recents | None, task: str, by: Actor) -> None:
    """Raises UnknownTask where there was neither a version nor an example; a call that failed may be repeated."""
    unknown = None
    try:
        catalogue.delete_task(task, by)
    except UnknownTask as error:
        unknown = error
    had = examples.clear(task)
    if recents is not None:
        recents.forget(task)
    if unknown is not None and not had:
        raise unknown


@router.delete("/v1/tasks/{task}/versions/{version}", status_code=204, responses=problems(400, 404, 409, 503, 507))
async def delete_version(catalogue: TheCatalogue, response: Response, task: TaskName, version: Number, by: By) -> None:
    """Remove a version that is not the active one, has no part of the traffic and is not the shadow."""
    await catalogue.run(lambda: catalogue.delete_version(task, version, by))
    tell_generation(response, catalogue, task)


def version_fields(catalogue: Catalogue, info: VersionInfo) -> dict[str, Any]:
    """A version as the wire shows it."""
    return {
        "task": info.task,
        "version": info.number,
        "digest": info.digest,
        "bytes": info.size,
        "created": info.created,
        "active": catalogue.active(info.task) == info.number,
    }


def page_limit(settings: Settings, asked: int | None) -> int:
    """How much goes on a page. Raises BadRequest."""
    most = settings.max_page_items
    if asked is None:
        return min(settings.page_items, most)
    if asked > most:
        raise BadRequest(
            f"limit is {asked}, the most on one page is {most} (max_page_items); follow next for the rest",
            field="limit", limit=most, value=asked,
        )  # fmt: skip
    return asked


async def rendered(make: Callable[[], BaseModel]) -> Response:
    """An answer of any length, made and written as JSON off the event loop."""
    content = await asyncio.to_thread(lambda: make().model_dump_json())
    return Response(content, media_type="application/json")


def _versions(catalogue: Catalogue, task: TaskInfo, shown: Page[int]) -> VersionsAnswer:
    return VersionsAnswer(
        task=task.name,
        versions=[VersionAnswer(**version_fields(catalogue, task.versions[number])) for number in shown.items],
        count=shown.count,
        next=shown.next,
    )


def _answer(facts: Facts, listed: Listing, tier: str, counts: tuple[int, int]) -> TaskAnswer:
    config, active = listed.config, listed.task.active
    answered, failed = counts
    return TaskAnswer(
        task=listed.task.name,
        modality=config.modality if config else None,
        version=active,
        digest=listed.shown.digest if active is not None else None,
        labels=list(config.labels) if config else [],
        classes=listed.classes,
        score=config.score if config else None,
        frames=config.frames if config else None,
        views=config.views if config else None,
        accuracy=listed.accuracy,
        parameters=listed.parameters,
        share=None if listed.parameters is None else listed.parameters / facts.layout.parameters,
        residency=cast(Any, tier),
        versions=len(listed.task.versions),
        problem=listed.problem,
        requests=TaskCounts(answered=answered, failed=failed),
    )
