"""PHM layers of Compacter (Mahabadi et al. 2021) -> the dense Linear that they are.

A layer's weight is a sum of Kronecker products of n small rules with n blocks; either may be given as two factors, and
either may be shared by all layers of an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.errors import ImportRefused


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


def _whole(held: Mapping[str, Tensor], part: str) -> Tensor | None:
    """(n, rows, columns), multiplied out where it is held as two factors."""
    if part in held:
        return held[part]
    left, right = held.get(f"{part}_left"), held.get(f"{part}_right")
    if left is None or right is None or left.ndim != 3 or left.shape[::2] != right.shape[:2]:
        return None
    return left @ right
