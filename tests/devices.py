"""Stand-ins for a CUDA device: one that records what is asked of it and computes on the processor, and one of torch's
fake tensors, which have a device and a shape and no values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapters.backbone import Backbone
from adapters.bank import Slabs
from adapters.bank.pack import plane_of

Result = TypeVar("Result")
FAKE = torch.device("cuda:0")


@dataclass
class StandInEvent:
    """Remembers who waited for it."""

    number: int
    waited: list[int]

    def synchronize(self) -> None:
        self.waited.append(self.number)


@dataclass
class StandInGraph:
    """Runs the call again at each replay, into the outputs of the capture. ``broken``: what is wrong with it."""

    call: Callable[[], Any]
    outputs: Any
    broken: str = ""
    replays: int = 0
    freed: bool = False

    def replay(self) -> None:
        assert not self.freed
        self.replays += 1
        if self.broken == "raises":
            raise RuntimeError("CUDA error: invalid device context")
        if self.broken == "writes nothing":
            return
        for out, value in zip(self.outputs, self.call(), strict=True):
            out.copy_(value + 1 if self.broken == "writes another answer" else value)

    def reset(self) -> None:
        self.freed = True


@dataclass
class StandIn:
    """A ``Device`` on the processor. ``broken`` is what the graphs of captures to come will be.

    ``broken`` "keeps its inputs" is a graph in which the inputs of the capture are constants: what a value that was
    read on the host becomes.
    """

    broken: str = ""
    graphs: list[StandInGraph] = field(default_factory=list)
    within: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)
    host_waits: list[int] = field(default_factory=list)
    synchronized: int = 0

    @contextmanager
    def _on(self, stream: str) -> Iterator[None]:
        self.within.append(stream)
        yield
        assert self.within.pop() == stream

    def computing(self) -> Any:
        return self._on("kernels")

    def copying(self) -> Any:
        return self._on("copies")

    def mark(self) -> StandInEvent:
        self.marks.append(self.within[-1])
        return StandInEvent(len(self.marks) - 1, self.host_waits)

    def wait(self, event: Any) -> None:
        assert self.within[-1] == "kernels"
        self.waits.append(event.number)

    def synchronize(self) -> None:
        self.synchronized += 1

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        assert self.within[-1] == "kernels"
        return torch.empty(shape, dtype=dtype)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def capture(self, call: Callable[[], Result]) -> tuple[StandInGraph, Result]:
        assert self.within[-1] == "kernels"
        if self.broken == "cannot be captured":
            raise RuntimeError("operation not permitted when stream is capturing")
        outputs: Any = call()
        again = call
        if self.broken == "keeps its inputs":
            constant = [out.clone() for out in outputs]
            again = lambda: constant  # type: ignore[return-value, assignment]  # noqa: E731
        self.graphs.append(StandInGraph(again, outputs, self.broken))
        return self.graphs[-1], outputs


class OffDevice(TorchDispatchMode):
    """Notes every operation that reads or makes a tensor which is not on the device, or that waits for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if any(t.device != FAKE for t in tensors) or str(func) == "aten._local_scalar_dense.default":
            self.seen.append(str(func))
        return out


def to_fake(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    with mode:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=FAKE)


def move_to_fake(mode: FakeTensorMode, backbone: Backbone, slabs: Slabs) -> None:
    """As if both had been made on a CUDA device; no value of theirs is left."""
    for module in backbone.model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            with mode:
                module._parameters[name] = nn.Parameter(to_fake(mode, parameter), requires_grad=False)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = to_fake(mode, buffer)
    for name in ("vectors", "pages", "page_bias"):
        setattr(slabs, name, to_fake(mode, getattr(slabs, name)))
    for site, flat in slabs._flat.items():
        moved = to_fake(mode, flat)
        with mode:
            slabs.weights[site] = plane_of(slabs.layout, site, slabs.rank).views(moved)
