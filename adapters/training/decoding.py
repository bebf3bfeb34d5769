"""Files -> pixels for training, decoded and prepared exactly as the server does it; in memory where they fit.

It knows examples and preprocessing; it knows no model and no split.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import Dataset

from adapters.config import AdapterConfig
from adapters.errors import MediaError, TrainingError
from adapters.media import MediaLimits, Preprocess, rows, take
from adapters.training.data import BadFile, Example, reason_of

CACHE_BYTES = 2**30
"""Pixels kept in memory; a larger set is decoded again in every epoch."""
IN_FLIGHT = 4
"""Files per thread that are read but not yet taken, so that memory stays bounded."""


class Reader:
    """Callable: an example -> uint8 (rows, 3, height, width), as the server would make of the file's bytes."""

    def __init__(self, config: AdapterConfig, limits: MediaLimits) -> None:
        self._config, self._limits, self._prepare = config, limits, Preprocess(config.input)

    @property
    def item_bytes(self) -> int:
        """Memory that one example takes."""
        return self._config.rows * 3 * math.prod(self._config.input.size)

    def __call__(self, example: Example) -> Tensor:
        """Raises MediaError, or OSError where the file is gone."""
        frames = take(example.path, self._config, self._limits)
        return torch.from_numpy(rows(frames, self._prepare, crops=self._config.crops))


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
    """Items (pixels uint8 (rows, 3, height, width), label index int64 ()); from memory, or from disk when asked."""

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


def all_views(
    scanned: Scanned, chosen: Sequence[int], classes: Mapping[str, int], reader: Reader, *, cache_bytes: int
) -> tuple[list[int], MediaExamples]:
    """Chosen files of which one view was read, now with all that ``reader`` sees: those that are left, and their views.

    What cannot be read so, as past a bound, goes to those that are bad. Raises TrainingError where nothing is left.
    """
    seen = scan([scanned.examples[i] for i in chosen], reader, threads=os.cpu_count() or 1, cache_bytes=cache_bytes)
    scanned.bad += seen.bad
    if seen.bad and not seen.examples:
        raise TrainingError(
            f"no held-out clip can be read in all its views; of {seen.bad[0].name} {seen.bad[0].reason}", field="views"
        )
    left = {example.path for example in seen.examples}
    return (
        [i for i in chosen if scanned.examples[i].path in left],
        MediaExamples(seen, range(len(seen.examples)), classes, reader),
    )
