"""Batches of a data set in order, decoded ahead by threads where its items are on disk.

Threads and no processes: the decoders release the interpreter while they work, and what a process decodes would have
to come over shared memory, of which a container has 64 MiB.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

Examples = Dataset[tuple[Tensor, ...]]
"""Items are (pixels uint8 (frames, 3, height, width), label): int64 () or, for many labels, float32 (classes,)."""
AHEAD = 2
"""Batches that are decoded while another is computed, so that memory stays bounded."""


class Batches:
    """Iterable any number of times: batches of ``size`` items, each tensor with a leading dimension of items.

    Shuffled when a generator is given.
    ``threads`` decode ahead; with 0 an item is read when it is asked for. What reading an item raises, the loop gets.
    """

    def __init__(
        self, data: Examples, size: int, *, threads: int = 0, generator: torch.Generator | None = None
    ) -> None:
        count = len(data)  # type: ignore[arg-type]
        # Of positions: the order, and what is drawn for it, are those of a DataLoader over the data itself.
        self._order: DataLoader[int] = DataLoader(
            _Positions(count), batch_size=size, shuffle=generator is not None, generator=generator, collate_fn=list
        )
        self._data, self._threads = data, threads

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if not self._threads:
            for chosen in self._order:
                yield _stack([self._data[i] for i in chosen])
            return
        with ThreadPoolExecutor(self._threads, thread_name_prefix="decode") as pool:
            waiting: deque[list[Future[tuple[Tensor, ...]]]] = deque()
            try:
                for chosen in self._order:
                    waiting.append([pool.submit(self._data.__getitem__, i) for i in chosen])
                    if len(waiting) > AHEAD:
                        yield _stack([item.result() for item in waiting.popleft()])
                while waiting:
                    yield _stack([item.result() for item in waiting.popleft()])
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


class _Positions(Dataset[int]):
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


def _stack(items: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(default_collate(list(items)))
