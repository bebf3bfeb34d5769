"""What several endpoints share: what was built, names checked, problem documents and bodies for /docs.

It holds no behaviour of its own beyond that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import Depends, Path, Request, Response

from adapters.config import TASK_PATTERN, is_task_name
from service.engine.interface import Link
from service.errors import BadTaskName
from service.settings import Settings
from service.store.catalogue import Catalogue
from service.store.examples import Examples
from service.store.recents import Recents
from service.teach.jobs import Jobs
from service.watch.counts import Counting
from service.watch.metrics import UNKNOWN, Metrics
from service.watch.versions import Ledger
from service.web.batches import BatchRunner
from service.web.budget import Budget
from service.web.intake import Intake
from service.web.problems import MEDIA_TYPE
from service.web.schemas import Problem
from service.web.uploads import Uploads

GENERATION = "X-AdaptServe-Generation"
"""Of an answer: the number of the change. Of a request: the answer must be by what is known after that change."""

_PROBLEMS = {
    400: "The request is malformed.",
    401: "No key came, or an unknown one.",
    403: "The key lacks the scope or is limited to other tasks, or a page of another origin asks.",
    404: "No such task or version.",
    408: "The body came too slowly.",
    409: "The present state forbids it.",
    413: "The body, picture, clip or adapter passes a limit.",
    415: "Not a format that is read here.",
    416: "No byte of the file is in the range.",
    421: "The Host is no name of this server.",
    422: "Readable, but wrong.",
    429: "A queue is full; Retry-After says when to come back.",
    500: "Our own fault: the forward pass failed, also alone. The log has the details.",
    503: "Starting, stopping, or the device does not answer.",
    504: "The deadline passed.",
    507: "No room on the disk or the device.",
}


def _built(name: str) -> Any:
    """What ``service.web.app`` has built under that name."""

    async def get(request: Request) -> Any:  # as every dependency, so that none is a job for a thread
        return getattr(request.app.state, name)

    return Depends(get)


TheSettings = Annotated[Settings, _built("settings")]
TheEngine = Annotated[Link, _built("engine")]
TheCatalogue = Annotated[Catalogue, _built("catalogue")]
TheUploads = Annotated[Uploads, _built("uploads")]
TheCounts = Annotated[Counting, _built("counts")]
TheMetrics = Annotated[Metrics, _built("metrics")]
TheBodies = Annotated[Budget, _built("bodies")]
TheBatches = Annotated[BatchRunner, _built("batches")]
TheLedger = Annotated[Ledger, _built("ledger")]
TheExamples = Annotated[Examples, _built("examples")]
TheIntake = Annotated[Intake, _built("intake")]
TheRecents = Annotated[Recents | None, _built("recents")]
"""None: no inputs are kept."""
TheJobs = Annotated[Jobs, _built("jobs")]
JobAdded = Annotated[Callable[[], None], _built("job_added")]
"""To be called when there is another training."""


def checked_name(task: str) -> str:
    """The name, if it is one. Raises BadTaskName."""
    if not is_task_name(task):
        raise BadTaskName(
            f"'{task[:80]}' is no task name: use 1 to 64 of a-z, 0-9, '.', '_' and '-', first a letter or digit",
            field="task", expected=TASK_PATTERN, got=task[:80],
        )  # fmt: skip
    return task


SHAPE: dict[str, Any] = {"pattern": TASK_PATTERN}
"""For /docs alone: the check is ours, whose sentence says more than the framework's."""


async def named(
    request: Request,
    catalogue: TheCatalogue,
    task: Annotated[str, Path(description="a task's name", examples=["digits"], json_schema_extra=SHAPE)],
) -> str:
    """The task in the address, checked, and put down for the metrics."""
    name = checked_name(task)
    count_for(request, catalogue, [name])
    return name


TaskName = Annotated[str, Depends(named)]
Number = Annotated[int, Path(ge=1, description="a version's number", examples=[1])]


def count_for(request: Request, catalogue: Catalogue, tasks: Sequence[str]) -> None:
    """Whom this request counts for; names that do not exist count together."""
    request.scope["state"]["tasks"] = [task if catalogue.has(task) else UNKNOWN for task in tasks]


def tell_generation(response: Response, catalogue: Catalogue, task: str) -> None:
    """Say by which number other servers of the store know what was just changed; whoever sends it sees the change."""
    number = catalogue.repository.generation(task)
    if number is not None:
        response.headers[GENERATION] = str(number)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of an endpoint for /docs."""
    return {
        status: {"description": _PROBLEMS[status], "model": Problem, "content": {MEDIA_TYPE: {}}} for status in statuses
    }


def file_body(description: str, media_types: list[str], fields: list[str]) -> dict[str, Any]:
    """The ``openapi_extra`` of an endpoint that reads its body itself, raw or as a form."""
    binary = {"type": "string", "format": "binary"}
    content: dict[str, Any] = {kind: {"schema": binary} for kind in media_types}
    content["multipart/form-data"] = {
        "schema": {
            "type": "object",
            "properties": dict.fromkeys(fields, binary),
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
        }
    }
    return {"requestBody": {"required": True, "description": description, "content": content}}
