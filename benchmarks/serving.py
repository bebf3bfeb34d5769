"""A real engine in this process, for benchmarks of what runs inside it: many tasks, JPEGs decoded on the same cores."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.backbone import Backbone
from adapters.bank import Bank, Slabs, pack
from adapters.forward.banked import Job
from adapters.media import MediaLimits, Preprocess, decode_image, rows
from benchmarks.common import random_adapter
from service.engine.engine import Engine
from service.engine.interface import Answer

Forward = Callable[[Sequence[Job]], list[NDArray[np.float32]]]
DEADLINE_S = 120.0
DECODERS = 2


@dataclass(frozen=True)
class Load:
    """Answers a second, and the seconds that each answer took from JPEG to logits."""

    rate: float
    latencies: NDArray[np.float64]

    def milliseconds(self, percent: float) -> float:
        return float(1e3 * np.percentile(self.latencies, percent))


class Served:
    """An engine whose bank holds ``tasks`` random adapters of a backbone."""

    def __init__(self, engine: Engine, backbone: Backbone, packs: dict[str, Any], jpeg: bytes) -> None:
        self._engine, self._packs, self._jpeg = engine, packs, jpeg
        self._preprocess, self._limits = Preprocess(backbone.input), MediaLimits()

    def pixels(self) -> Any:
        """Decoded anew at every call: uint8 (1, 3, size, size)."""
        return rows([decode_image(self._jpeg, self._limits)], self._preprocess)

    def submit(self, number: int, pixels: Any) -> Future[Answer]:
        task = str(number % len(self._packs))
        return self._engine.submit(
            task, task, lambda: self._packs[task], pixels, time.monotonic() + DEADLINE_S, admitted=True
        )

    def closed_loop(self, clients: int, seconds: float) -> Load:
        """Every client asks its next task as soon as it has its answer."""
        end, taken = time.monotonic() + seconds, list[float]()
        with ThreadPoolExecutor(DECODERS) as decoders:

            def client(number: int) -> None:
                while (start := time.monotonic()) < end:
                    pixels = decoders.submit(self.pixels).result()
                    self.submit(number, pixels).result(DEADLINE_S)
                    taken.append(time.monotonic() - start)
                    number += clients + 1

            threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
            begun = time.monotonic()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return Load(len(taken) / (time.monotonic() - begun), np.array(taken))

    def poisson(self, rate: float, seconds: float, seed: int) -> Load:
        """Arrivals at random, ``rate`` a second; the same ones for the same seed. Decoding is part of the wait."""
        generator = np.random.default_rng(seed)
        arrivals = np.cumsum(generator.exponential(1 / rate, max(1, round(rate * seconds))))
        taken, done = list[float](), threading.Semaphore(0)
        begun = time.monotonic()

        def arrive(number: int, due: float) -> None:
            def answered(future: Future[Answer]) -> None:
                if future.exception() is None:
                    taken.append(time.monotonic() - due)
                done.release()

            self.submit(number, self.pixels()).add_done_callback(answered)

        with ThreadPoolExecutor(DECODERS) as decoders:
            for number, at in enumerate(begun + arrivals):
                time.sleep(max(0.0, at - time.monotonic()))
                decoders.submit(arrive, number, at)
        for _ in arrivals:
            if not done.acquire(timeout=DEADLINE_S):
                raise RuntimeError("an answer never came")
        return Load(len(taken) / (time.monotonic() - begun), np.array(taken))


@contextmanager
def served(
    backbone: Backbone,
    make: Callable[[Slabs], Forward],
    tasks: int,
    jpeg: bytes,
    engine_of: Callable[..., Engine] = Engine,
) -> Iterator[Served]:
    """``make`` gets the slabs that the engine's bank fills. Every size of batch up to ``tasks`` was computed once."""
    layout = backbone.layout
    rank = layout.slot_rank()  # as a server has them
    slabs = Slabs(layout, slots=tasks, rank=rank, pages=tasks, dtype=backbone.dtype, device=backbone.device)
    packs = {str(i): pack(random_adapter(backbone, i), layout, rank, backbone.dtype) for i in range(tasks)}
    bank = Bank(slabs, host_cache_bytes=2**30)
    forward: Any = make(slabs)
    engine = engine_of(forward, bank, max_batch_rows=32, max_queue_rows=4096)
    engine.start()
    try:
        house = Served(engine, backbone, packs, jpeg)
        pixels = house.pixels()
        for count in range(1, tasks + 1):  # a runtime may prepare each size
            for future in [house.submit(number, pixels) for number in range(count)]:
                future.result(DEADLINE_S)
        yield house
    finally:
        engine.close()
        bank.close()
