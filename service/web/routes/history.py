"""The history of a task, and of all: what was changed, when, by whom, by which way.

It does not know where it is kept; the repository's past does.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from service.store.past import EventPage
from service.web.routes.common import TaskName, TheCatalogue, TheSettings, problems
from service.web.routes.tasks import Limit, page_limit

router = APIRouter(tags=["history"])

After = Annotated[
    str | SkipJsonSchema[None], Query(max_length=40, description="start after this id: the last page's next")
]


class EventShown(BaseModel):
    """One change of a task that was made."""

    id: str = Field(description="of this event; it only serves to go on after it", examples=["57"])
    time: str = Field(description="by the clock of the server that made it", examples=["2026-11-26T09:00:00.123+00:00"])
    task: str = Field(examples=["pets"])
    what: str = Field(
        description="published, staged, activated, deactivated, version_deleted, deleted, traffic, shadow, "
        "rolled_back, copied; others may come",
        examples=["published"],
    )
    version: int | None = Field(description="the version that it is about, if it is about one", examples=[3])
    digest: str | None = Field(description="of that version's file")
    by: str | None = Field(description="the name of the key; null: there were no keys, or nobody asked")
    origin: str = Field(description="http, client, cli, page, teach, sources, guard, demo, ...", examples=["http"])
    why: str | None = Field(description="the reason, of what the server did by itself")
    detail: dict[str, Any] = Field(description="what else is to be said of it", examples=[{"before": 2}])
    server: str = Field(description="the server that made it (server_name)", examples=["one"])


class HistoryAnswer(BaseModel):
    """A page of changes, newest first."""

    events: list[EventShown]
    next: str | None = Field(description="send it as `after` for the next page; null: there is none")


class TaskHistory(HistoryAnswer):
    """A page of one task's changes, newest first."""

    task: str = Field(examples=["pets"])


@router.get("/v1/tasks/{task}/history", responses=problems(400, 404, 503))
async def task_history(
    catalogue: TheCatalogue, settings: TheSettings, task: TaskName, limit: Limit = None, after: After = None
) -> TaskHistory:
    """What was done to a task, newest first, a page at a time; of one that was deleted too."""
    most = page_limit(settings, limit)
    found = await catalogue.run(lambda: catalogue.repository.past.of(task, after, most))
    return TaskHistory(task=task, events=_shown(found), next=found.next)


@router.get("/v1/history", responses=problems(400, 503))
async def whole_history(
    catalogue: TheCatalogue, settings: TheSettings, limit: Limit = None, after: After = None
) -> HistoryAnswer:
    """What was done to any task, newest first, a page at a time."""
    most = page_limit(settings, limit)
    found = await catalogue.run(lambda: catalogue.repository.past.of_all(after, most))
    return HistoryAnswer(events=_shown(found), next=found.next)


def _shown(page: EventPage) -> list[EventShown]:
    return [
        EventShown(
            id=event.id, time=event.time, task=event.task, what=event.what, version=event.version, digest=event.digest,
            by=event.by.key, origin=event.by.origin, why=event.why, detail=dict(event.detail), server=event.server,
        )
        for event in page.events
    ]  # fmt: skip
