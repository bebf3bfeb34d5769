"""Answers: one body and some versions in, each version's best labels out, with where the time went.

It knows the decoder and what an engine answers; it does not know HTTP, the disk or the device.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from adapters.errors import AdaptError
from adapters.scores import Prediction, best
from service.engine.interface import Answer, Answering, Link
from service.messages import Item
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
        for served, views, seen in zip(versions, answers, decoded.seen, strict=True):
            labels, score = served.config.labels, served.config.score
            logits = views[0].logits if len(views) == 1 else np.stack([view.logits for view in views])
            if logits.size < LARGE_HEAD:
                top = best(logits, labels, score, top_k)
            else:
                top = await asyncio.to_thread(best, logits, labels, score, top_k)
            last = max(views, key=lambda view: view.queue_s + view.compute_s)
            results.append(Outcome(served, top, seen.bad_frames, last.queue_s, last.compute_s))
        return Outcomes(results, decoded.seconds, decoded_ns)

    async def _compute(self, versions: Sequence[Served], decoded: Sequence[Seen], caller: Caller) -> list[list[Answer]]:
        """The answers to each version's views. Those that see the same pixels are asked for together."""
        answers: dict[int, list[Answering]] = {place: [] for place in range(len(versions))}
        rows = sum(served.config.rows for served in versions if served.config.views > 1)
        if rows:  # all views or none: those that found room would be computed for nothing
            await self._engine.check_room(rows, caller.deadline, ())
        try:
            for seen in {id(seen): seen for seen in decoded}.values():
                places = [place for place, other in enumerate(decoded) if other is seen]
                items = [self._item(versions[place]) for place in places]
                for number, view in enumerate(seen.pixels.views(versions[places[0]].config.frames)):
                    picture = seen.digest + bytes([number]) if number else seen.digest
                    asked = self._engine.ask(items, view, caller.deadline, picture)
                    for place, answer in zip(places, asked, strict=True):
                        answers[place].append(answer)
            found = iter(await caller.wait([one for views in answers.values() for one in views], "computing"))
            return [list(islice(found, len(views))) for views in answers.values()]
        except AdaptError as error:
            for views in answers.values():
                for answer in views:
                    answer.cancel()
            _name_task(error, versions, answers)
            raise

    def _item(self, served: Served) -> Item:
        return Item(served.task, served.digest, self._catalogue.files(served))


def _name_task(error: AdaptError, versions: Sequence[Served], answers: dict[int, list[Answering]]) -> None:
    """Say which of several tasks failed."""
    for place, views in answers.items():
        if any(one.done() and not one.cancelled() and one.exception() is error for one in views):
            error.facts.setdefault("task", versions[place].task)
            return
