"""The batch endpoint: many pictures or clips in, a line of JSON for each out, in order, while the rest is computed.

It does not know how a batch gets through; ``service.web.batches`` does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from adapters.errors import AdaptError
from service.errors import BadRequest, Draining
from service.settings import Settings
from service.store.catalogue import Catalogue, Served
from service.watch.counts import Counting
from service.watch.logs import BatchProgress
from service.watch.metrics import Metrics
from service.watch.tracing import Tracing
from service.web.archives import Entry
from service.web.batches import BatchOrder, BatchPlace, BatchRunner
from service.web.caller import Caller
from service.web.middleware import PROGRESS
from service.web.outcomes import Extras, Outcomes
from service.web.picture import Picture, sha256
from service.web.prediction import Answers
from service.web.problems import document, plain_document
from service.web.routes.batch_body import GZIP, TAR, ZIP, BatchBody
from service.web.routes.bodies import exchange, receive
from service.web.routes.callers import DeadlineMs, Sticky, TheAsker
from service.web.routes.common import TaskName, problems
from service.web.routes.parameters import declared
from service.web.routes.predict import TOP_K, Calls, TheExtras, TopK, Version, wire
from service.web.schemas import BatchEnd, BatchFailure, BatchItem

log = logging.getLogger(__name__)
router = APIRouter(tags=["predict"])

PATH = "/v1/tasks/{task}/batch"
NDJSON = "application/x-ndjson"
_FILE = {"type": "string", "format": "binary"}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Pictures, or clips, as a form with many files under any field names, as a zip, or as a tar, "
        "which gzip may have packed. Which of them is found out from the bytes. Folders and hidden files are left out.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "additionalProperties": _FILE, "minProperties": 1},
            },
            **{kind: {"schema": _FILE} for kind in (ZIP, TAR, GZIP)},
        },
    },
    "responses": {"200": {"content": {NDJSON: {"schema": {"type": "object"}}}}},
}
_RESPONSES: dict[int | str, dict[str, Any]] = problems(404, 408, 413, 415, 422, 429, 500, 503, 504, 507) | {
    200: {
        "model": BatchItem | BatchFailure | BatchEnd,
        "description": "A line for each item, in order; then one that says that all were answered. An answer without "
        "that one was cut short.",
    }
}


class BatchCall:
    """One call from its body to its last line."""

    def __init__(self, request: Request, task: str, sticky: str | None) -> None:
        state = request.app.state
        self.settings: Settings = state.settings
        self.catalogue: Catalogue = state.catalogue
        self.batches: BatchRunner = state.batches
        self._answers: Answers = state.answers
        self._counts: Counting = state.counts
        self._metrics: Metrics = state.metrics
        self._tracing: Tracing | None = state.tracing
        self._calls: Calls = state.calls
        self._request, self._task, self._sticky = request, task, sticky
        self._request_id: str = request.state.request_id
        self.progress = request.scope["state"][PROGRESS] = BatchProgress()

    async def read(self, place: BatchPlace, caller: Caller) -> Sequence[Entry]:
        """The body, and what is in it. The deadline counts from here, and ends when the client leaves."""
        request, settings = self._request, self.settings
        body = BatchBody(
            request.headers.get("content-type"), declared(request).query, place.spool, self.batches.pool, settings
        )
        await receive(request, body, settings, limit=settings.max_batch_bytes, limit_name="max_batch_bytes", fields=())
        caller.restart()
        caller.watch(exchange(request).departed)
        return await body.entries(caller)

    def answered(
        self, place: BatchPlace, entries: Sequence[Entry], served: Sequence[Served], top_k: int, caller: Caller,
        extras: Extras,
    ) -> Response:  # fmt: skip
        """The answer, which gives the place back when it is over. ``served``: one, or all that a rule may name."""

        async def answer(index: int, name: str, read: Callable[[], bytes]) -> bytes:
            if served[0].rule is not None:
                return await self._by_rule(index, name, read, top_k, caller, extras)
            outcomes = await self._answers.predict(read, served, top_k, caller, extras)
            return self._good(index, name, outcomes)

        self.progress.items = len(entries)
        rows = max(one.config.rows for one in served)
        if extras.excerpt and extras.excerpt.window:  # as many as there may be, and that half of the queue holds
            rows = max(rows, min(rows * self.settings.max_windows, self.settings.max_queue_rows // 2))
        asked = BatchOrder(entries, rows, answer, self._bad, partial(self._answers.admit, caller))
        return _Streamed(self, place, self.batches.lines(asked, caller), caller)

    async def versions(self, version: int | None) -> Sequence[Served]:
        """What may answer: one for all, or, where the task has a rule, the active version and those that it names."""
        catalogue, task = self.catalogue, self._task
        rule = catalogue.repository.ruled.get(task) if version is None else None
        if rule is None or rule.active is None:
            return [await catalogue.resolve(task, version)]
        numbers = [rule.active, *(rule.traffic.weights if rule.traffic is not None else ())]
        return [replace(await catalogue.resolve(task, number), rule=rule) for number in dict.fromkeys(numbers)]

    async def _by_rule(
        self, index: int, name: str, read: Callable[[], bytes], top_k: int, caller: Caller, extras: Extras
    ) -> bytes:
        """One entry, by the version that its own bytes, or the header of all, are for; the rule may have ended."""
        digests: list[str] = []

        def noted() -> bytes:
            body = read()
            if not digests:
                digests.append(sha256([body]))
            return body

        async def digest() -> str:
            if not digests:
                await self._answers.unpack(lambda: len(noted()), caller)
            return digests[0]

        picture = Picture(self._sticky, digest)
        comparisons = self._calls.comparisons
        served = [await comparisons.version_for(self._task, None, picture)]
        try:
            outcomes = await self._answers.predict(noted, served, top_k, caller, extras)
        except AdaptError as error:
            comparisons.failed(served, error)
            raise
        if served[0].rule is not None:
            comparisons.answered(outcomes, [(picture, None)])
        return self._good(index, name, outcomes)

    def _good(self, index: int, name: str, outcomes: Outcomes) -> bytes:
        self._counts.answered([self._task])
        self._metrics.staged(outcomes.decode_s, outcomes.queue_s, outcomes.compute_s)
        self._metrics.item("answered")
        self.progress.answered += 1
        return _line(index, name, wire(outcomes.results[0]).model_dump_json())

    def _bad(self, index: int, name: str, error: Exception) -> bytes:
        self._counts.failed([self._task])
        self._metrics.item("failed")
        self.progress.failed += 1
        if isinstance(error, AdaptError):
            problem = document(error, self._request_id)
        else:
            log.error("request %s: item %d of a batch failed", self._request_id, index, exc_info=error)
            detail = f"the server made a mistake; its log has the details under {self._request_id}"
            problem = plain_document(500, detail, self._request_id)
        return _line(index, name, _json({"problem": problem}))

    def end(self, wrong: AdaptError | None, caller: Caller) -> bytes:
        """The last line. ``wrong``: what has cut the answer short."""
        progress = self.progress
        if self._tracing is not None:
            self._tracing.batch(self._request, self._task, progress, wrong, caller.spent)
        told: dict[str, object] = {"done": wrong is None, "items": progress.items, "failed": progress.failed}
        if wrong is not None:
            told["problem"] = document(wrong, self._request_id)
        return _json(told).encode() + b"\n"


class Lines(Response):
    """JSON, an object a line."""

    media_type = NDJSON


class _Streamed(Lines):
    """Sends lines as they come; one cut short says so in its last line, as long as the client is there."""

    def __init__(self, call: BatchCall, place: BatchPlace, lines: AsyncGenerator[bytes], caller: Caller) -> None:
        self.status_code, self.background = 200, None
        self.init_headers({"X-Accel-Buffering": "no", "Cache-Control": "no-store"})  # proxies hand on each line
        self._call, self._place, self._lines, self._caller = call, place, lines, caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """The whole answer. What it holds is given back at its deadline, however slowly it is read."""
        wrong: AdaptError | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with asyncio.timeout(self._caller.left), aclosing(self._lines) as lines:
                async for some in lines:
                    await send({"type": "http.response.body", "body": some, "more_body": True})
        except AdaptError as error:
            wrong = error.copy()  # its traceback holds this frame, which must not hold it
        except TimeoutError:
            wrong = self._caller.too_late("answering the batch")
        except asyncio.CancelledError:  # uvicorn's, when the time of a stop is over
            wrong = Draining("the server has stopped and did not wait for the rest of this batch (drain_s)")
        finally:
            self._place.leave()
        last = self._call.end(wrong, self._caller)
        await send({"type": "http.response.body", "body": last, "more_body": False})


@router.post(PATH, openapi_extra=_BODY, responses=_RESPONSES, response_class=Lines)
async def batch(
    request: Request, task: TaskName, asker: TheAsker, extras: TheExtras, top_k: TopK = TOP_K,
    version: Version = None, deadline_ms: DeadlineMs = None, sticky: Sticky = None,
) -> Response:  # fmt: skip
    """Classify many pictures or clips: a line of JSON for each, in order, sent as soon as it is there.

    An item that cannot be answered is a line with its problem. One version answers for all, unless several share the
    task's traffic.
    """
    call = BatchCall(request, task, sticky)
    caller = Caller(_seconds(call.settings, deadline_ms), asker)
    await call.catalogue.find(task, version)
    place = await call.batches.enter()
    try:
        entries = await call.read(place, caller)
        await call.catalogue.catch_up()
        served = await call.versions(version)
        return call.answered(place, entries, served, top_k, caller, extras)
    except BaseException:
        place.leave()
        raise


def _seconds(settings: Settings, deadline_ms: int | None) -> float:
    """How long a batch may take. Raises BadRequest."""
    limit = settings.batch_timeout_s
    if deadline_ms is None:
        return limit
    if deadline_ms > 1000 * limit:
        raise BadRequest(
            f"X-Deadline-Ms is {deadline_ms}, the limit for a batch is {1000 * limit:g} (batch_timeout_s)",
            field="X-Deadline-Ms", limit=1000 * limit, value=deadline_ms,
        )  # fmt: skip
    return deadline_ms / 1000


def _line(index: int, name: str, members: str) -> bytes:
    """A line with those members, which are an object as JSON, after the item's place and name."""
    return f"{_json({'index': index, 'name': name})[:-1]},{members[1:]}\n".encode()


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
