"""Answers: one body and some versions in, each version's best labels out, with where the time went.

It knows the decoder and what an engine answers; it does not know HTTP, the disk or the device.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from adapters.config import AdapterConfig
from adapters.errors import AdapterError, AdaptError, WrongModality
from adapters.media import Excerpt, Span, sniff
from adapters.meta import BARE_FRAMES, bare_config
from adapters.scores import Prediction, best, probabilities
from service.engine.interface import Answer, Answering, Link
from service.errors import UnknownVersion
from service.messages import Item, bare
from service.store.catalogue import Catalogue, Served
from service.web.caller import Caller
from service.web.decoding import Body, Decoder, Seen, numbered

T = TypeVar("T")
Named = Callable[[AdaptError, int], AdaptError]  # of an error, and the place of what failed, the error to raise

LARGE_HEAD = 4096  # classes from which scores are computed off the event loop


@dataclass(frozen=True, slots=True)
class Extras:
    """What an answer is asked beyond its best labels.

    Labels below ``min_score`` are left out; ``abstain`` stands in for the file's own threshold; ``embedding``: with the
    task's pooled vector; ``excerpt``: of a part of a clip, or of windows of it; ``sampled``: with the times of the
    frames that were looked at.
    """

    min_score: float = 0.0
    abstain: float | None = None
    embedding: bool = False
    excerpt: Excerpt | None = None
    sampled: bool = False


PLAIN = Extras()


@dataclass(frozen=True)
class Outcome:
    """One version's answer; stages in seconds, ``queue_s`` with the time a cold adapter took to load.

    ``accepted``: whether the best score reaches the abstain threshold; None where there is none. ``vector`` (width,)
    float32 is the mean over the views, if it was asked. ``windows`` are answers of their own, if they were asked; the
    outcome is then of all of them, as if each were a view. ``sampled``: when the frames begin that were looked at, each
    once, in seconds after the clip's first one.
    """

    served: Served
    predictions: list[Prediction]
    bad_frames: int
    queue_s: float
    compute_s: float
    accepted: bool | None = None
    vector: NDArray[np.float32] | None = None
    windows: Sequence[tuple[Span, Outcome]] | None = None
    sampled: Sequence[float] | None = None


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


@dataclass(frozen=True)
class Embedded:
    """The bare backbone's vector (width,) float32, of a picture or so many ``frames`` of a clip; times in seconds."""

    vector: NDArray[np.float32]
    modality: Literal["image", "video"]
    frames: int
    bad_frames: int
    decoded: Outcomes
    queue_s: float
    compute_s: float


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

    async def check_room_bare(self, caller: Caller) -> None:
        """``check_room`` for the bare backbone, which is always there."""
        self._decoder.check_room(caller.left)
        await self._engine.check_room(self._engine.facts.layout.frames, caller.deadline, ())

    async def predict(
        self, body: Body, versions: Sequence[Served], top_k: int, caller: Caller, extras: Extras = PLAIN
    ) -> Outcomes:
        """All or nothing: the first failure is raised, with the task's name, and the other rows are taken back."""
        configs = [served.config for served in versions]
        decoding = self._decoder.submit(body, configs, caller.left, extras.excerpt)
        (decoded,) = await caller.wait([decoding], "decoding")
        decoded_ns = time.time_ns()

        def named(error: AdaptError, place: int) -> AdaptError:
            error.facts.setdefault("task", versions[place].task)
            return error

        answers = await self._compute(versions, decoded.seen, caller, named, embed=extras.embedding)
        results = []
        for served, views, seen in zip(versions, answers, decoded.seen, strict=True):
            make = partial(_whole, served, views, seen, top_k, extras)
            results.append(make() if _small(served, views) else await asyncio.to_thread(make))
        return Outcomes(results, decoded.seconds, decoded_ns)

    async def predict_each(
        self, bodies: Sequence[bytes], served: Served, top_k: int, score: str | None, caller: Caller,
        extras: Extras = PLAIN,
    ) -> Outcomes:  # fmt: skip
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
        versions, how = [served] * len(bodies), score or served.config.score

        def named(error: AdaptError, place: int) -> AdaptError:
            return numbered(error, place, len(bodies))

        answers = await self._compute(versions, seen, caller, named, embed=extras.embedding)

        def outcomes() -> list[Outcome]:
            return [
                _outcome(served, views, what, top_k, how, extras) for views, what in zip(answers, seen, strict=True)
            ]

        small = _small(served, [view for views in answers for view in views])
        results = outcomes() if small else await asyncio.to_thread(outcomes)
        return Outcomes(results, max(sum(one.seconds for one in part) for part in parts), decoded_ns)

    async def embed(self, body: bytes, frames: int | None, caller: Caller) -> Embedded:
        """The bare backbone's vector of a picture, or of a clip, of which it is the mean over ``frames``.

        A backbone of clips sees its own number of frames together, and no picture.
        Given ``frames``, the body must be a clip.
        """
        facts = self._engine.facts
        clips = facts.layout if facts.layout.frames > 1 else None  # it sees nothing else

        def config_of() -> AdapterConfig:
            clip = frames or (BARE_FRAMES if clips is None and sniff(body) == "video" else None)
            return bare_config(facts.layout, facts.input, clip)

        decoding = self._decoder.submit_as(body, config_of, caller.left)
        try:
            ((config, decoded),) = await caller.wait([decoding], "decoding")
        except WrongModality as error:
            if clips and error.facts.get("field") == "frames":
                raise
            if clips:
                raise WrongModality(
                    f"{clips.model} sees clips of {clips.frames} frames, and a picture came", expected="video",
                    got="image",
                ) from error  # fmt: skip
            raise WrongModality("'frames' asks for a clip, and a picture came; leave it out", field="frames") from error
        (seen,), times = decoded.seen, Outcomes([], decoded.seconds, time.time_ns())
        asked = self._engine.ask([bare()], seen.pixels, caller.deadline, seen.digest, embed=True)
        (answer,) = await caller.wait(asked, "computing")
        assert answer.vector is not None, "an engine left out what was asked"
        return Embedded(
            answer.vector, config.modality, len(seen.pixels), seen.bad_frames, times, answer.queue_s, answer.compute_s
        )

    async def unpack(self, work: Callable[[], T], caller: Caller) -> T:
        """Make a request's bytes into bodies, off the event loop."""
        (made,) = await caller.wait([self._decoder.unpack(work, caller.left)], "reading the body")
        return made

    async def _compute(
        self, versions: Sequence[Served], decoded: Sequence[Seen], caller: Caller, named: Named, *, embed: bool
    ) -> list[list[Answer]]:
        """As ``_asked``; once more where files were fetched that an engine did not find, or found wrong."""
        try:
            return await self._asked(versions, decoded, caller, named, embed=embed)
        except (UnknownVersion, AdapterError):
            if not await self._catalogue.bring_again(versions):
                raise
        return await self._asked(versions, decoded, caller, named, embed=embed)

    async def _asked(
        self, versions: Sequence[Served], decoded: Sequence[Seen], caller: Caller, named: Named, *, embed: bool
    ) -> list[list[Answer]]:
        """The answers to each version's views. Those that see the same pixels are asked for together."""
        answers: dict[int, list[Answering]] = {place: [] for place in range(len(versions))}
        seen_by = zip(versions, decoded, strict=True)
        rows = sum(len(seen.pixels) for served, seen in seen_by if len(seen.pixels) > served.config.frames)
        if rows:  # all views or none: those that found room would be computed for nothing
            await self._engine.check_room(rows, caller.deadline, ())
        try:
            for seen in {id(seen): seen for seen in decoded}.values():
                places = [place for place, other in enumerate(decoded) if other is seen]
                items = [self._item(versions[place]) for place in places]
                for number, view in enumerate(seen.pixels.views(versions[places[0]].config.frames)):
                    picture = seen.digest + number.to_bytes(2, "little") if number else seen.digest
                    asked = self._engine.ask(items, view, caller.deadline, picture, embed=embed)
                    for place, answer in zip(places, asked, strict=True):
                        answers[place].append(answer)
            found = iter(await caller.wait([one for views in answers.values() for one in views], "computing"))
            return [list(islice(found, len(views))) for views in answers.values()]
        except AdaptError as error:
            for views in answers.values():
                for answer in views:
                    answer.cancel()
            failed = _place(error, answers)
            if failed is None:
                raise
            raise named(error, failed) from None

    def _item(self, served: Served) -> Item:
        return Item(served.task, served.digest, self._catalogue.files(served))


def _small(served: Served, views: Sequence[Answer]) -> bool:
    return len(views) * len(served.config.labels) < LARGE_HEAD


def _whole(served: Served, views: Sequence[Answer], seen: Seen, top_k: int, extras: Extras) -> Outcome:
    """The outcome, and that of each window; views lie crop by crop, in each window by window, in each view by view."""
    how, spans = served.config.score, seen.spans
    outcome = _outcome(served, views, seen, top_k, how, extras)
    if extras.sampled and served.config.video is not None:
        outcome = replace(outcome, sampled=sorted(set(seen.times)))
    if extras.excerpt is None or extras.excerpt.window is None:
        return outcome
    crops, step = served.config.crops, served.config.views // served.config.crops
    windows = []
    for number, span in enumerate(spans):
        firsts = ((crop * len(spans) + number) * step for crop in range(crops))
        own = [view for first in firsts for view in views[first : first + step]]
        windows.append((span, _outcome(served, own, seen, top_k, how, extras)))
    return replace(outcome, windows=windows)


def _outcome(served: Served, views: Sequence[Answer], seen: Seen, top_k: int, score: str, extras: Extras) -> Outcome:
    logits = views[0].logits if len(views) == 1 else np.stack([view.logits for view in views])
    last = max(views, key=lambda view: view.queue_s + view.compute_s)
    config = served.config
    top = best(probabilities(logits, score, config.temperature), config.labels, top_k)
    abstain = config.abstain if extras.abstain is None else extras.abstain
    accepted = None if abstain is None else top[0].score >= abstain
    if extras.min_score:
        top = [label for label in top if label.score >= extras.min_score]
    vector = None
    if extras.embedding:
        vector = np.mean([view.vector for view in views if view.vector is not None], axis=0)
    return Outcome(served, top, seen.bad_frames, last.queue_s, last.compute_s, accepted, vector)


def _place(error: AdaptError, answers: dict[int, list[Answering]]) -> int | None:
    """Of whose answers that error is one, if any."""
    ended = ((place, one) for place, views in answers.items() for one in views if one.done() and not one.cancelled())
    return next((place for place, one in ended if one.exception() is error), None)
