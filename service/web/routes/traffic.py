"""Traffic between versions of a task, its shadow, and how they agree: who may answer, and how they do.

It does not know how a request gets its version, nor who looks after them; the store and the guardian do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import SkipJsonSchema

from service.engine.interface import Link
from service.errors import BadRequest, UnknownVersion
from service.store.catalogue import Catalogue
from service.store.changes import directed, shadowed, undirected, unshadowed
from service.store.events import Actor
from service.store.manifest import TaskInfo
from service.store.traffic import weights_text
from service.watch.versions import VersionCounts, VersionNews, by_label, newest
from service.web.routes.bodies import Memory, receive
from service.web.routes.common import (
    TaskName,
    TheBodies,
    TheCatalogue,
    TheEngine,
    TheLedger,
    TheSettings,
    problems,
    tell_generation,
)
from service.web.routes.guard import By
from service.web.traffic_schemas import (
    BARE,
    AgreementAnswer,
    DisagreementShown,
    LabelAgreement,
    RollBackState,
    ShadowAsked,
    ShadowState,
    TrafficAnswer,
    TrafficAsked,
    VersionState,
)

router = APIRouter(tags=["safe change"])

MAX_BODY_BYTES = 16 * 1024
ALL = 100
"""What is told as the active version's weight where it shares with nobody."""
Asked = TypeVar("Asked", bound=BaseModel)
PATH, SHADOW = "/v1/tasks/{task}/traffic", "/v1/tasks/{task}/shadow"


def _body(model: type[BaseModel], *others: dict[str, Any]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    either = {"anyOf": [*others, schema]} if others else schema
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": either}}}}


@router.get(PATH, responses=problems(404))
async def traffic(catalogue: TheCatalogue, ledger: TheLedger, task: TaskName) -> TrafficAnswer:
    """Which versions answer a task's requests, by what weights, and how each of them does."""
    info = catalogue.repository.task(task)
    return _state(info, await ledger.known(task))


@router.put(
    PATH, openapi_extra=_body(TrafficAsked, BARE), responses=problems(400, 404, 408, 409, 413, 422, 429, 503, 504, 507)
)
async def direct(
    request: Request, response: Response, settings: TheSettings, bodies: TheBodies, catalogue: TheCatalogue,
    engine: TheEngine, ledger: TheLedger, by: By, task: TaskName,
) -> TrafficAnswer:  # fmt: skip
    """Let versions share the requests that name none: `{"1": 95, "2": 5}`.

    Which one answers depends on the header X-AdaptServe-Sticky, else on the picture's or clip's bytes. A version that
    does badly loses its part by itself.
    """
    asked = await _read(request, bodies, settings, TrafficAsked)
    info = catalogue.repository.task(task)
    guard = asked.guard
    if "guard" not in asked.model_fields_set and info.traffic is not None:
        guard = info.traffic.guard
    await _prepare(catalogue, engine, info, asked.weights, settings.upload_timeout_s)
    info = await _revise(response, catalogue, task, partial(directed, weights=asked.weights, guard=guard), by)
    return _state(info, await ledger.known(task))


@router.delete(PATH, status_code=204, responses=problems(404, 503, 507))
async def end_traffic(response: Response, catalogue: TheCatalogue, by: By, task: TaskName) -> None:
    """Let the active version answer all requests."""
    await _revise(response, catalogue, task, undirected, by)


@router.put(
    SHADOW, openapi_extra=_body(ShadowAsked), responses=problems(400, 404, 408, 409, 413, 422, 429, 503, 504, 507)
)
async def shadow(
    request: Request, response: Response, settings: TheSettings, bodies: TheBodies, catalogue: TheCatalogue,
    engine: TheEngine, ledger: TheLedger, by: By, task: TaskName,
) -> TrafficAnswer:  # fmt: skip
    """Let a version see a share of the requests, after their answers have gone, while nobody else wants the device."""
    asked = await _read(request, bodies, settings, ShadowAsked)
    info = catalogue.repository.task(task)
    await _prepare(catalogue, engine, info, [asked.version], settings.upload_timeout_s)
    info = await _revise(response, catalogue, task, partial(shadowed, number=asked.version, share=asked.share), by)
    return _state(info, await ledger.known(task))


@router.delete(SHADOW, status_code=204, responses=problems(404, 503, 507))
async def end_shadow(response: Response, catalogue: TheCatalogue, by: By, task: TaskName) -> None:
    """Let no version be a shadow."""
    await _revise(response, catalogue, task, unshadowed, by)


@router.get("/v1/tasks/{task}/agreement", responses=problems(400, 404))
async def agreement(
    catalogue: TheCatalogue, ledger: TheLedger, task: TaskName,
    version: Annotated[
        int | SkipJsonSchema[None],
        Query(ge=1, description="which one; without it the shadow, else the only one that shares the traffic"),
    ] = None,
) -> AgreementAnswer:  # fmt: skip
    """How often a shadow's, or a new version's, best label is the active one's: by label, and where it is not."""
    info = catalogue.repository.task(task)
    number = version if version is not None else _looked_at(info)
    found = newest(await ledger.known(task), number)
    since = _since(info, number)
    if found is None or (found.since != since and (since is not None or not found.counts.compared)):
        if since is None and info.rolled_back is not None and info.rolled_back.version == number:
            since = info.rolled_back.when  # another server saw it, or this one before it was started again
        if since is None:
            catalogue.repository.version(task, number)  # there is one
            raise UnknownVersion(
                f"version {number} of '{task}' is not compared; give it a share of the traffic, or make it the shadow",
                task=task, version=number,
            )  # fmt: skip
        found = VersionNews(task, number, since, 1.0, VersionCounts())
    counts = found.counts
    return AgreementAnswer(
        task=task, version=number, against=info.active, since=found.since, compared=counts.compared,
        agreed=counts.agreed, agreement=counts.agreement,
        labels=[LabelAgreement(label=label, compared=n, agreed=m) for label, n, m in by_label(found.labels)[:100]],
        disagreements=[
            DisagreementShown(digest=one.digest, label=one.label, other=one.other, created=one.created)
            for one in reversed(found.differing)
        ],
    )  # fmt: skip


async def _read(request: Request, bodies: TheBodies, settings: TheSettings, model: type[Asked]) -> Asked:
    """The body. Raises BadRequest and more."""
    async with Memory(bodies) as memory:
        await receive(
            request, memory, settings, limit=MAX_BODY_BYTES, limit_name="of this call's JSON", fields=(), json=True
        )
        try:
            return model.model_validate_json(memory.take())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            example = '{"1": 95, "2": 5}' if model is TrafficAsked else '{"version": 3, "share": 0.1}'
            raise BadRequest(f"{where}: {first['msg'].lower()}; send JSON like {example}", field=where) from error


async def _prepare(
    catalogue: Catalogue, engine: Link, info: TaskInfo, numbers: Iterable[int], seconds: float
) -> None:  # fmt: skip
    """Have versions that are not active on the device, tried. Raises what is wrong with one."""
    for number in numbers:
        served = await catalogue.resolve(info.name, number)
        if number != info.active:
            await catalogue.repository.bring(catalogue.repository.version(info.name, number))
            deadline = time.monotonic() + seconds
            await engine.try_file(str(served.path), served.digest, served.task, deadline)


async def _revise(
    response: Response, catalogue: Catalogue, task: str, step: Callable[[TaskInfo], TaskInfo], by: Actor
) -> TaskInfo:  # fmt: skip
    info = await catalogue.run(lambda: catalogue.repository.revise(task, step, by=by))
    tell_generation(response, catalogue, task)
    return info


def _looked_at(info: TaskInfo) -> int:
    """Raises UnknownVersion where there is none, BadRequest where there are several."""
    if info.shadow is not None:
        return info.shadow.version
    others = [number for number in (info.traffic.weights if info.traffic is not None else ()) if number != info.active]
    if len(others) == 1:
        return others[0]
    if info.rolled_back is not None and not others:
        return info.rolled_back.version
    if others:
        raise BadRequest(
            f"{len(others)} versions share the traffic; say with ?version= which is meant", field="version"
        )
    raise UnknownVersion(
        f"no version of '{info.name}' is compared; give one a share of the traffic, or make it the shadow",
        task=info.name,
    )


def _since(info: TaskInfo, number: int) -> str | None:
    """Of the rule under which that version is compared now."""
    if info.shadow is not None and info.shadow.version == number:
        return info.shadow.since
    if info.traffic is not None and number in info.traffic.weights and number != info.active:
        return info.traffic.since
    return None


def _state(info: TaskInfo, known: list[VersionNews]) -> TrafficAnswer:
    traffic, shadow, last = info.traffic, info.shadow, info.rolled_back
    weights = weights_text(traffic) or ({} if info.active is None else {str(info.active): ALL})
    rules = {rule.since for rule in (traffic, shadow) if rule is not None}
    numbers = dict.fromkeys([*map(int, weights), *([shadow.version] if shadow is not None else [])])
    counted = {one.version: one.counts for one in known if one.since in rules}
    return TrafficAnswer(
        task=info.name, active=info.active, weights=weights, guard=traffic.guard if traffic is not None else None,
        shadow=None if shadow is None else ShadowState(version=shadow.version, share=shadow.share),
        since=None if traffic is None else traffic.since,
        rolled_back=None if last is None else RollBackState(version=last.version, why=last.why, time=last.when),
        versions=[_version_state(number, counted.get(number, VersionCounts())) for number in numbers],
    )  # fmt: skip


def _version_state(number: int, counts: VersionCounts) -> VersionState:
    p50, p99 = (counts.seconds(part) for part in (0.5, 0.99))
    return VersionState(
        version=number, requests=counts.requests, errors=counts.errors, not_finite=counts.not_finite,
        p50_ms=None if p50 is None else 1000 * p50, p99_ms=None if p99 is None else 1000 * p99,
        agreement=counts.agreement, compared=counts.compared,
    )  # fmt: skip
