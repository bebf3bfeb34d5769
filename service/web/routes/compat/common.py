"""What the protocols of other servers share: the way of a request with one or more files, and errors in their own form.

It knows none of the protocols. Keys, rooms, limits, log lines and metrics are those of the project's own endpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from adapters.errors import AdaptError
from service.engine.interface import Link
from service.errors import BodyTooLarge
from service.settings import Settings
from service.store.catalogue import Catalogue, Served
from service.web.budget import Budget
from service.web.caller import Caller
from service.web.outcomes import Outcomes
from service.web.picture import STICKY, Picture
from service.web.prediction import Answers
from service.web.problems import bad_request, respond
from service.web.routes.bodies import Memory, exchange, receive
from service.web.routes.common import problems
from service.web.routes.compat.reading import Bounds, Inputs, inflated
from service.web.routes.predict import Calls

LARGE_ANSWER = 4096
"""Labels in one answer from which it is written off the event loop."""
PROBLEMS = problems(400, 404, 408, 413, 415, 422, 429, 500, 503, 504, 507)


class Translated(APIRoute):
    """An endpoint whose refusals are JSON, since clients look at the type: the problem document with its ``error``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own with what it raises answered here, keys and parameters too."""
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await inner(request)
            except AdaptError as error:
                return self.refusal(error, request)
            except RequestValidationError as error:
                return self.refusal(bad_request(error), request)

        return handler

    def refusal(self, error: AdaptError, request: Request) -> Response:
        """The answer to a request that failed."""
        response = respond(error, request.state.request_id)
        response.headers["Content-Type"] = "application/json"
        return response


A = TypeVar("A", bound=Inputs)
T = TypeVar("T")


class BatchCalls:
    """Requests with any number of files for one task, as ``predict.Calls`` has those with one."""

    def __init__(self, state: Any) -> None:
        """``state`` holds what ``service.web.app`` has built."""
        self.settings: Settings = state.settings
        self.catalogue: Catalogue = state.catalogue
        self.engine: Link = state.engine
        self.bounds = Bounds.of(state.settings)
        self._answers: Answers = state.answers
        self._bodies: Budget = state.bodies
        self._calls: Calls = state.calls

    async def answer(
        self,
        request: Request,
        task: str,
        version: int | None,
        caller: Caller,
        read: Callable[[bytes], A],
        fields: Sequence[str] = (),
    ) -> tuple[A, Outcomes]:
        """What ``read`` finds in the body, and an outcome for each file, in order.

        ``read`` runs on a worker. With ``fields`` the body may also be a form with one of them. Raises as the project's
        own endpoint does; what is wrong with one of several files says which.
        """
        settings, catalogue = self.settings, self.catalogue
        async with Memory(self._bodies, caller.asker.holder) as memory:
            await self._answers.check_room([(await catalogue.find(task, version)).digest], caller)
            self._answers.admit(caller)
            limit, name = settings.max_request_bytes, "max_request_bytes"
            await receive(request, memory, settings, limit=limit, limit_name=name, fields=fields, json=True)
            caller.restart()
            caller.watch(exchange(request).departed)
            asked = await self._read(request, memory, read, caller)
            if asked.seconds is not None:
                caller.seconds = min(asked.seconds, settings.max_deadline_s)
                caller.restart()
            await catalogue.catch_up()
            sticky = request.headers.get(STICKY)
            picture = Picture.of(sticky, *asked.files) if catalogue.repository.ruled else None
            served = await self._calls.comparisons.version_for(task, version, picture)
            self._check_rows(asked, served)
            await self._answers.check_room([served.digest] * len(asked.files), caller)
            if len(asked.files) > 1:
                self._answers.admit(caller, len(asked.files) - 1)
            answering = self._answers.predict_each(asked.files, served, asked.top_k, asked.score, caller)
            ruled = [served] if served.rule is not None else []
            outcomes = await self._calls.told(request, [task] * len(asked.files), caller, answering, ruled)
            if ruled:
                own = [(Picture.of(sticky, file), file) for file in asked.files]
                self._calls.comparisons.answered(outcomes, own)
            return asked, outcomes

    async def _read(self, request: Request, memory: Memory, read: Callable[[bytes], A], caller: Caller) -> A:
        encoding, bounds = request.headers.get("content-encoding"), self.bounds

        def unpack() -> tuple[bytes, A]:
            body = memory.take()
            return body, read(inflated(body, encoding, bounds))

        body, asked = await self._answers.unpack(unpack, caller)
        memory.hold(sum(len(file) for file in asked.files if file is not body))
        return asked

    def _check_rows(self, asked: Inputs, served: Served) -> None:
        limit = self.settings.max_queue_rows
        rows = len(asked.files) * served.config.rows
        if rows > limit:
            raise BodyTooLarge(
                f"{len(asked.files)} inputs of {served.config.rows} frames are {rows} rows, and the queue has "
                f"{limit} (max_queue_rows); split the request",
                field="max_queue_rows", limit=limit, value=rows,
            )  # fmt: skip


async def batches(request: Request) -> BatchCalls:
    """For the endpoints."""
    return BatchCalls(request.app.state)


TheBatchCalls = Annotated[BatchCalls, Depends(batches)]


async def written(outcomes: Outcomes, write: Callable[[], T]) -> T:
    """What ``write`` makes of an answer, off the event loop where there are many labels in it."""
    if sum(len(one.predictions) for one in outcomes.results) < LARGE_ANSWER:
        return write()
    return await asyncio.to_thread(write)


def json_body(description: str, schema: dict[str, Any], *more: str) -> dict[str, Any]:
    """The ``openapi_extra`` of an endpoint that takes JSON, or the media types ``more`` as they are."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    content: dict[str, Any] = {"application/json": {"schema": schema}} | dict.fromkeys(more, binary)
    return {"requestBody": {"required": True, "description": description, "content": content}}
