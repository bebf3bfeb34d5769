"""How a batch gets to the device and its answers back: on CUDA through pinned memory, beside the batch that computes.

On a CPU there is nothing to copy. It knows no plan: integers and pixels in, what was computed out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.forward.device import Device, Event

Pixels = NDArray[np.uint8]


@dataclass
class Staged:
    """A batch's inputs where they are computed; ``here`` is when they have arrived, None if they have."""

    packed: Tensor
    pixels: Tensor
    buffer: _Buffer | None = None
    here: Event | None = None


class BatchStaging(Protocol):
    """One batch may be staged while another one computes; a third waits for the first."""

    def put(self, packed: NDArray[np.int64], pixels: Sequence[Pixels], rows: int) -> Staged:
        """Copy the table, and the pictures one after another into ``rows`` rows; those left over hold anything."""
        ...

    def get(self, staged: Staged, *outputs: Tensor) -> Fetched:
        """Begin to copy float32 outputs to the host, on the stream that computes them; what was staged is then free."""
        ...


class Fetched(Protocol):
    """Outputs on their way to the host."""

    def result(self) -> list[NDArray[np.float32]]:
        """They on the host, once they are there; valid until the next batch but one is got."""
        ...


class HostStaging:
    """Where the device is the processor."""

    def put(self, packed: NDArray[np.int64], pixels: Sequence[Pixels], rows: int) -> Staged:
        joined = np.concatenate(pixels)
        assert len(joined) == rows
        return Staged(torch.from_numpy(packed), torch.from_numpy(joined))

    def get(self, staged: Staged, *outputs: Tensor) -> Fetched:  # noqa: ARG002
        return _Here(outputs)


@dataclass(frozen=True)
class _Here:
    outputs: tuple[Tensor, ...]

    def result(self) -> list[NDArray[np.float32]]:
        return [output.numpy() for output in self.outputs]


class PinnedStaging:
    """Two buffers in turn. A buffer is filled again only when the device has read it and computed on it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffers = (_Buffer(device), _Buffer(device))
        self._turn = 0

    def put(self, packed: NDArray[np.int64], pixels: Sequence[Pixels], rows: int) -> Staged:
        self._turn ^= 1
        buffer, count = self._buffers[self._turn], sum(map(len, pixels))
        buffer.wait()
        table, table_there = buffer.table.sized((len(packed),))
        images, images_there = buffer.images.sized((rows, *pixels[0].shape[1:]))
        table.numpy()[:] = packed
        np.concatenate(pixels, out=images.numpy()[:count])
        with self._device.copying():
            table_there.copy_(table, non_blocking=True)
            images_there[:count].copy_(images[:count], non_blocking=True)
            here = buffer.busy = self._device.mark()
        return Staged(table_there, images_there, buffer, here)

    def get(self, staged: Staged, *outputs: Tensor) -> Fetched:
        buffer, sizes = staged.buffer, [output.numel() for output in outputs]
        assert buffer is not None
        if buffer.outputs.shape[0] < sum(sizes):
            buffer.outputs = self._device.pinned((sum(sizes),), torch.float32)
        parts = torch.split(buffer.outputs[: sum(sizes)], sizes)
        host = tuple(part.view(output.shape) for part, output in zip(parts, outputs, strict=True))
        for here, there in zip(host, outputs, strict=True):
            here.copy_(there, non_blocking=True)
        done = buffer.busy = self._device.mark()
        return _Coming(host, done)


@dataclass(frozen=True)
class _Coming:
    outputs: tuple[Tensor, ...]
    here: Event

    def result(self) -> list[NDArray[np.float32]]:
        self.here.synchronize()
        return [output.numpy() for output in self.outputs]


class _Buffer:
    """What one batch goes through; ``busy`` is the last thing that the device does with it."""

    def __init__(self, device: Device) -> None:
        self.busy: Event | None = None
        self.table = _Pair(device, torch.int64)
        self.images = _Pair(device, torch.uint8)
        self.outputs = torch.empty(0)

    def wait(self) -> None:
        if self.busy is not None:
            self.busy.synchronize()
            self.busy = None


class _Pair:
    """Pinned memory, and as much on the device; both grow to the largest that was asked for."""

    def __init__(self, device: Device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._host = self._there = torch.empty(0, dtype=dtype)

    def sized(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Views of them, on the host and on the device; nothing may be under way with the ones before."""
        count = prod(shape)
        if self._host.shape[0] < count:
            self._host = self._device.pinned((count,), self._dtype)
            with self._device.computing():
                self._there = self._device.empty((count,), self._dtype)
            # Kernels may still run in this memory for whoever had it before, and copies do not wait for them.
            self._device.synchronize()
        return self._host[:count].view(shape), self._there[:count].view(shape)
