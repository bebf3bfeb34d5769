"""Decoder: a body -> the pixels that a version wants, on the decode workers.

It does not know tasks' weights, the device or HTTP. Preprocessing objects are kept per geometry.
"""

from __future__ import annotations

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from PIL import Image

from adapters.config import AdapterConfig, InputConfig, VideoConfig
from adapters.media import Deadline, MediaLimits, Preprocess, decode, decode_image, geometry, rows
from service.engine.pixels import Held, PixelMemory
from service.pool import Pool

MAX_PREPROCESSES = 256
"""Distinct geometries whose transform is kept; the least recently used one is built again."""


@dataclass(frozen=True)
class Seen:
    """What a config sees of a body: its frames, their digest, and how many were bad."""

    pixels: Held
    digest: bytes
    bad_frames: int


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

    def submit(self, body: bytes, configs: Sequence[AdapterConfig], left: float) -> Future[Decoded]:
        """The future raises a MediaError; the call itself QueueFull, also when ``left`` seconds would hardly do."""
        return self._pool.submit(lambda: self._decode(body, configs), left)

    def check_room(self, left: float) -> None:
        """Whether a body with ``left`` seconds would be taken now. Raises QueueFull."""
        self._pool.check_room(left)

    def _decode(self, body: bytes, configs: Sequence[AdapterConfig]) -> Decoded:
        """Each sampling is decoded once, and each geometry of it resized once; one deadline covers them all."""
        start = time.perf_counter()
        deadline = Deadline(self._limits)
        samplings: dict[VideoConfig | None, list[int]] = {}
        for i, config in enumerate(configs):
            samplings.setdefault(config.video, []).append(i)
        seen: dict[int, Seen] = {}
        for members in samplings.values():  # one after the other, so that the frames of one alone are in memory
            frames = decode(body, configs[members[0]], self._limits, deadline)
            resized: dict[InputConfig, Seen] = {}
            for i in members:
                shape = geometry(configs[i].input)
                if shape not in resized:
                    deadline.check()
                    pixels = self._memory.take(len(frames))
                    rows(frames, self._preprocess(shape), pixels)
                    resized[shape] = Seen(pixels, pixels.digest(), frames.bad)
                seen[i] = resized[shape]
        return Decoded([seen[i] for i in range(len(configs))], time.perf_counter() - start)

    def warm_up(self, config: InputConfig) -> None:
        """Decode one blank picture, so that no request pays for Pillow's plugins and the transform; blocks."""
        blank = io.BytesIO()
        Image.new("RGB", (64, 48)).save(blank, "PNG")
        rows([decode_image(blank.getvalue(), self._limits)], self._preprocess(geometry(config)))

    def _preprocess(self, config: InputConfig) -> Preprocess:
        with self._lock:
            known = self._preprocesses.get(config)
            if known is not None:
                self._preprocesses.move_to_end(config)
                return known
        made = Preprocess(config)
        with self._lock:
            self._preprocesses[config] = made
            while len(self._preprocesses) > MAX_PREPROCESSES:
                self._preprocesses.popitem(last=False)
        return made
