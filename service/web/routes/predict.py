"""The two prediction endpoints: a picture or clip in, labels out, for one task or for many.

It does not know how an answer comes about; ``service.web.prediction`` does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from adapters.config import MAX_FRAMES
from adapters.media import Excerpt
from service.engine.interface import Link
from service.errors import BadRequest
from service.settings import Settings
from service.store.catalogue import Catalogue, Served
from service.watch.counts import Counting
from service.watch.metrics import Metrics
from service.watch.tracing import Tracing
from service.web.budget import Budget
from service.web.caller import Caller
from service.web.comparisons import Comparisons
from service.web.outcomes import PLAIN, Extras, Outcome, Outcomes
from service.web.picture import STICKY, Picture
from service.web.prediction import Answers
from service.web.recorder import Recorder
from service.web.routes.bodies import Memory, exchange, receive
from service.web.routes.callers import TheCaller
from service.web.routes.common import SHAPE, TaskName, checked_name, count_for, file_body, problems
from service.web.schemas import EmbedAnswer, LabelScore, ManyAnswer, PredictAnswer, WindowAnswer

router = APIRouter(tags=["predict"])

ONE, MANY = "/v1/tasks/{task}/predict", "/v1/predict"
TOP_K = 5

FIELDS = ["file", "image", "video"]
_BODY = file_body(
    "A picture (JPEG, PNG, WebP, GIF, BMP, TIFF) or a clip (MP4, MOV, 3GP, WebM, MKV, AVI, MPEG-TS, MPEG-PS, or a "
    "picture that moves), as raw bytes with any or no Content-Type, or as one field of a form. The format is found "
    "out from the bytes.",
    ["application/octet-stream", "image/jpeg", "video/mp4"],
    FIELDS,
)
_ABSTAIN = "the best score, 0 to 1, from which `accepted` is true; without it the task's own threshold, if it has one"
_PROBLEMS = problems(404, 408, 413, 415, 422, 429, 500, 503, 504, 507)

TopK = Annotated[int, Query(ge=1, description="how many labels to return, best first; all if there are fewer")]


Seconds = float | SkipJsonSchema[None]


async def extras(
    min_score: Annotated[
        float, Query(ge=0, le=1, allow_inf_nan=False, description="leave out labels with a lower score, 0 to 1")
    ] = 0.0,
    abstain: Annotated[
        float | SkipJsonSchema[None],
        Query(ge=0, le=1, allow_inf_nan=False, description=_ABSTAIN),
    ] = None,
    embedding: Annotated[bool, Query(description="answer with the vector that the task's head sees")] = False,
    start: Annotated[Seconds, Query(description="of a clip: seconds after its first frame where to begin")] = None,
    end: Annotated[Seconds, Query(description="of a clip: seconds after its first frame where to end")] = None,
    window: Annotated[Seconds, Query(description="of a clip: an answer for each window of so many seconds")] = None,
    stride: Annotated[Seconds, Query(description="seconds from window to window; `window` if not said")] = None,
    sampled: Annotated[bool, Query(description="of a clip: answer with the times of the frames looked at")] = False,
) -> Extras:
    """What is asked beyond the best labels. Raises BadRequest."""
    if start is end is window is stride is None:
        return Extras(min_score, abstain, embedding, sampled=sampled)
    try:
        return Extras(min_score, abstain, embedding, Excerpt(start or 0.0, end, window, stride), sampled)
    except ValueError as error:
        raise BadRequest(str(error), field=str(error).split()[0]) from error


TheExtras = Annotated[Extras, Depends(extras)]
Version = Annotated[int | SkipJsonSchema[None], Query(ge=1, description="a version other than the active one")]
Tasks = Annotated[
    list[Annotated[str, Field(json_schema_extra=SHAPE)]],
    Query(min_length=1, description="repeat it: ?task=a&task=b", examples=[["digits"]]),
]


class Calls:
    """What both endpoints do: body, versions, pixels, scores. Names of tasks are checked and put down before."""

    def __init__(self, state: Any) -> None:
        """``state`` holds what ``service.web.app`` has built."""
        self.settings: Settings = state.settings
        self.catalogue: Catalogue = state.catalogue
        self._engine: Link = state.engine
        self._answers: Answers = state.answers
        self._bodies: Budget = state.bodies
        self._counts: Counting = state.counts
        self._metrics: Metrics = state.metrics
        self._tracing: Tracing | None = state.tracing
        self._recorder: Recorder | None = state.recorder
        self.comparisons: Comparisons = state.comparisons

    async def one(
        self, request: Request, task: str, version: int | None, top_k: int, caller: Caller, extras: Extras = PLAIN
    ) -> Response:
        """The answer of one task."""
        outcomes = await self._answer(request, [(task, version)], top_k, caller, extras)
        return _response(wire(outcomes.results[0]), _timing_of(outcomes))

    async def many(
        self, request: Request, tasks: Sequence[str], top_k: int, caller: Caller, extras: Extras = PLAIN
    ) -> Response:
        """The answers of several."""
        outcomes = await self._answer(request, [(name, None) for name in tasks], top_k, caller, extras)
        return _response(ManyAnswer(results=[wire(outcome) for outcome in outcomes.results]), _timing_of(outcomes))

    async def _answer(
        self, request: Request, asked: list[tuple[str, int | None]], top_k: int, caller: Caller, extras: Extras
    ) -> Outcomes:
        """What is asked is looked up before the body is read, and fixed after it.

        The deadline counts from the whole body; a slow sender's has bounds of its own.
        """
        catalogue = self.catalogue
        async with Memory(self._bodies, caller.asker.holder) as memory:
            digests = [(await catalogue.find(task, version)).digest for task, version in asked]
            await self._answers.check_room(digests, caller)
            self._answers.admit(caller)
            await self._receive(request, memory, caller)
            await catalogue.catch_up()
            body, recorder = memory.take(), self._recorder
            picture = Picture.of(request.headers.get(STICKY), body) if catalogue.repository.ruled else None
            versions = [await self.comparisons.version_for(task, version, picture) for task, version in asked]
            ruled = [served for served in versions if served.rule is not None]
            picture = picture if ruled else None  # it holds the body
            await self._answers.check_room([served.digest for served in versions], caller)
            answering = self._answers.predict(body, versions, top_k, caller, extras)
            kept = body if recorder or ruled else b""
            del body  # it is decoded by and by, and need not be in memory then
            outcomes = await self.told(request, [task for task, _ in asked], caller, answering, ruled)
            if ruled and picture is not None:
                self.comparisons.answered(outcomes, [(picture, kept)])
            if recorder:
                recorder.keep(request.state.request_id, kept, outcomes)
            return outcomes

    async def embed(self, request: Request, frames: int | None, caller: Caller) -> Response:
        """The bare backbone's vector."""
        async with Memory(self._bodies, caller.asker.holder) as memory:
            await self._answers.check_room_bare(caller)
            self._answers.admit(caller)
            await self._receive(request, memory, caller)
            await self._answers.check_room_bare(caller)
            try:
                found = await self._answers.embed(memory.take(), frames, caller)
            except Exception as error:
                if self._tracing is not None:
                    self._tracing.failed(request, error, caller.spent)
                raise
        decoded, layout = found.decoded, self._engine.facts.layout
        self._metrics.staged(decoded.decode_s, found.queue_s, found.compute_s)
        if self._tracing is not None:
            self._tracing.answered(request, decoded, caller.spent)
        answer = EmbedAnswer(
            backbone=layout.model, fingerprint=layout.fingerprint, modality=found.modality, frames=found.frames,
            embedding=found.vector.tolist(), bad_frames=found.bad_frames,
        )  # fmt: skip
        return _response(answer, _server_timing(decoded.decode_s, found.queue_s, found.compute_s))

    async def _receive(self, request: Request, memory: Memory, caller: Caller) -> None:
        """The whole body; the caller's time begins when it is there."""
        settings = self.settings
        limit = settings.max_body_bytes
        await receive(request, memory, settings, limit=limit, limit_name="max_body_bytes", fields=FIELDS)
        caller.restart()
        caller.watch(exchange(request).departed)

    async def told(
        self, request: Request, tasks: Sequence[str], caller: Caller, answering: Awaitable[Outcomes],
        ruled: Sequence[Served] = (),
    ) -> Outcomes:  # fmt: skip
        """The answers, once counts, metrics and traces have heard of them; ``tasks`` has one for each.

        ``ruled`` are the versions asked that a rule has fixed.
        """
        try:
            outcomes = await answering
        except Exception as error:
            self._counts.failed(tasks)
            if ruled:
                self.comparisons.failed(ruled, error)
            if self._tracing is not None:
                self._tracing.failed(request, error, caller.spent)
            raise
        self._counts.answered(tasks)
        self._metrics.staged(outcomes.decode_s, outcomes.queue_s, outcomes.compute_s)
        if self._tracing is not None:
            self._tracing.answered(request, outcomes, caller.spent)
        return outcomes


async def calls(request: Request) -> Calls:
    """As built for the whole server."""
    built: Calls = request.app.state.calls
    return built


TheCalls = Annotated[Calls, Depends(calls)]


@router.post(ONE, openapi_extra=_BODY, responses=_PROBLEMS, response_model=PredictAnswer)
async def predict(
    request: Request,
    calls: TheCalls,
    task: TaskName,
    caller: TheCaller,
    extras: TheExtras,
    top_k: TopK = TOP_K,
    version: Version = None,
) -> Response:
    """Classify a picture or clip. `Server-Timing` tells what decoding, queueing and computing took."""
    return await calls.one(request, task, version, top_k, caller, extras)


@router.post(MANY, openapi_extra=_BODY, responses=_PROBLEMS, response_model=ManyAnswer)
async def predict_many(
    request: Request, calls: TheCalls, task: Tasks, caller: TheCaller, extras: TheExtras, top_k: TopK = TOP_K
) -> Response:
    """Ask many tasks about one picture or clip: it is decoded once and computed in one go. All answer, or none."""
    limit = calls.settings.max_tasks_per_request
    if len(task) > limit:
        raise BadRequest(
            f"{len(task)} tasks are asked, the limit is {limit} (max_tasks_per_request); split the call",
            field="task", limit=limit, value=len(task),
        )  # fmt: skip
    names = [checked_name(name) for name in task]
    count_for(request, calls.catalogue, names)
    return await calls.many(request, names, top_k, caller, extras)


@router.post("/v1/embed", openapi_extra=_BODY, responses=_PROBLEMS, response_model=EmbedAnswer)
async def embed(
    request: Request,
    calls: TheCalls,
    caller: TheCaller,
    frames: Annotated[
        int | SkipJsonSchema[None], Query(ge=1, le=MAX_FRAMES, description="of a clip, 8 if not said; not for pictures")
    ] = None,
) -> Response:
    """The frozen backbone's own vector of a picture or clip, before any adapter: for search and clustering."""
    return await calls.embed(request, frames, caller)


def _response(answer: BaseModel, timing: str) -> Response:
    return Response(answer.model_dump_json(), headers={"Server-Timing": timing}, media_type="application/json")


def _timing_of(outcomes: Outcomes) -> str:
    return _server_timing(outcomes.decode_s, outcomes.queue_s, outcomes.compute_s)


def _server_timing(decode_s: float, queue_s: float, compute_s: float) -> str:
    stages = {"decode": decode_s, "queue": queue_s, "compute": compute_s}
    return ", ".join(f"{name};dur={1000 * seconds:.2f}" for name, seconds in stages.items())


def _said(outcome: Outcome) -> dict[str, Any]:
    """What a whole answer and that of a window both have."""
    return {
        "predictions": [LabelScore(label=p.label, index=p.index, score=p.score) for p in outcome.predictions],
        "accepted": outcome.accepted,
        "embedding": None if outcome.vector is None else outcome.vector.tolist(),
    }


def wire(outcome: Outcome) -> PredictAnswer:
    """One task's answer as clients see it."""
    served = outcome.served
    return PredictAnswer(
        task=served.task,
        version=served.version,
        digest=served.digest,
        modality=served.config.modality,
        bad_frames=outcome.bad_frames,
        sampled=None if outcome.sampled is None else list(outcome.sampled),
        windows=None
        if outcome.windows is None
        else [WindowAnswer(start=start, end=end, **_said(own)) for (start, end), own in outcome.windows],
        **_said(outcome),
    )
