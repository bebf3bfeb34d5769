"""What a trainer asks of the engine that serves: vectors of the frozen backbone, and answers of adapters, as a server
gives them; all in the background.

It blocks on a thread of its own while the event loop, on which the engine's twin lives, goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from adapters.config import AdapterConfig, Pool
from adapters.file import Adapter, write_adapter
from adapters.media import Pixels
from adapters.training.batches import Batches
from adapters.training.computing import OnBatch
from adapters.training.decoding import MediaExamples
from adapters.training.start import Frozen
from service.engine.interface import Answer, Link
from service.engine.pixels import PixelMemory
from service.errors import DeadlineExceeded, Draining, NotReady, QueueFull
from service.messages import Item, bare
from service.store.staging import left_by

T = TypeVar("T")

IN_FLIGHT = 16
"""Rows that wait for the engine at once, or one clip."""
DEADLINE_S = 60.0
PATIENCE_S, AGAIN_S = 180.0, 0.25
"""For how long an engine may be away, or too busy, and how often it is asked."""


class Asking:
    """See ``adapters.training.computing.Computing``. For one thread that is not the event loop's."""

    def __init__(
        self, engine: Link, memory: PixelMemory, folder: Path, loop: asyncio.AbstractEventLoop, owner: str = ""
    ) -> None:
        """``folder`` is where adapters are put for the engine to read, under names as of ``owner``."""
        self._engine, self._memory, self._loop = engine, memory, loop
        self._tried = folder / f"{left_by(owner)}tried"

    def frozen(
        self, config: AdapterConfig, pools: Sequence[Pool], data: MediaExamples, workers: int, on_batch: OnBatch
    ) -> Frozen:
        """Row by row, each in all ``pools`` at once; without those that only repeat another.

        A row is a frame, or a clip for a backbone that sees nothing else.
        """
        wanted, found = list(pools), list[Tensor]()
        labels, batches = [], Batches(data, max(1, IN_FLIGHT // config.frames), threads=workers)
        for number, (pixels, truth) in enumerate(batches, 1):
            rows = pixels.flatten(0, 1).numpy()
            vectors = torch.from_numpy(self._wait(self._vectors(rows, wanted)))
            if number == 1:
                kept = _different(vectors)
                wanted, vectors = [wanted[at] for at in kept], vectors[:, kept]
            found.append(vectors.view(len(pixels), self._engine.facts.layout.rows_of(config), *vectors.shape[1:]))
            labels.append(truth)
            on_batch(number / len(batches))
        together = torch.cat(found)
        return Frozen({pool: together[:, :, at] for at, pool in enumerate(wanted)}, torch.cat(labels))

    def logits(self, adapter: Adapter, data: MediaExamples, workers: int, on_batch: OnBatch) -> Tensor:
        """The adapter goes into one of the engine's slots, where whoever asks later finds it."""
        config, task, path = adapter.config, adapter.config.task, self._tried
        digest = write_adapter(path, config, adapter.tensors)
        try:
            self.try_file(path, digest, task)
            return self.answers(Item(task, digest, (str(path),)), config, data, workers, on_batch)
        finally:
            self._loop.call_soon_threadsafe(self._engine.forget, digest)
            path.unlink(missing_ok=True)

    def answers(
        self, version: Item, config: AdapterConfig, data: MediaExamples, workers: int, on_batch: OnBatch
    ) -> Tensor:
        """A version's logits for examples as its config sees them: (items, classes), or (items, views, classes).

        One after another, so that each is computed in a batch of its own: in just the way in which a server answers
        that has nothing else to do, to the last bit.
        """
        found = []
        for number, (pixels, _) in enumerate(Batches(data, 1, threads=workers), 1):
            views = pixels.view(config.views, config.frames, *pixels.shape[2:]).numpy()
            answers = [self._wait(self._ask([version], view, embed=False))[0] for view in views]
            found.append(np.stack([answer.logits for answer in answers]))
            on_batch(number / len(data))
        return torch.from_numpy(np.stack(found)).squeeze(1)

    def try_file(self, path: Path, digest: str, task: str) -> None:
        """As ``Link.try_file``."""

        async def once() -> None:
            await self._engine.try_file(str(path), digest, task, time.monotonic() + DEADLINE_S)

        self._wait(_patiently(once))

    async def _vectors(self, rows: Pixels, pools: Sequence[Pool]) -> Any:
        """(rows, pools, width) float32."""
        items = [bare(pool) for pool in pools]
        step = self._engine.facts.layout.frames
        asked = [self._ask(items, rows[at : at + step], embed=True) for at in range(0, len(rows), step)]
        found: list[list[Any]] = [[a.vector for a in answers] for answers in await asyncio.gather(*asked)]
        return np.array(found, np.float32)

    async def _ask(self, items: Sequence[Item], frames: Pixels, *, embed: bool) -> Sequence[Answer]:
        """The answers about one input."""

        async def once() -> Sequence[Answer]:
            held = self._memory.take(len(frames))
            for at, frame in enumerate(frames):
                held[at][...] = frame
            deadline = time.monotonic() + DEADLINE_S
            asked = self._engine.ask(items, held, deadline, held.digest(), embed=embed, background=True)
            return await asyncio.gather(*map(_awaited, asked))

        found: Sequence[Answer] = await _patiently(once)
        return found

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _awaited(answer: Any) -> Answer:
    """Of this process's engine or another's."""
    found: Answer = await (answer if asyncio.isfuture(answer) else asyncio.wrap_future(answer))
    return found


async def _patiently(once: Any) -> Any:
    """Again and again while the engine is not there, or has no room. Raises what it said last."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await once()
        except (NotReady, Draining, QueueFull, DeadlineExceeded):
            if time.monotonic() > end:
                raise
        await asyncio.sleep(AGAIN_S)


def _different(vectors: Tensor) -> list[int]:
    """Of (rows, pools, width): the pools that are not what a later one says more exactly."""
    count = vectors.shape[1]
    return [
        at
        for at in range(count)
        if not any(torch.equal(vectors[:, at], vectors[:, other]) for other in range(at + 1, count))
    ]
