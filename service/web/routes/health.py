"""livez, readyz and metrics: for whoever watches the server.

It does not know how health is found out.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from adapters.errors import AdaptError
from adapters.version import installed_version
from service.web.routes.common import TheEngine, TheMetrics, problems
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
async def metrics(engine: TheEngine, metrics: TheMetrics) -> Response:
    """Prometheus' text format."""
    # An idle server has no recent batch to show: it is asked, or adaptserve_ready would say 0 of a healthy one.
    with suppress(AdaptError, TimeoutError):
        async with asyncio.timeout(SCRAPE_S):
            await engine.ready()
    now, layout = await engine.snapshot(), engine.facts.layout
    build = {
        "version": installed_version(), "backbone": layout.model, "fingerprint": layout.fingerprint,
        "device": engine.facts.device,
    }  # fmt: skip
    # A thousand tasks' labels take longer to write than the event loop may be held.
    return Response(await asyncio.to_thread(metrics.render, now, build), media_type=CONTENT_TYPE_LATEST)
