"""The block families of timm that can be adapted: where their blocks are, and where x' can be tapped.

A new family is one row in a table here. It knows nothing of adapters or hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.models import beit, eva, swin_transformer, swin_transformer_v2, vision_transformer, vision_transformer_relpos
from torch import nn

from adapters.config import SiteName
from adapters.errors import BackboneError

# x' is the stream between attention and MLP. Pre-norm blocks hand it to norm2, post-norm blocks to the MLP.
PRE_NORM: tuple[type[nn.Module], ...] = (
    vision_transformer.Block,
    vision_transformer_relpos.RelPosBlock,
    eva.EvaBlock,
    beit.Block,
    swin_transformer.SwinTransformerBlock,
)
POST_NORM: tuple[type[nn.Module], ...] = (
    vision_transformer.ResPostBlock,
    vision_transformer_relpos.ResPostRelPosBlock,
    eva.EvaBlockPostNorm,
    swin_transformer_v2.SwinTransformerV2Block,
)


@dataclass(frozen=True)
class Block:
    """A transformer block and the submodule whose input is x'."""

    module: Any
    before_mlp: nn.Module


def blocks_of(model: nn.Module, name: str) -> tuple[Block, ...]:
    """All blocks, in forward order; stages of Swin one after another. Raises BackboneError."""
    stages = getattr(model, "layers", None)
    modules = (
        [b for stage in stages for b in stage.blocks] if stages is not None else list(getattr(model, "blocks", []))
    )
    blocks = []
    for module in modules:
        if type(module) in PRE_NORM:
            blocks.append(Block(module, cast(nn.Module, module.norm2)))
        elif type(module) in POST_NORM:
            blocks.append(Block(module, cast(nn.Module, module.mlp)))
        else:
            raise BackboneError(f"{name} is built of {_shown(type(module))}, which has no known sites; {_known()}",
                                model=name)  # fmt: skip
    if not blocks:
        raise BackboneError(f"{name} has no transformer blocks to adapt where they are looked for; {_known()}",
                            model=name)  # fmt: skip
    lacking = next((p for p in ("norm", "forward_features", "forward_head") if not hasattr(model, p)), None)
    if lacking:
        raise BackboneError(f"{name} ({_shown(type(model))}) has no {lacking}, so that its features are not known here",
                            model=name)  # fmt: skip
    return tuple(blocks)


def _shown(kind: type) -> str:
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def _known() -> str:
    return f"known: {', '.join(_shown(c) for c in PRE_NORM + POST_NORM)}"


def linear_sites(block: Any) -> dict[SiteName, tuple[nn.Linear, tuple[int, int] | None]]:
    """LoRA's sites in one block: the Linear, and the columns (from, to) of its output where only a part is meant."""
    attn, mlp = block.attn, block.mlp
    found: dict[SiteName, tuple[nn.Linear, tuple[int, int] | None]] = {}
    qkv = getattr(attn, "qkv", None)
    if isinstance(qkv, nn.Linear):
        found["qkv"] = (qkv, None)
        third = qkv.out_features // 3
        if getattr(attn, "num_kv_heads", attn.num_heads) in (None, attn.num_heads):
            found |= {"q": (qkv, (0, third)), "k": (qkv, (third, 2 * third)), "v": (qkv, (2 * third, 3 * third))}
    names: tuple[tuple[SiteName, Any, str], ...] = (
        ("q", attn, "q_proj"), ("k", attn, "k_proj"), ("v", attn, "v_proj"), ("proj", attn, "proj"),
        ("fc1", mlp, "fc1"), ("fc2", mlp, "fc2"),
    )  # fmt: skip
    for site, parent, attribute in names:
        linear = getattr(parent, attribute, None)
        if isinstance(linear, nn.Linear):
            found[site] = (linear, None)
    return found


def keep_rope(model: Any) -> None:
    """Make the rotary embedding once: DINOv3's is else made on the host in every forward, since sizes may change there.

    A CUDA graph cannot have that copy in it, and here the size is always the same.
    """
    rope = getattr(model, "rope", None)
    if rope is None or next(rope.parameters(), None) is not None:
        return
    make, kept = rope.get_embed, dict[object, Any]()

    def get_embed(shape: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> Any:
        if shape is None or rope.training:  # kept by timm, or augmented
            return make(shape, dtype)
        at = (tuple(shape), dtype, next(rope.buffers()).device)
        if at not in kept:
            with torch.inference_mode(False), torch.no_grad():  # training reads it too
                kept[at] = make(shape, dtype)
        return kept[at]

    rope.get_embed = get_embed
