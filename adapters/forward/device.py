"""The calls of ``torch.cuda`` that the forward makes, in one place and all on one device. Tests put a stand-in here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor

Result = TypeVar("Result")


class Event(Protocol):
    """A point on a stream."""

    def synchronize(self) -> None:
        """Block until the device has come by."""
        ...


class Graph(Protocol):
    """What was captured."""

    def replay(self) -> None: ...

    def reset(self) -> None:
        """Free what it holds; no replay may be under way."""
        ...


class Device(Protocol):
    """One CUDA device with two streams: one for every kernel of the forward, one for the copies of the next batch.

    All kernels are on one stream, also those before a capture and in it, so a library's workspace is the same memory in
    a graph and out of it, and graphs that share a memory pool never run at the same time.
    """

    def computing(self) -> AbstractContextManager[None]:
        """What runs within is on this device and on the stream of the kernels."""
        ...

    def copying(self) -> AbstractContextManager[None]:
        """What runs within is on this device and on the stream of the copies."""
        ...

    def mark(self) -> Event:
        """A point after all that was put on the current stream so far."""
        ...

    def wait(self, event: Event) -> None:
        """What is put on the current stream from now on begins after the event; the host goes on."""
        ...

    def synchronize(self) -> None:
        """Block until the device has done everything."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor: ...

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory that the device copies from and to on its own."""
        ...

    def capture(self, call: Callable[[], Result]) -> tuple[Graph, Result]:
        """Record the kernels that ``call`` launches, without running them. Raises RuntimeError where it cannot."""
        ...


class Cuda:
    """``Device`` as torch has it. Built on the thread that loads the backbone; used by one other thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._kernels = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
        self.synchronize()  # the backbone and the slabs were filled on the default stream, which these do not wait for

    def computing(self) -> AbstractContextManager[None]:
        return self._on(self._kernels)

    def copying(self) -> AbstractContextManager[None]:
        return self._on(self._copies)

    @contextmanager
    def _on(self, stream: torch.cuda.Stream) -> Iterator[None]:
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            yield

    def mark(self) -> Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait(self, event: Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(cast(torch.cuda.Event, event))

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._device)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        with torch.cuda.device(self._device):  # else a context is made on device 0 too
            return torch.empty(shape, dtype=dtype, pin_memory=True)

    def capture(self, call: Callable[[], Result]) -> tuple[Graph, Result]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: the bank's loader may allocate and copy into a slot while this thread captures. The context
        # synchronises and frees on the current device, so this must be within ``computing``.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._kernels, capture_error_mode="thread_local"):
            result = call()
        return graph, result
