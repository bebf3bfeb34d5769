"""CUDA graphs for the banked forward: captured once per shape of batch, replayed with new slots and pixels.

A graph that does not reproduce the eager result is thrown away and its shape runs eagerly from then on. It does
not know what it captures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapters.forward.plan import AFTER, BEFORE, BatchKey

log = logging.getLogger(__name__)

Compute = Callable[[BatchKey, Tensor, Tensor], tuple[Tensor, ...]]

MAX_GRAPHS = 64
"""Shapes kept as graphs; a server whose tasks make more shapes than that runs the rest eagerly."""


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    table: Tensor
    pixels: Tensor
    outputs: tuple[Tensor, ...]


def padded_rows(rows: int) -> int:
    """Rows of the graph that serves ``rows``: powers of two up to 8, then multiples of 8."""
    return next((size for size in (1, 2, 4, 8) if rows <= size), -(-rows // 8) * 8)


def pad(key: BatchKey, table: Tensor, pixels: Tensor) -> tuple[BatchKey, Tensor, Tensor]:
    """Add blank rows that use slot 0 and neighbour only themselves."""
    rows, size = key.rows, padded_rows(key.rows)
    if rows == size:
        return key, table, pixels
    wide = torch.zeros(table.shape[0], size, dtype=table.dtype, device=table.device)
    wide[:, :rows] = table
    wide[BEFORE, rows:] = wide[AFTER, rows:] = torch.arange(rows, size, device=table.device)
    frames = torch.zeros(size, *pixels.shape[1:], dtype=pixels.dtype, device=pixels.device)
    frames[:rows] = pixels
    return replace(key, rows=size), wide, frames


class Graphs:
    """Callable like the function it wraps; outputs are valid until the next call."""

    def __init__(self, compute: Compute, device: torch.device) -> None:
        self._compute, self._device = compute, device
        self._kept: dict[BatchKey, _Captured | None] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, key: BatchKey, table: Tensor, pixels: Tensor) -> tuple[Tensor, ...]:
        if key.joins:  # too many shapes to keep
            return self._compute(key, table, pixels)
        rows = key.rows
        key, table, pixels = pad(key, table, pixels)
        if key not in self._kept and len(self._kept) < MAX_GRAPHS:
            self._kept[key] = self._capture(key, table, pixels)
        captured = self._kept.get(key)
        if captured is None:
            return tuple(out[:rows] for out in self._compute(key, table, pixels))
        captured.table.copy_(table)
        captured.pixels.copy_(pixels)
        captured.graph.replay()
        return tuple(out[:rows] for out in captured.outputs)

    def _capture(self, key: BatchKey, table: Tensor, pixels: Tensor) -> _Captured | None:
        """Warm up on a side stream, capture, replay once and compare with the eager result."""
        try:
            table, pixels = table.clone(), pixels.clone()
            side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(side):
                for _ in range(2):
                    expected = self._compute(key, table, pixels)
            torch.cuda.current_stream(self._device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # thread_local: the bank's loader may copy into a slot while this thread captures
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = self._compute(key, table, pixels)
            graph.replay()
            if all(torch.allclose(a, b, rtol=1e-2, atol=1e-2) for a, b in zip(outputs, expected, strict=True)):
                return _Captured(graph, table, pixels, outputs)
            log.warning("a CUDA graph of %d rows gave another result; this shape runs eagerly", key.rows)
        except RuntimeError:
            log.warning("no CUDA graph for %d rows; this shape runs eagerly", key.rows, exc_info=True)
        return None
