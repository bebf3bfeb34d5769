"""Who waits for an answer, and for how long: the headers X-Deadline-Ms and X-Priority, and whose key came.

It runs after the guard. It does not know what is asked.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic.json_schema import SkipJsonSchema

from service.errors import BadRequest, Forbidden
from service.keys import EVERYBODY, MAX_PRIORITY, Key
from service.messages import NOBODY, Asker
from service.settings import Settings
from service.web.caller import Caller
from service.web.picture import MAX_STICKY, STICKY

DeadlineMs = Annotated[
    int | SkipJsonSchema[None],
    Header(
        alias="X-Deadline-Ms",
        ge=1,
        description="milliseconds that this answer is worth waiting for, once the body is sent",
    ),
]


Sticky = Annotated[
    str | SkipJsonSchema[None],
    Header(
        alias=STICKY,
        max_length=MAX_STICKY,
        description="whatever is equal here goes to one version, where several share a task's traffic: a user, say",
    ),
]


async def asker(
    request: Request,
    priority: Annotated[
        int | SkipJsonSchema[None],
        Header(
            alias="X-Priority", ge=0, le=MAX_PRIORITY,
            description="how urgent it is among this key's own requests; what others get is not changed by it",
        ),
    ] = None,
) -> Asker:  # fmt: skip
    """For whom the engine computes, and how urgently. Raises Forbidden."""
    return asker_of(request.state.key, priority)


TheAsker = Annotated[Asker, Depends(asker)]


def asker_of(key: Key, priority: int | None = None) -> Asker:
    """A key's holder as the engine knows it. Raises Forbidden for a priority that the key may not ask for."""
    if priority is None:
        priority = min(NOBODY.priority, key.max_priority)
    if priority > key.max_priority:
        raise Forbidden(
            f"X-Priority is {priority}, and key '{key.name}' may ask for {key.max_priority} at most (max_priority)",
            field="X-Priority", limit=key.max_priority, value=priority,
        )  # fmt: skip
    return Asker("" if key is EVERYBODY else key.name, priority)


async def caller(
    request: Request, asker: TheAsker, deadline_ms: DeadlineMs = None,
    sticky: Sticky = None,  # noqa: ARG001  checked here, and read where several versions may answer
) -> Caller:  # fmt: skip
    """Who waits for the answer. Raises BadRequest or Forbidden."""
    return Caller(deadline_seconds(request.app.state.settings, deadline_ms), asker)


TheCaller = Annotated[Caller, Depends(caller)]


def deadline_seconds(settings: Settings, deadline_ms: int | None) -> float:
    """How long an answer is worth waiting for. Raises BadRequest."""
    if deadline_ms is None:
        return settings.deadline_s
    limit = settings.max_deadline_s
    if deadline_ms > 1000 * limit:
        raise BadRequest(
            f"X-Deadline-Ms is {deadline_ms}, the limit is {1000 * limit:g} (max_deadline_s)",
            field="X-Deadline-Ms", limit=1000 * limit, value=deadline_ms,
        )  # fmt: skip
    return deadline_ms / 1000
