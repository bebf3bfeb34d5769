"""livez, readyz, metrics and stats: for whoever watches the server.

It does not know how health is found out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import isfinite
from typing import Annotated

from fastapi import APIRouter, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.core import Metric

from adapters.errors import AdaptError
from adapters.version import installed_version
from service.engine.interface import Link
from service.store.manifest import TaskInfo
from service.watch.gateway import gateway_metrics
from service.watch.metrics import MAX_TASK_LABELS, Snapshot
from service.watch.stats import Stats, StoreStats
from service.web.routes.common import TheCatalogue, TheEngine, TheLedger, TheMetrics, TheSettings, problems
from service.web.schemas import Live, Ready

router = APIRouter(tags=["operate"])

SCRAPE_S = 2.0
"""How long a scrape waits for the device to say that it is there; well under Prometheus' own patience."""


@router.get("/livez")
async def livez() -> Live:
    """The process runs and answers."""
    return Live()


@router.get("/readyz", responses=problems(503))
async def readyz(engine: TheEngine) -> Ready:
    """The engine computed a real forward pass lately or just now for this call, or is at a long one that gets on."""
    found = await engine.ready()
    return Ready(last_forward_s=round(found.last_forward_s, 3), busy_s=round(found.busy_s, 3))


@router.get("/metrics", response_class=Response, responses=problems(401, 403) | {200: {"content": {"text/plain": {}}}})
async def metrics(
    engine: TheEngine, catalogue: TheCatalogue, metrics: TheMetrics, ledger: TheLedger, settings: TheSettings
) -> Response:  # fmt: skip
    """Prometheus' text format."""
    now, layout = await _now(engine), engine.facts.layout
    store = catalogue.repository
    now = replace(
        now, store_age_s=store.store_age, store_generation=store.store_seen,
        traffic=_shares(list(store.ruled.values())), roll_backs=await ledger.roll_backs(),
    )  # fmt: skip
    build = {
        "version": installed_version(), "backbone": layout.model, "fingerprint": layout.fingerprint,
        "device": engine.facts.device,
    }  # fmt: skip

    def render() -> bytes:
        more = list[Metric]()
        if settings.gateway_metrics:
            more += gateway_metrics(now, catalogue.tasks_of({*now.resident, *now.waiting}), engine.facts.slots)
        return metrics.render(now, build, more)

    # A thousand tasks' labels take longer to write than the event loop may be held.
    return Response(await asyncio.to_thread(render), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/stats", response_model=Stats, responses=problems(400, 401, 403))
async def stats(
    engine: TheEngine,
    catalogue: TheCatalogue,
    metrics: TheMetrics,
    limit: Annotated[int, Query(ge=0, le=MAX_TASK_LABELS, description="the most tasks to tell of")] = 100,
) -> Response:
    """What /metrics tells, in JSON, for people: two of them, some seconds apart, give rates and percentiles.

    `adaptserve top` and the page show it.
    """
    now, repository = await _now(engine), catalogue.repository
    store = None
    if repository.follows:
        age = repository.store_age
        store = StoreStats(age_s=round(age, 3) if isfinite(age) else None, generation=repository.store_seen)

    def told() -> str:
        return metrics.stats(now, limit).model_copy(update={"store": store}).model_dump_json()

    return Response(await asyncio.to_thread(told), media_type="application/json")


def _shares(ruled: Sequence[TaskInfo]) -> list[tuple[str, int, float]]:
    """Of each version that has a part of a task's traffic."""
    return [
        (task.name, number, weight / sum(task.traffic.weights.values()))
        for task in ruled
        if task.traffic is not None
        for number, weight in task.traffic.weights.items()
    ]


async def _now(engine: Link) -> Snapshot:
    # An idle server has no recent batch to show: it is asked, or it would be called not ready though it is healthy.
    with suppress(AdaptError, TimeoutError):
        async with asyncio.timeout(SCRAPE_S):
            await engine.ready()
    return await engine.snapshot()
