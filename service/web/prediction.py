"""Answers: one body and some versions in, each version's best labels out, with where the time went.

It knows the decoder and what an engine answers; it does not know HTTP, the disk or the device.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np

from adapters.config import AdapterConfig
from adapters.errors import AdapterError, AdaptError, WrongModality
from adapters.media import sniff
from adapters.meta import BARE_FRAMES, bare_config
from adapters.scores import best, probabilities
from service.engine.interface import Answer, Answering, Link
from service.errors import UnknownVersion
from service.messages import Asker, Item, bare
from service.store.catalogue import Catalogue, Served
from service.usage import Consumption
from service.web.caller import Caller
from service.web.decoding import Body, Decoder, Seen, numbered
from service.web.outcomes import PLAIN, Embedded, Extras, Outcome, Outcomes

T = TypeVar("T")
Named = Callable[[AdaptError, int], AdaptError]
"""Makes of an error, and of the place of what failed, the error to raise."""

IDLE = Asker(priority=0)
"""Whoever asks beside everybody else."""
MOMENT_S = 0.05
"""Of waiting for the device: who would wait longer should not wait for what nobody waits for."""
LARGE_HEAD = 4096
"""Classes from which scores are computed off the event loop."""


class Answers:
    """Decodes once, asks for every version at once, and waits no longer than the caller does."""

    def __init__(self, decoder: Decoder, engine: Link, catalogue: Catalogue, usage: Consumption) -> None:
        self._decoder, self._engine, self._catalogue, self._usage = decoder, engine, catalogue, usage

    def admit(self, caller: Caller, items: int = 1) -> None:
        """Count so many pictures or clips for the caller's key, once for each. Raises OverRate or OverQuota."""
        self._usage.admit(caller.asker.holder, items)

    async def check_room(self, digests: Sequence[str], caller: Caller) -> None:
        """Refuse what would be refused anyway, before its body is read and decoded. Raises QueueFull and more.

        ``digests`` are those of the versions that are to answer: what is not resident must be loaded in time too.
        """
        self._decoder.check_room(caller.left, caller.asker)
        await self._engine.check_room(len(digests), caller.deadline, digests, caller.asker)

    async def check_room_bare(self, caller: Caller) -> None:
        """``check_room`` for the bare backbone, which is always there."""
        self._decoder.check_room(caller.left, caller.asker)
        await self._engine.check_room(self._engine.facts.layout.frames, caller.deadline, (), caller.asker)

    async def predict(
        self, body: Body, versions: Sequence[Served], top_k: int, caller: Caller, extras: Extras = PLAIN
    ) -> Outcomes:
        """All or nothing: the first failure is raised, with the task's name, and the other rows are taken back."""
        configs = [served.config for served in versions]
        decoding = self._decoder.submit(body, configs, caller.left, extras.excerpt, caller.asker)
        (decoded,) = await caller.wait([decoding], "decoding")
        decoded_ns = time.time_ns()

        def named(error: AdaptError, place: int) -> AdaptError:
            error.facts.setdefault("task", versions[place].task)
            return error

        answers = await self._compute(versions, decoded.seen, caller, named, embed=extras.embedding)
        results = []
        for served, views, seen in zip(versions, answers, decoded.seen, strict=True):
            make = partial(_whole, served, views, seen, top_k, extras)
            outcome = make() if _small(served, views) else await asyncio.to_thread(make)
            if served.rule is not None and extras.excerpt is None:
                outcome = replace(outcome, seen=seen)
            results.append(outcome)
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
            decoding = self._decoder.submit_each(bodies, served.config, caller.left, enough, caller.asker)
            parts = await caller.wait(decoding, "decoding")
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
        if served.rule is not None:
            results = [replace(outcome, seen=what) for outcome, what in zip(results, seen, strict=True)]
        return Outcomes(results, max(sum(one.seconds for one in part) for part in parts), decoded_ns)

    @property
    def is_busy(self) -> bool:
        """Whether anybody waits for a decoder, or for the device for longer than a moment."""
        return self._decoder.is_behind or self._engine.backlog_s > MOMENT_S

    def alike(self, one: Served, other: Served) -> bool:
        """Whether two versions see the same of any body."""
        return self._decoder.alike(one.config, other.config)

    async def again(self, served: Served, body: bytes | None, seen: Seen | None, caller: Caller) -> Outcome:
        """What another version says of a ``body``, or of what was ``seen`` of it, while nobody else wants anything."""
        if body is not None or seen is None:
            decoding = self._decoder.submit(body or b"", [served.config], caller.left, asker=IDLE)
            (decoded,) = await caller.wait([decoding], "decoding")
            (seen,) = decoded.seen

        def named(error: AdaptError, place: int) -> AdaptError:  # noqa: ARG001
            return error

        (views,) = await self._compute([served], [seen], caller, named, embed=False, background=True)
        return _outcome(served, views, seen, 1, served.config.score, PLAIN)

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

        decoding = self._decoder.submit_as(body, config_of, caller.left, caller.asker)
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
        asked = self._engine.ask([bare()], seen.pixels, caller.deadline, seen.digest, caller.asker, embed=True)
        (answer,) = await caller.wait(asked, "computing")
        assert answer.vector is not None, "an engine left out what was asked"
        return Embedded(
            answer.vector, config.modality, len(seen.pixels), seen.bad_frames, times, answer.queue_s, answer.compute_s
        )

    async def unpack(self, work: Callable[[], T], caller: Caller) -> T:
        """Make a request's bytes into bodies, off the event loop."""
        (made,) = await caller.wait([self._decoder.unpack(work, caller.left, caller.asker)], "reading the body")
        return made

    async def _compute(
        self, versions: Sequence[Served], decoded: Sequence[Seen], caller: Caller, named: Named, *, embed: bool,
        background: bool = False,
    ) -> list[list[Answer]]:  # fmt: skip
        """``_compute_once``; once more where files were fetched that an engine did not find, or found wrong."""
        try:
            return await self._compute_once(versions, decoded, caller, named, embed=embed, background=background)
        except (UnknownVersion, AdapterError):
            if not await self._catalogue.bring_again(versions):
                raise
        return await self._compute_once(versions, decoded, caller, named, embed=embed, background=background)

    async def _compute_once(
        self, versions: Sequence[Served], decoded: Sequence[Seen], caller: Caller, named: Named, *, embed: bool,
        background: bool,
    ) -> list[list[Answer]]:  # fmt: skip
        """The answers to each version's views. Those that see the same pixels are asked for together."""
        answers: dict[int, list[Answering]] = {place: [] for place in range(len(versions))}
        seen_by = zip(versions, decoded, strict=True)
        rows = sum(len(seen.pixels) for served, seen in seen_by if len(seen.pixels) > served.config.frames)
        if rows and not background:  # all views or none: those that found room would be computed for nothing
            await self._engine.check_room(rows, caller.deadline, (), caller.asker)
        try:
            for seen in {id(seen): seen for seen in decoded}.values():
                places = [place for place, other in enumerate(decoded) if other is seen]
                items = [self._item(versions[place]) for place in places]
                for number, view in enumerate(seen.pixels.views(versions[places[0]].config.frames)):
                    picture = seen.digest + number.to_bytes(2, "little") if number else seen.digest
                    asked = self._engine.ask(
                        items, view, caller.deadline, picture, caller.asker, embed=embed, background=background
                    )
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
    label = top[0].label
    if extras.min_score:
        top = [label for label in top if label.score >= extras.min_score]
    vector = None
    if extras.embedding:
        vector = np.mean([view.vector for view in views if view.vector is not None], axis=0)
    return Outcome(served, top, seen.bad_frames, last.queue_s, last.compute_s, accepted, vector, best=label)


def _place(error: AdaptError, answers: dict[int, list[Answering]]) -> int | None:
    """Of whose answers that error is one, if any."""
    for place, views in answers.items():
        if any(one.done() and not one.cancelled() and one.exception() is error for one in views):
            return place
    return None
