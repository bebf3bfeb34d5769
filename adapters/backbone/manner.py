"""What a model computes with beside its tensors, where transformers and timm differ: epsilons, activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from timm.layers import QuickGELU
from torch import nn

ACTS: Mapping[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU, "gelu_python": nn.GELU, "quick_gelu": QuickGELU, "relu": nn.ReLU, "silu": nn.SiLU,
    "swish": nn.SiLU,
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), lambda: nn.GELU("tanh")),
}  # fmt: skip
"""By transformers' names, ``hidden_act``."""


@dataclass(frozen=True)
class Manner:
    """How a model computes where timm's with the same tensors may compute otherwise: with which epsilon in its layer
    norms, but in those of ``usual_eps``, and with which activation in its MLPs. None: as it is."""

    eps: float | None = None
    act: str | None = None
    usual_eps: Sequence[str] = ()

    def give(self, model: nn.Module) -> None:
        """Make a timm model compute so."""
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.LayerNorm) and self.eps is not None and not name.endswith(tuple(self.usual_eps)):
                module.eps = self.eps
            if self.act is not None and isinstance(getattr(module, "act", None), nn.Module):
                module.act = ACTS[self.act]()
