"""CUDA graphs as a runtime: a batch's kernels captured once for each key, replayed with new slots and pixels.

A graph that does not reproduce the eager result is thrown away and its key runs eagerly from then on. It does not
know what it captures.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.forward.device import Device, Graph
from adapters.forward.plan import BatchKey
from adapters.forward.runtime import Outputs, Runtime, agrees

log = logging.getLogger(__name__)

MAX_GRAPHS = 64
"""Keys kept as graphs; where the tasks make more than that, the least recently used goes."""
KEPT_FOR = 1000
"""Batches for which a graph is kept after its latest; more keys in turn than ``MAX_GRAPHS`` run eagerly."""
WARM_UP_CALLS = 2
"""Eager calls before a capture, in which libraries choose their kernels and take their workspaces."""


@dataclass
class _Kept:
    """A key's graph, or None where none can be had. ``proven`` once a replay on a real batch was as eager is."""

    graph: Graph | None = None
    packed: Tensor | None = None
    pixels: Tensor | None = None
    outputs: Outputs | None = None
    proven: bool = False
    used: int = 0


class Graphs:
    """A runtime around another, ``inner``, whose kernels it captures; ``reference`` is what a replay must agree with.

    All graphs share one memory pool, which torch allows where they run one after another and each one's outputs are
    copied before the next: the pool is as large as the largest needs, and what an evicted one gives back is its own
    launch list and outputs. They share their input buffers too.
    """

    def __init__(self, inner: Runtime, reference: Runtime, device: Device) -> None:
        self._inner, self._reference, self._device = inner, reference, device
        self._kept: OrderedDict[BatchKey, _Kept] = OrderedDict()
        self._turn = 0
        self._packed = device.empty((0,), torch.int64)
        self._pixels = device.empty((0,), torch.uint8)

    def __call__(self, key: BatchKey, packed: Tensor, pixels: Tensor) -> Outputs:
        if key.joins:  # too many keys to keep
            return self._inner(key, packed, pixels)
        self._turn += 1
        kept = self._find(key, pixels)
        if kept is None or kept.graph is None:
            return self._inner(key, packed, pixels)
        assert kept.packed is not None
        assert kept.pixels is not None
        assert kept.outputs is not None
        kept.packed.copy_(packed)
        kept.pixels.copy_(pixels)
        if kept.proven:
            kept.graph.replay()
            return kept.outputs
        return self._prove(key, kept, kept.graph, kept.outputs, packed, pixels)

    def warm_up(self, key: BatchKey, packed: Tensor, pixels: Tensor) -> None:
        """Capture a key before anybody asks; the first real batch is compared with eager once more."""
        self(key, packed, pixels)
        if key in self._kept:
            self._kept[key].proven = False

    def __len__(self) -> int:
        """Graphs held now."""
        return sum(kept.graph is not None for kept in self._kept.values())

    def _find(self, key: BatchKey, pixels: Tensor) -> _Kept | None:
        """The key's entry, a new one if there is room or somebody has not been asked for long; else None."""
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= MAX_GRAPHS and not self._evict():
                return None
            kept = self._kept[key] = self._capture(key, pixels)
        self._kept.move_to_end(key)
        kept.used = self._turn
        return kept

    def _evict(self) -> bool:
        oldest, kept = next(iter(self._kept.items()))
        if self._turn - kept.used <= KEPT_FOR:
            return False
        del self._kept[oldest]
        self._free(kept)
        return True

    def _free(self, kept: _Kept) -> None:
        if kept.graph is not None:
            self._device.synchronize()  # its last replay may be under way
            kept.graph.reset()
            kept.graph = kept.packed = kept.pixels = kept.outputs = None

    def _capture(self, key: BatchKey, pixels: Tensor) -> _Kept:
        """Capture over blank inputs: a graph that keeps anything of them is found out by the first real batch."""
        try:
            inputs = self._inputs(key, pixels)
            for _ in range(WARM_UP_CALLS):
                self._inner(key, *inputs)
            graph, outputs = self._device.capture(lambda: self._inner(key, *inputs))
            return _Kept(graph, *inputs, outputs)
        except RuntimeError:
            log.warning("no CUDA graph for %s; such batches run eagerly", _named(key), exc_info=True)
            return _Kept()

    def _inputs(self, key: BatchKey, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Blank inputs of a key's size, in the memory that all graphs share; a larger one leaves it to the others."""
        if self._packed.shape[0] < key.integers:
            self._packed = self._device.empty((key.integers,), torch.int64)
        if self._pixels.numel() < pixels.numel():
            self._pixels = self._device.empty((pixels.numel(),), torch.uint8)
        flat = self._pixels[: pixels.numel()]
        return self._packed[: key.integers].zero_(), flat.zero_().view(pixels.shape)

    def _prove(
        self, key: BatchKey, kept: _Kept, graph: Graph, outputs: Outputs, packed: Tensor, pixels: Tensor
    ) -> Outputs:
        """A real batch's eager result; the graph is freed unless a replay gives the same into emptied outputs."""
        expected = self._reference(key, packed, pixels)
        try:
            for out in outputs:
                out.fill_(torch.nan)
            graph.replay()
            kept.proven = agrees(outputs, expected)
        except RuntimeError:
            log.warning("a CUDA graph of %s does not run", _named(key), exc_info=True)
        if not kept.proven:
            log.warning("the CUDA graph of %s answers otherwise than eager; such batches run eagerly", _named(key))
            self._free(kept)
        return expected


def _named(key: BatchKey) -> str:
    sites = ", ".join(site.site for site in key.sites) or "no site"
    return f"{key.rows} rows, {key.jobs} jobs, {sites}"
