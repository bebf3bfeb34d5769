"""Decoder: a body -> the pixels that a version wants, on the decode workers.

It does not know tasks' weights, the device or HTTP. Preprocessing objects are kept per geometry.
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from PIL import Image

from adapters.config import AdapterConfig, InputConfig
from adapters.errors import AdaptError, MediaTooLarge
from adapters.limits import variable
from adapters.media import (
    Deadline,
    Excerpt,
    Frames,
    MediaLimits,
    Preprocess,
    Sampling,
    Span,
    decode,
    decode_image,
    geometry,
    rows,
    seen_by,
)
from service.engine.pixels import Held, PixelMemory
from service.messages import NOBODY, Asker
from service.pool import Pool

T = TypeVar("T")
Body = bytes | Callable[[], bytes]
"""A picture or clip, or what reads it once a worker is there: until then it need not be in memory."""

MAX_ROWS = 2**31
MAX_PREPROCESSES = 256
"""Configs, and distinct geometries, whose transform is kept; the least recently used one is built again."""


@dataclass(frozen=True)
class Seen:
    """What a config sees of a body: the frames of all views, a digest that equal ones share, and how many were bad.

    Of a clip of which parts were asked: the frames of each of the ``spans``, one after the other. ``times`` of a clip's
    frames are in seconds after its first one.
    """

    pixels: Held
    digest: bytes
    bad_frames: int
    spans: Sequence[Span] = ()
    times: Sequence[float] = ()


@dataclass(frozen=True)
class _Prepared:
    """How inputs of one config become pixels: the transform that all of its geometry share, and that as bytes."""

    config: InputConfig
    preprocess: Preprocess
    name: bytes


@dataclass(frozen=True)
class Decoded:
    """What each config sees, in the order asked, and the seconds that all took together."""

    seen: list[Seen]
    seconds: float


class Decoder:
    """Decodes one body for any number of configs; those that want the same pixels share the work."""

    def __init__(self, pool: Pool, limits: MediaLimits, memory: PixelMemory, max_rows: int = MAX_ROWS) -> None:
        """``max_rows``: frames of one request, those of all its windows together; the engine's queue has no more."""
        self._pool, self._limits, self._memory, self._max_rows = pool, limits, memory, max_rows
        self._lock = threading.Lock()
        self._preprocesses: OrderedDict[InputConfig, Preprocess] = OrderedDict()
        self._prepared: OrderedDict[int, _Prepared] = OrderedDict()  # by identity: comparing configs takes longer

    def submit(
        self,
        body: Body,
        configs: Sequence[AdapterConfig],
        left: float,
        excerpt: Excerpt | None = None,
        asker: Asker = NOBODY,
    ) -> Future[Decoded]:
        """The future raises a MediaError; the call itself QueueFull, also when ``left`` seconds would hardly do."""
        return self._pool.submit(
            lambda: self._decode(body() if callable(body) else body, configs, excerpt), left, asker
        )

    def submit_each(
        self,
        bodies: Sequence[bytes],
        config: AdapterConfig,
        left: float,
        enough: threading.Event,
        asker: Asker = NOBODY,
    ) -> list[Future[list[Decoded]]]:
        """Several bodies for one config, dealt out to the workers: of n futures, number i has bodies i, i + n, ...

        Raises as ``submit``. An error of the futures names the body that it is about. Once ``enough`` is set, what has
        not begun is left.
        """
        jobs = min(len(bodies), self._pool.workers)

        def job(first: int) -> list[Decoded]:
            done: list[Decoded] = []
            for place in range(first, len(bodies), jobs):
                if enough.is_set():
                    break
                try:
                    done.append(self._decode(bodies[place], [config]))
                except AdaptError as error:
                    raise numbered(error, place, len(bodies)) from None
            return done

        return [self._pool.submit(partial(job, first), left, asker) for first in range(jobs)]

    def submit_as(
        self, body: bytes, config_of: Callable[[], AdapterConfig], left: float, asker: Asker = NOBODY
    ) -> Future[tuple[AdapterConfig, Decoded]]:
        """For a config that the bytes decide, on a worker. Raises as ``submit``."""

        def job() -> tuple[AdapterConfig, Decoded]:
            config = config_of()
            return config, self._decode(body, [config])

        return self._pool.submit(job, left, asker)

    @property
    def is_behind(self) -> bool:
        """Whether anything waits for a worker."""
        return self._pool.held > self._pool.workers

    def alike(self, one: AdapterConfig, other: AdapterConfig) -> bool:
        """Whether both see the same of any body."""
        if self._prepare(one.input).preprocess is not self._prepare(other.input).preprocess:
            return False
        videos = [config.video for config in (one, other)]
        samplings = [None if video is None else Sampling.of(video) for video in videos]
        return samplings[0] == samplings[1] and (one.crops, one.frames) == (other.crops, other.frames)

    def unpack(self, work: Callable[[], T], left: float, asker: Asker = NOBODY) -> Future[T]:
        """Make a request's bytes into bodies, on a worker. Raises as ``submit``."""
        return self._pool.submit(work, left, asker)

    def check_room(self, left: float, asker: Asker = NOBODY) -> None:
        """Whether a body with ``left`` seconds would be taken now. Raises QueueFull."""
        self._pool.check_room(left, asker)

    def _decode(self, body: bytes, configs: Sequence[AdapterConfig], excerpt: Excerpt | None = None) -> Decoded:
        """One deadline covers all that the configs see."""
        start = time.perf_counter()
        deadline = Deadline(self._limits)

        def seen(frames: Frames, preprocess: Preprocess, config: AdapterConfig) -> Seen:
            deadline.check()
            count = len(frames) * config.crops
            if excerpt is not None:
                self._check_rows(count)
            pixels, how = self._memory.take(count), self._prepare(config.input).name
            rows(frames, preprocess, pixels, crops=config.crops)
            if config.video is not None:
                how += f"{Sampling.of(config.video, excerpt)} {config.crops}".encode()
            return Seen(pixels, _digest(body, pixels, how), frames.bad, frames.spans, frames.times)

        found = seen_by(
            configs,
            lambda config: decode(body, config, self._limits, deadline, excerpt),
            lambda config: self._prepare(config).preprocess,
            seen,
        )
        return Decoded(found, time.perf_counter() - start)

    def _check_rows(self, count: int) -> None:
        if count > self._max_rows:
            raise MediaTooLarge(
                f"the windows have {count} frames together, and the queue has room for {self._max_rows}; ask for "
                f"fewer, or allow more with {variable('max_queue_rows')}",
                field="max_queue_rows", limit=self._max_rows, value=count,
            )  # fmt: skip

    def warm_up(self, config: InputConfig) -> None:
        """Decode one blank picture, so that no request pays for Pillow's plugins and the transform; blocks."""
        blank = io.BytesIO()
        Image.new("RGB", (64, 48)).save(blank, "PNG")
        rows([decode_image(blank.getvalue(), self._limits)], self._prepare(config).preprocess)

    def _prepare(self, config: InputConfig) -> _Prepared:
        with self._lock:
            known = self._prepared.get(id(config))
            if known is not None and known.config is config:
                self._prepared.move_to_end(id(config))
                return known
        shape = geometry(config)
        with self._lock:
            preprocess = self._preprocesses.setdefault(shape, Preprocess(shape))
            self._preprocesses.move_to_end(shape)
            made = self._prepared[id(config)] = _Prepared(config, preprocess, shape.model_dump_json().encode())
            for kept in (self._preprocesses, self._prepared):
                while len(kept) > MAX_PREPROCESSES:
                    kept.popitem(last=False)
        return made


def numbered(error: AdaptError, place: int, of: int) -> AdaptError:
    """The error of one of several inputs, with its place among them, from 0; of one alone as it is."""
    if of == 1:
        return error
    twin = error.copy()
    twin.message = f"item {place} (of 0 to {of - 1}): {error.message}"
    twin.args = (twin.message,)
    twin.facts["item"] = place
    return twin


def _digest(body: bytes, pixels: Held, how: bytes) -> bytes:
    """Equal for equal bodies that are seen in the same way; of whichever is shorter, the body or what is seen of it."""
    if len(body) > pixels.nbytes:
        return pixels.digest()
    found = hashlib.sha256(how)
    found.update(body)
    return found.digest()
