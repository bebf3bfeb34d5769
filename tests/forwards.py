"""Forward passes of timm's models that are no plain ViT, written out for tests.references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import hieradet_sam2, vision_transformer_sam
from torch import Tensor

Added = Callable[[str, int, Tensor], "Tensor | float"]
"""The residual of a site in a block for what it taps."""
Rest = Callable[[Any, int, Tensor], Tensor]
"""A block from x' on."""
Forward = Callable[[Any, Tensor, Added, Rest], Tensor]
"""The tokens before the last norm: of a model, for images."""


def cait(model: Any, images: Tensor, added: Added, rest: Rest) -> Tensor:
    x = model.patch_embed(images) + model.pos_embed
    for index, block in enumerate(model.blocks):
        x = x + added("input", index, x)
        attended = block.attn(block.norm1(x))
        x = rest(block, index, x + block.gamma_1 * (attended + added("attn", index, attended)))
    token = model.cls_token.expand(len(x), -1, -1)
    for block in model.blocks_token_only:
        token = token + block.gamma_1 * block.attn(block.norm1(torch.cat((token, x), dim=1)))
        token = token + block.gamma_2 * block.mlp(block.norm2(token))
    return torch.cat((token, x), dim=1)


def xcit(model: Any, images: Tensor, added: Added, rest: Rest) -> Tensor:
    x, (height, width) = model.patch_embed(images)
    x = x + model.pos_embed(len(x), height, width).flatten(2).transpose(1, 2)
    for index, block in enumerate(model.blocks):
        x = x + added("input", index, x)
        attended = block.attn(block.norm1(x))
        x = x + block.gamma1 * (attended + added("attn", index, attended))
        x = x + block.gamma3 * block.local_mp(block.norm3(x), height, width)
        x = rest(block, index, x)
    x = torch.cat((model.cls_token.expand(len(x), -1, -1), x), dim=1)
    for block in model.cls_attn_blocks:
        x = block(x)
    return x


def hiera(model: Any, images: Tensor, added: Added, rest: Rest) -> Tensor:
    x = model.unroll(model._pos_embed(model.patch_embed(images)))
    for index, block in enumerate(model.blocks):
        x = x + added("input", index, x)
        normed = block.norm1(x)
        if block.do_expand:
            wide = block.proj(normed)
            x = torch.stack(wide.chunk(block.attn.q_stride, dim=1)).amax(0)
        attended = block.attn(normed)
        x = rest(block, index, x + attended + added("attn", index, attended))
    return x


def hieradet(model: Any, images: Tensor, added: Added, rest: Rest) -> Tensor:
    x = model._pos_embed(model.patch_embed(images))
    for index, block in enumerate(model.blocks):
        x = x + added("input", index, x)
        skip, normed = x, block.norm1(x)
        if block.dim != block.dim_out:
            skip = block.proj(normed)
        if block.q_stride:
            skip = F.max_pool2d(skip.permute(0, 3, 1, 2), block.q_stride).permute(0, 2, 3, 1)
        height, width = normed.shape[1:3]
        if block.is_windowed:
            high, wide = block.window_size
            normed = F.pad(normed, (0, 0, 0, -width % wide, 0, -height % high))
            many = normed.shape[1] // high, normed.shape[2] // wide
            windows = block.attn(hieradet_sam2.window_partition(normed, block.window_size))
            window = tuple(windows.shape[1:3])
            whole = many[0] * window[0], many[1] * window[1]
            attended = hieradet_sam2.window_unpartition(windows, window, whole)[:, : skip.shape[1], : skip.shape[2]]
        else:
            attended = block.attn(normed)
        x = rest(block, index, skip + attended + added("attn", index, attended))
    return x


def sam(model: Any, images: Tensor, added: Added, rest: Rest) -> Tensor:
    x = model.patch_embed(images) + model.pos_embed
    for index, block in enumerate(model.blocks):
        x = x + added("input", index, x)
        attended, size = block.norm1(x), x.shape[1:3]
        if block.window_size:
            attended, padded = vision_transformer_sam.window_partition(attended, block.window_size)
            attended = block.attn(attended)
            attended = vision_transformer_sam.window_unpartition(attended, block.window_size, size, padded)
        else:
            attended = block.attn(attended)
        x = rest(block, index, x + attended + added("attn", index, attended))
    return x.permute(0, 3, 1, 2)


def encoder(model: Any, images: Tensor, added: Added, rest: Rest) -> Tensor:
    x, rope = model.encoder._pos_embed(model.encoder.patch_embed(images))
    for index, block in enumerate(model.encoder.blocks):
        x = x + added("input", index, x)
        attended = block.attn(block.norm1(x), rope=rope)
        x = rest(block, index, x + attended + added("attn", index, attended))
    return x


FORWARDS: dict[str, Forward] = {
    "Cait": cait, "Xcit": xcit, "Hiera": hiera, "HieraDet": hieradet, "VisionTransformerSAM": sam,
    "Qwen3VitClassifier": encoder, "DeepseekVitClassifier": encoder,
}  # fmt: skip


def last_norm(model: Any, tokens: Tensor) -> Tensor:
    """The tokens as ``forward_features`` gives them."""
    if type(model).__name__ in ("Hiera", "HieraDet", "Qwen3VitClassifier"):
        return tokens  # normed when they are pooled
    last = {"VisionTransformerSAM": lambda: model.neck, "DeepseekVitClassifier": lambda: model.encoder.norm}
    return last.get(type(model).__name__, lambda: model.norm)()(tokens)  # type: ignore[no-any-return]


def norm_of_pooled(model: Any) -> Any:
    """The last norm of a model that pools first; else None."""
    match type(model).__name__:
        case "Hiera" | "HieraDet":
            return model.head.norm
        case "Qwen3VitClassifier":
            return model.norm
    return model.fc_norm if isinstance(getattr(model, "norm", None), torch.nn.Identity) else None
