"""GET /v1/key: what the caller may do, so that a page need not find out by being refused."""

from __future__ import annotations

from typing import get_args

from fastapi import APIRouter, Request

from service.keys import EVERYBODY, Keys, Scope
from service.web.routes.common import problems
from service.web.routes.guard import holder
from service.web.schemas import KeyAnswer

router = APIRouter(tags=["operate"])


@router.get("/v1/key", responses=problems(400))
async def key(request: Request) -> KeyAnswer:
    """Whether this server has keys, whose came with this call, and what that one may do. Without a key: nothing."""
    keys: Keys = request.app.state.keys
    if not keys:
        found = EVERYBODY
    elif (asked := holder(request, keys)) is None:
        return KeyAnswer(required=True, name=None, may=[], tasks=None)
    else:
        found = asked
    return KeyAnswer(
        required=bool(keys),
        name=found.name if keys else None,
        may=[scope for scope in get_args(Scope) if found.may(scope)],
        tasks=None if found.tasks is None else sorted(found.tasks),
    )
