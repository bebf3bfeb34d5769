"""A bottleneck adapter of AdapterHub: its flags -> the site that computes the same, its tensors -> a residual.

PHM layers of Compacter (Mahabadi et al. 2021) become the dense Linear that they are: a layer's weight is a sum of
Kronecker products of n small rules with n blocks; either may be given as two factors, and either may be shared by all
layers of an adapter. It does not know files or other kinds of adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from adapters.config import Activation, SiteName
from adapters.errors import ImportRefused
from adapters.importers.common import Residual

_ACTS: Mapping[str, Activation] = {
    "relu": "relu", "gelu": "gelu", "swish": "silu", "silu": "silu", "linear": "none",
}  # fmt: skip


class BottleneckSettings(BaseModel):
    """What we read of a bottleneck's config; the defaults are the library's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    non_linearity: str = "relu"
    original_ln_before: bool = False
    original_ln_after: bool = True
    residual_before_ln: bool | str = True
    is_parallel: bool = False
    scaling: float | Literal["learned", "channel"] = 1.0
    phm_layer: bool = False

    @property
    def act(self) -> Activation:
        """Raises ImportRefused for one that the operator does not have."""
        if self.non_linearity.lower() not in _ACTS:
            raise ImportRefused(f"non_linearity '{self.non_linearity[:40]}' is none of those that can be served: "
                                f"{', '.join(_ACTS)}", field="non_linearity")  # fmt: skip
        return _ACTS[self.non_linearity.lower()]


def site_of_flags(settings: BottleneckSettings, *, in_attention: bool) -> SiteName:
    """The site that computes what the library computes with those flags. Raises ImportRefused where none does.

    With z what goes into the bottleneck f, m the MLP's output and x' the stream before it (attention's output and the
    block's input for adapters there): parallel f(x') + m, else f(z) + (m or z) with z = m or m + x'; and x' once more
    with ``original_ln_after``. What comes out must hold x' exactly once beside f.
    """
    before, after = settings.original_ln_before, settings.original_ln_after
    residual = settings.residual_before_ln
    if isinstance(residual, str):
        raise ImportRefused(f"residual_before_ln is {residual[:40]!r}, for which ViT has no LayerNorm",
                            field="residual_before_ln")  # fmt: skip
    times = after + (not settings.is_parallel and before and not residual)
    if times != 1:
        raise ImportRefused(
            f"with these flags a block's output holds the stream before it {'twice' if times else 'not at all'} "
            f"(original_ln_before {before}, original_ln_after {after}, residual_before_ln {residual}, is_parallel "
            f"{settings.is_parallel}), and no site here does that", field="original_ln_after",
        )  # fmt: skip
    if settings.is_parallel:
        if in_attention:
            raise ImportRefused("it has adapters parallel to attention (mh_adapter with is_parallel), for which there "
                                "is no site here", field="mh_adapter")  # fmt: skip
        return "parallel"
    if in_attention:
        return "pre_mlp" if before else "attn"
    return "output" if before else "sequential"


def residual_of(
    name: str, settings: BottleneckSettings, tensors: dict[str, Tensor], shared: Mapping[str, Tensor]
) -> Residual:
    """The residual of one block, its scale in ``up``; ``shared`` are tensors of all blocks. Raises ImportRefused."""
    if settings.phm_layer:
        down, down_bias = dense(name, tensors, "adapter_down.0", "down", shared)
        up, up_bias = dense(name, tensors, "adapter_up", "up", shared)
        read = {key for key in tensors if key.startswith(("adapter_down.0.", "adapter_up."))}
    else:
        parts = ("adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias")
        down, down_bias, up, up_bias = (_taken(name, tensors, part) for part in parts)
        read = set(parts)
    scale = torch.ones(1)
    if isinstance(settings.scaling, str):
        scale, read = _taken(name, tensors, "scaling"), read | {"scaling"}
        if scale.shape not in ((1,), up_bias.shape):
            raise ImportRefused(f"{name}: scaling has {scale.numel()} values, expected 1 or {up_bias.numel()}",
                                tensor="scaling")  # fmt: skip
    else:
        scale = scale * settings.scaling
    left = sorted(tensors.keys() - read)
    if left:
        raise ImportRefused(f"{name} holds tensor {left[0][:80]}, which nothing here computes", tensor=left[0][:80])
    if up.ndim != 2 or up_bias.shape != up.shape[:1]:
        raise ImportRefused(f"{name}: adapter_up's weight and bias do not fit together", tensor="adapter_up")
    return Residual(down, down_bias, up * scale.view(-1, 1), up_bias * scale)


def dense(
    name: str, tensors: Mapping[str, Tensor], prefix: str, direction: str, shared: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) of one layer. ``direction``: ``down`` or ``up``, as shared blocks are named.

    Raises ImportRefused where tensors are missing or do not fit together.
    """
    own = {part.removeprefix(f"{prefix}."): tensor for part, tensor in tensors.items() if part.startswith(f"{prefix}.")}
    rules = _whole(own, "phm_rule") if "phm_rule" in own or "phm_rule_left" in own else _whole(shared, "phm_rule")
    blocks = _whole(own, "W") if "W" in own or "W_left" in own else _whole(shared, f"W_{direction}")
    if rules is None or blocks is None or rules.ndim != 3 or blocks.ndim != 3 or len(rules) != len(blocks):
        raise ImportRefused(f"{name}: the PHM layer {prefix} lacks its rules or its blocks, or they do not fit "
                            "together", tensor=prefix)  # fmt: skip
    weight = torch.stack([torch.kron(rule, block) for rule, block in zip(rules, blocks, strict=True)]).sum(0).T
    bias = own.get("b", torch.zeros(weight.shape[0]))
    if bias.shape != weight.shape[:1]:
        raise ImportRefused(f"{name}: the PHM layer {prefix} has {bias.numel()} biases, expected {weight.shape[0]}",
                            tensor=f"{prefix}.b")  # fmt: skip
    return weight, bias


def _taken(name: str, tensors: Mapping[str, Tensor], part: str) -> Tensor:
    if part not in tensors:
        raise ImportRefused(f"{name} lacks tensor {part}", tensor=part)
    return tensors[part]


def _whole(held: Mapping[str, Tensor], part: str) -> Tensor | None:
    """(n, rows, columns), multiplied out where it is held as two factors."""
    if part in held:
        return held[part]
    left, right = held.get(f"{part}_left"), held.get(f"{part}_right")
    if left is None or right is None or left.ndim != 3 or left.shape[::2] != right.shape[:2]:
        return None
    return left @ right
