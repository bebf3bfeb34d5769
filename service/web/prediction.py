"""Predictor: one body and some versions in, each version's best labels out, with where the time went.

It knows the decoder and the engine; it does not know HTTP or the disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from adapters.errors import AdaptError
from adapters.scores import Prediction, best
from service.engine.engine import Answer, Engine
from service.store.catalogue import Catalogue, Served
from service.web.caller import Caller
from service.web.decoding import Decoder, Seen

LARGE_HEAD = 4096
"""Classes from which scores are computed off the event loop."""


@dataclass(frozen=True)
class Outcome:
    """One version's answer; stages in seconds, ``queue_s`` with the time a cold adapter took to load."""

    served: Served
    predictions: list[Prediction]
    bad_frames: int
    queue_s: float
    compute_s: float


@dataclass(frozen=True)
class Outcomes:
    """All answers to one body, in the order asked; ``decoded_ns`` is when it was decoded, since the epoch."""

    results: list[Outcome]
    decode_s: float
    decoded_ns: int

    @property
    def queue_s(self) -> float:
        return max(result.queue_s for result in self.results)

    @property
    def compute_s(self) -> float:
        return max(result.compute_s for result in self.results)


class Predictor:
    """Decodes once, submits every version at once, and waits no longer than the caller does."""

    def __init__(self, decoder: Decoder, engine: Engine, catalogue: Catalogue) -> None:
        self._decoder, self._engine, self._catalogue = decoder, engine, catalogue

    def check_room(self, digests: Sequence[str], caller: Caller) -> None:
        """Refuse what would be refused anyway, before its body is read and decoded. Raises QueueFull or Draining.

        ``digests`` are those of the versions that are to answer: what is not resident must be loaded in time too.
        """
        self._decoder.check_room(caller.left)
        self._engine.check_room(len(digests), caller.deadline, digests)

    async def predict(self, body: bytes, versions: Sequence[Served], top_k: int, caller: Caller) -> Outcomes:
        """All or nothing: the first failure is raised, with the task's name, and the other rows are taken back."""
        configs = [served.config for served in versions]
        (decoded,) = await caller.wait([self._decoder.submit(body, configs, caller.left)], "decoding")
        decoded_ns = time.time_ns()
        answers = await self._compute(versions, decoded.seen, caller)
        results = []
        for served, answer, seen in zip(versions, answers, decoded.seen, strict=True):
            labels, score = served.config.labels, served.config.score
            if len(labels) < LARGE_HEAD:
                top = best(answer.logits, labels, score, top_k)
            else:
                top = await asyncio.to_thread(best, answer.logits, labels, score, top_k)
            results.append(Outcome(served, top, seen.bad_frames, answer.queue_s, answer.compute_s))
        return Outcomes(results, decoded.seconds, decoded_ns)

    async def _compute(self, versions: Sequence[Served], decoded: Sequence[Seen], caller: Caller) -> list[Answer]:
        futures: list[Future[Answer]] = []
        self._engine.check_room(len(versions), caller.deadline, [served.digest for served in versions])
        try:
            for served, seen in zip(versions, decoded, strict=True):
                futures.append(self._submit(served, seen, caller.deadline))
            return await caller.wait(futures, "computing")
        except AdaptError as error:
            for future in futures:
                future.cancel()
            _name_task(error, versions, futures)
            raise

    def _submit(self, served: Served, seen: Seen, deadline: float) -> Future[Answer]:
        load = self._catalogue.loader(served)
        return self._engine.submit(
            served.task, served.digest, load, seen.pixels, deadline, picture=seen.digest, admitted=True
        )


def _name_task(error: AdaptError, versions: Sequence[Served], futures: Sequence[Future[Answer]]) -> None:
    """Say which of several tasks failed: the one whose future raised, or the one that could not be submitted."""
    if len(futures) < len(versions):
        error.facts.setdefault("task", versions[len(futures)].task)
        return
    for served, future in zip(versions, futures, strict=True):
        if future.done() and not future.cancelled() and future.exception() is error:
            error.facts.setdefault("task", served.task)
            return
