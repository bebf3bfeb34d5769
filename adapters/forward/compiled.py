"""torch.compile as a runtime: the keys that are warmed up at start, compiled; every other batch runs eagerly.

A key takes tens of seconds and a C++ or Triton compiler, which nobody can wait for with a request. It does not know
what it compiles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from adapters.forward.plan import BatchKey
from adapters.forward.runtime import Outputs, Runtime, agrees

log = logging.getLogger(__name__)

MAX_COMPILED = 16
"""Keys that are compiled; the rest of a warm-up stays eager."""

Compute = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


class Compiled:
    """A runtime around ``reference``. Its kernels are traced once for each key, through all hooks, into one graph."""

    def __init__(self, reference: Runtime) -> None:
        self._reference = reference
        self._kept: dict[BatchKey, Compute | None] = {}

    def __call__(self, key: BatchKey, packed: Tensor, pixels: Tensor) -> Outputs:
        compute = self._kept.get(key)
        return self._reference(key, packed, pixels) if compute is None else Outputs(*compute(packed, pixels))

    def __len__(self) -> int:
        """Keys that run compiled."""
        return sum(compute is not None for compute in self._kept.values())

    def warm_up(self, key: BatchKey, packed: Tensor, pixels: Tensor) -> None:
        """Compile a key; it is kept if it answers these inputs as the reference does."""
        if key in self._kept or key.joins or len(self._kept) >= MAX_COMPILED:
            return
        self._kept[key] = None
        what = f"{key.rows} rows, {key.jobs} jobs"
        expected = self._reference(key, packed, pixels)
        try:
            # Outside inference mode, whose tensors cannot be traced; what is traced has no gradients either.
            with torch.inference_mode(False), torch.no_grad():
                inputs = packed.clone(), pixels.clone()
                traced = make_fx(lambda packed, pixels: tuple(self._reference(key, packed, pixels)))(*inputs)
            compute = torch.compile(traced, dynamic=False)
            # As every batch will call it: another mode, or tensors of another, would be compiled again.
            found = Outputs(*compute(packed, pixels))
        except Exception:  # a compiler may raise anything
            log.warning("torch.compile failed for %s; such batches run eagerly", what, exc_info=True)
            return
        if not agrees(found, expected):
            log.warning("compiled, a batch of %s is answered otherwise than by eager; it runs eagerly", what)
            return
        self._kept[key] = compute
