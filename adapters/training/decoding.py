"""Files -> pixels for training, decoded and prepared exactly as the server does it; in memory where they fit.

It knows examples and preprocessing; it knows no model and no split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import Dataset

from adapters.config import AdapterConfig
from adapters.errors import MediaError
from adapters.media import MediaLimits, Preprocess, rows, take
from adapters.training.data import BadFile, Example, reason_of

CACHE_BYTES = 2**30
"""Pixels kept in memory; a larger set is decoded again in every epoch."""
IN_FLIGHT = 4
"""Files per thread that are read but not yet taken, so that memory stays bounded."""


class Reader:
    """Callable: an example -> uint8 (frames, 3, height, width), as the server would make of the file's bytes."""

    def __init__(self, config: AdapterConfig, limits: MediaLimits) -> None:
        self._config, self._limits, self._prepare = config, limits, Preprocess(config.input)

    @property
    def item_bytes(self) -> int:
        """Memory that one example takes."""
        return self._config.frames * 3 * math.prod(self._config.input.size)

    def __call__(self, example: Example) -> Tensor:
        """Raises MediaError, or OSError where the file is gone."""
        return torch.from_numpy(rows(take(example.path, self._config, self._limits), self._prepare))


@dataclass
class Scanned:
    """What could be read. ``pixels`` is None where they would not fit into memory."""

    examples: list[Example] = field(default_factory=list)
    pixels: list[Tensor] | None = None
    bad: list[BadFile] = field(default_factory=list)


def scan(
    examples: Sequence[Example],
    reader: Reader,
    *,
    threads: int,
    cache_bytes: int = CACHE_BYTES,
    on_file: Callable[[], None] | None = None,
) -> Scanned:
    """Decode every file once, so that all bad ones are known before training starts. The order stays."""
    keep = len(examples) * reader.item_bytes <= cache_bytes
    found = Scanned(pixels=[] if keep else None)
    for example, outcome in _in_order(examples, reader, max(1, threads)):
        if isinstance(outcome, Tensor):
            found.examples.append(example)
            if found.pixels is not None:
                found.pixels.append(outcome)
        else:
            found.bad.append(BadFile(example.name, outcome))
        if on_file:
            on_file()
    return found


def _in_order(examples: Sequence[Example], reader: Reader, threads: int) -> Iterator[tuple[Example, Tensor | str]]:
    """Threads suffice: the decoders release the interpreter while they work, as they do in the server."""

    def read(example: Example) -> Tensor | str:
        try:
            return reader(example)
        except (MediaError, OSError) as error:
            return reason_of(error)

    with ThreadPoolExecutor(threads) as pool:
        waiting: list[tuple[Example, Future[Tensor | str]]] = []
        upcoming = iter(examples)
        try:
            while True:
                room = threads * IN_FLIGHT - len(waiting)
                waiting += [(e, pool.submit(read, e)) for e in islice(upcoming, room)]
                if not waiting:
                    return
                example, future = waiting.pop(0)
                yield example, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


class MediaExamples(Dataset[tuple[Tensor, ...]]):
    """Items (pixels uint8 (frames, 3, height, width), label index int64 ()); from memory, or from disk when asked."""

    def __init__(self, scanned: Scanned, chosen: Sequence[int], classes: Mapping[str, int], reader: Reader) -> None:
        self.examples = [scanned.examples[i] for i in chosen]
        self._pixels = None if scanned.pixels is None else [scanned.pixels[i] for i in chosen]
        self._labels = torch.tensor([classes[e.label] for e in self.examples])
        self._reader = reader

    @property
    def in_memory(self) -> bool:
        """True where nothing is left to decode."""
        return self._pixels is not None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        pixels = self._reader(self.examples[index]) if self._pixels is None else self._pixels[index]
        return pixels, self._labels[index]
