"""Answers: one body and some versions in, each version's best labels out, with where the time went.

It knows the decoder and what an engine answers; it does not know HTTP, the disk or the device.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from adapters.errors import AdaptError
from adapters.scores import Prediction, best
from service.engine.interface import Answer, Answering, Link
from service.messages import Item
from service.store.catalogue import Catalogue, Served
from service.web.caller import Caller
from service.web.decoding import Decoder, Seen, numbered

T = TypeVar("T")

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


class Answers:
    """Decodes once, asks for every version at once, and waits no longer than the caller does."""

    def __init__(self, decoder: Decoder, engine: Link, catalogue: Catalogue) -> None:
        self._decoder, self._engine, self._catalogue = decoder, engine, catalogue

    async def check_room(self, digests: Sequence[str], caller: Caller) -> None:
        """Refuse what would be refused anyway, before its body is read and decoded. Raises QueueFull and more.

        ``digests`` are those of the versions that are to answer: what is not resident must be loaded in time too.
        """
        self._decoder.check_room(caller.left)
        await self._engine.check_room(len(digests), caller.deadline, digests)

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

    async def predict_each(
        self, bodies: Sequence[bytes], served: Served, top_k: int, score: str | None, caller: Caller
    ) -> Outcomes:
        """Several inputs for one version, in order: all are decoded, then asked for at once, to meet in a batch.

        All or nothing: the first failure is raised, and says of which. ``score`` stands in for the file's own.
        """
        enough = threading.Event()
        try:
            parts = await caller.wait(self._decoder.submit_each(bodies, served.config, caller.left, enough), "decoding")
        finally:
            enough.set()
        decoded_ns = time.time_ns()
        seen = [parts[place % len(parts)][place // len(parts)].seen[0] for place in range(len(bodies))]
        answers = await self._compute_each(served, seen, caller)
        labels, how = served.config.labels, score or served.config.score

        def outcomes() -> list[Outcome]:
            return [
                Outcome(served, best(one.logits, labels, how, top_k), what.bad_frames, one.queue_s, one.compute_s)
                for one, what in zip(answers, seen, strict=True)
            ]

        small = len(bodies) * len(labels) < LARGE_HEAD
        results = outcomes() if small else await asyncio.to_thread(outcomes)
        return Outcomes(results, max(sum(one.seconds for one in part) for part in parts), decoded_ns)

    async def unpack(self, work: Callable[[], T], caller: Caller) -> T:
        """Make a request's bytes into bodies, off the event loop."""
        (made,) = await caller.wait([self._decoder.unpack(work, caller.left)], "reading the body")
        return made

    async def _compute_each(self, served: Served, seen: Sequence[Seen], caller: Caller) -> list[Answer]:
        answers: list[Answering] = []
        item = self._item(served)
        try:
            for one in seen:
                answers += self._engine.ask([item], one.pixels, caller.deadline, one.digest)
            return await caller.wait(answers, "computing")
        except AdaptError as error:
            for answer in answers:
                answer.cancel()
            place = _place(error, answers)
            raise error if place is None else numbered(error, place, len(seen)) from None

    async def _compute(self, versions: Sequence[Served], decoded: Sequence[Seen], caller: Caller) -> list[Answer]:
        """Those that see the same pixels are asked for together."""
        answers: dict[int, Answering] = {}
        try:
            for seen in {id(seen): seen for seen in decoded}.values():
                places = [place for place, other in enumerate(decoded) if other is seen]
                items = [self._item(versions[place]) for place in places]
                asked = self._engine.ask(items, seen.pixels, caller.deadline, seen.digest)
                answers.update(zip(places, asked, strict=True))
            return await caller.wait([answers[place] for place in range(len(versions))], "computing")
        except AdaptError as error:
            for answer in answers.values():
                answer.cancel()
            _name_task(error, versions, answers)
            raise

    def _item(self, served: Served) -> Item:
        return Item(served.task, served.digest, self._catalogue.files(served))


def _name_task(error: AdaptError, versions: Sequence[Served], answers: dict[int, Answering]) -> None:
    """Say which of several tasks failed."""
    place = _place(error, list(answers.values()))
    if place is not None:
        error.facts.setdefault("task", versions[list(answers)[place]].task)


def _place(error: AdaptError, answers: Sequence[Answering]) -> int | None:
    """Which answer is that error, if any."""
    for place, answer in enumerate(answers):
        if answer.done() and not answer.cancelled() and answer.exception() is error:
            return place
    return None
