"""Decoder: a body -> the pixels that a version wants, on the decode workers.

It does not know tasks' weights, the device or HTTP. Preprocessing objects are kept per geometry.
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from PIL import Image

from adapters.config import AdapterConfig, InputConfig
from adapters.media import (
    Deadline,
    Frames,
    MediaLimits,
    Preprocess,
    Sampling,
    decode,
    decode_image,
    geometry,
    rows,
    seen_by,
)
from service.engine.pixels import Held, PixelMemory
from service.pool import Pool

MAX_PREPROCESSES = 256
"""Configs, and distinct geometries, whose transform is kept; the least recently used one is built again."""


@dataclass(frozen=True)
class Seen:
    """What a config sees of a body: the frames of all views, a digest that equal ones share, and how many were bad."""

    pixels: Held
    digest: bytes
    bad_frames: int


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

    def __init__(self, pool: Pool, limits: MediaLimits, memory: PixelMemory) -> None:
        self._pool, self._limits, self._memory = pool, limits, memory
        self._lock = threading.Lock()
        self._preprocesses: OrderedDict[InputConfig, Preprocess] = OrderedDict()
        self._prepared: OrderedDict[int, _Prepared] = OrderedDict()  # by identity: comparing configs takes longer

    def submit(self, body: bytes, configs: Sequence[AdapterConfig], left: float) -> Future[Decoded]:
        """The future raises a MediaError; the call itself QueueFull, also when ``left`` seconds would hardly do."""
        return self._pool.submit(lambda: self._decode(body, configs), left)

    def check_room(self, left: float) -> None:
        """Whether a body with ``left`` seconds would be taken now. Raises QueueFull."""
        self._pool.check_room(left)

    def _decode(self, body: bytes, configs: Sequence[AdapterConfig]) -> Decoded:
        """One deadline covers all that the configs see."""
        start = time.perf_counter()
        deadline = Deadline(self._limits)

        def seen(frames: Frames, preprocess: Preprocess, config: AdapterConfig) -> Seen:
            deadline.check()
            pixels, how = self._memory.take(config.rows), self._prepare(config.input).name
            rows(frames, preprocess, pixels, crops=config.crops)
            if config.video is not None:
                how += f"{Sampling.of(config.video)} {config.crops}".encode()
            return Seen(pixels, _digest(body, pixels, how), frames.bad)

        found = seen_by(
            configs,
            lambda config: decode(body, config, self._limits, deadline),
            lambda config: self._prepare(config).preprocess,
            seen,
        )
        return Decoded(found, time.perf_counter() - start)

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


def _digest(body: bytes, pixels: Held, how: bytes) -> bytes:
    """Equal for equal bodies that are seen in the same way; of whichever is shorter, the body or what is seen of it."""
    if len(body) > pixels.nbytes:
        return pixels.digest()
    found = hashlib.sha256(how)
    found.update(body)
    return found.digest()
