"""The block families of timm that can be adapted: where their blocks are, where x' can be tapped, what comes after.

A new family is one row in a table here, and one in ``trunk_of`` where its blocks are not followed by a norm. It knows
nothing of adapters or hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models import (
    beit,
    cait,
    deepseek_vit,
    eva,
    hiera,
    hieradet_sam2,
    qwen3_vit,
    swin_transformer,
    swin_transformer_v2,
    vision_transformer,
    vision_transformer_relpos,
    vision_transformer_sam,
    xcit,
)
from torch import Tensor, nn

from adapters.backbone.refusals import refusal_of
from adapters.config import SiteName
from adapters.errors import BackboneError

# x' is the stream between attention and MLP. Pre-norm blocks hand it to norm2, post-norm blocks to the MLP.
PRE_NORM: tuple[type[nn.Module], ...] = (
    vision_transformer.Block,
    vision_transformer_relpos.RelPosBlock,
    vision_transformer_sam.Block,
    eva.EvaBlock,
    deepseek_vit.DeepseekVitBlock,
    beit.Block,
    swin_transformer.SwinTransformerBlock,
    cait.LayerScaleBlock,
    xcit.XCABlock,
    hiera.HieraBlock,
    hieradet_sam2.MultiScaleBlock,
)
POST_NORM: tuple[type[nn.Module], ...] = (
    vision_transformer.ResPostBlock,
    vision_transformer_relpos.ResPostRelPosBlock,
    eva.EvaBlockPostNorm,
    swin_transformer_v2.SwinTransformerV2Block,
)
ENCODERS = (qwen3_vit.Qwen3VitClassifier, deepseek_vit.DeepseekVitClassifier)
"""Models around a language model's encoder."""
LATE_CLASS_TOKEN = (cait.Cait, xcit.Xcit)
"""Models whose class token joins behind the blocks, in layers of its own, which stay frozen."""


@dataclass(frozen=True)
class Block:
    """A transformer block and the submodule whose input is x'."""

    module: Any
    before_mlp: nn.Module


@dataclass(frozen=True)
class Trunk:
    """A model's blocks in forward order, stages one after another, and what its tokens go through after them.

    ``end``: the module that takes the tokens of all rows next; None where that is the model's head. ``norm``: the last
    norm, of each token or, with ``pools_first``, of the pooled vector; None where there is none whose width is the
    blocks', so that only the model itself can pool. ``prefix``: how many of the tokens in the blocks are no patches;
    None where that is not known. ``channels_first``: whether ``end`` takes and gives (rows, channels, height, width).
    """

    blocks: tuple[Block, ...]
    end: nn.Module | None
    norm: nn.Module | None
    prefix: int | None
    pools_first: bool = False
    channels_first: bool = False


def blocks_of(model: nn.Module, name: str) -> tuple[Block, ...]:
    """Those of the trunk. Raises BackboneError with what the model has instead."""
    root = encoder_of(model)
    stages = getattr(root, "layers", None)
    blocks = []
    try:
        found = [b for s in stages for b in s.blocks] if stages is not None else list(getattr(root, "blocks", ()))
    except (AttributeError, TypeError):  # layers of another kind
        found = []
    for module in found:
        if type(module) in PRE_NORM:
            blocks.append(Block(module, cast(nn.Module, module.norm2)))
        elif type(module) in POST_NORM:
            blocks.append(Block(module, cast(nn.Module, module.mlp)))
    why = refusal_of(model, name, found, len(blocks) == len(found))
    if why:
        raise BackboneError(f"{name} {why}", model=name)
    return tuple(blocks)


def trunk_of(model: nn.Module, name: str) -> Trunk:
    """Where a model's blocks are, and what comes after them. Raises BackboneError where that is not known."""
    blocks, any_model = blocks_of(model, name), cast(Any, model)
    if isinstance(model, hiera.Hiera | hieradet_sam2.HieraDet):
        return Trunk(blocks, None, any_model.head.norm, 0, pools_first=True)
    if isinstance(model, qwen3_vit.Qwen3VitClassifier):
        if model.encoder.merger is not None:
            return Trunk(blocks, model.encoder.merger, None, 0)
        return Trunk(blocks, None, model.norm, 0, pools_first=True)
    if isinstance(model, deepseek_vit.DeepseekVitClassifier):  # a norm of tokens, and one of the pooled vector
        return Trunk(blocks, any_model.encoder.norm, None, 0)
    if isinstance(model, vision_transformer_sam.VisionTransformerSAM):
        norm = model.neck if isinstance(model.neck, nn.LayerNorm) else None
        return Trunk(blocks, model.neck, norm, 0, channels_first=True)
    norm, grid = any_model.norm, hasattr(model, "layers")  # Swin's tokens lie on a grid: they are patches all
    late = isinstance(model, LATE_CLASS_TOKEN)
    prefix = 0 if late or grid else getattr(model, "num_prefix_tokens", None)
    if isinstance(norm, nn.Identity):  # timm moves the last norm behind average pooling
        return Trunk(blocks, norm, getattr(model, "fc_norm", norm), prefix, pools_first=True)
    return Trunk(blocks, norm, norm, prefix)


def positions_are_patches(model: nn.Module) -> bool:
    """Whether no other token has a position, although the model may have one."""
    return isinstance(model, (*LATE_CLASS_TOKEN, hiera.Hiera))


def encoder_of(model: nn.Module) -> nn.Module:
    """What holds the patch embedding and the blocks: the model, or the encoder that it wraps."""
    return model.encoder if isinstance(model, ENCODERS) else model


def linear_sites(block: Any) -> dict[SiteName, tuple[nn.Linear, tuple[int, int] | None]]:
    """LoRA's sites in one block: the Linear, and the columns (from, to) of its output where only a part is meant."""
    attn, mlp = block.attn, block.mlp
    found: dict[SiteName, tuple[nn.Linear, tuple[int, int] | None]] = {}
    qkv = getattr(attn, "qkv", None)
    if isinstance(qkv, nn.Linear):
        found["qkv"] = (qkv, None)
        third = qkv.out_features // 3
        heads = getattr(attn, "num_heads", None)
        if getattr(attn, "num_kv_heads", None) in (None, heads):
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


def prepare(model: nn.Module, blocks: Sequence[Block]) -> None:
    """Change how timm's modules are called, never what they compute, where hooks or rows that join need it."""
    for block in blocks:
        block.module.forward = _unless_empty(block.module.forward)
    root: Any = encoder_of(model)
    _keep_rope(root)
    for module in model.modules():
        if isinstance(getattr(module, "qkv", None), nn.Linear) and getattr(module, "q_bias", None) is not None:
            _call_qkv(module)
    if root is not model:
        root.forward_features = partial(_encoded, root)


def _unless_empty(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A block's forward, left out where no row has come to it."""

    @wraps(forward)
    def call(tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return forward(tokens, *args, **kwargs) if tokens.shape[0] else tokens

    return call


def _call_qkv(attn: Any) -> None:
    """Have an attention with its biases apart call its ``qkv``, whose weight it else reads, so that hooks see it.

    The Linear adds the biases, in the product that timm adds them in; the attention finds none to add. They stay where
    they are, for whoever names, trains or moves them.
    """
    if getattr(attn, "qkv_bias_separate", False):
        return  # it calls its qkv, and adds them to what comes out
    qkv, parameters, buffers = attn.qkv, attn._parameters, attn._buffers

    def forward(tokens: Tensor) -> Tensor:
        bias = torch.cat((parameters["q_bias"], buffers["k_bias"], parameters["v_bias"]))
        return F.linear(tokens, qkv.weight, bias)

    qkv.forward = forward
    vars(attn)["q_bias"] = None  # found before the parameter of that name


def _encoded(encoder: Any, images: Tensor) -> Tensor:
    """An encoder's ``forward_features``, which else gives its tokens the shape of as many rows as there were images."""
    patches = encoder.patch_embed(images)
    tokens, rope = encoder._pos_embed(patches)
    for block in encoder.blocks:
        tokens = block(tokens, rope=rope)
    if hasattr(encoder, "norm"):
        tokens = encoder.norm(tokens)
    return cast(Tensor, tokens.reshape(len(tokens), *patches.shape[1:3], -1))


def _keep_rope(model: Any) -> None:
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
