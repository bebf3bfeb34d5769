"""ST-Adapter's official video model written out anew: checkpoints in its layout, and its forward.

It shares no code with the operator or the importer: CLIP's names, the class token apart, Conv3d on the grid of patches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.backbone import Backbone

HEADS = 3
KINDS = ("adapter_pre_attn", "adapter_pre_mlp")
State = dict[str, Tensor]


def random_state(
    backbone: Backbone,
    *,
    rank: int = 6,
    classes: int = 5,
    blocks: dict[str, tuple[int, ...]] | None = None,
    seed: int = 1,
) -> State:
    """The official names: the backbone's own tensors, random adapters by kind and block, and a random classifier."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    base, width, depth = backbone.model.state_dict(), backbone.layout.width, backbone.layout.blocks
    state = {
        "class_embedding": base["cls_token"].flatten(), "positional_embedding": base["pos_embed"][0],
        "conv1.weight": base["patch_embed.proj.weight"],
    }  # fmt: skip
    for part in ("weight", "bias"):
        state |= {f"ln_pre.{part}": base[f"norm_pre.{part}"], f"ln_post.{part}": base[f"norm.{part}"]}
    for block in range(depth):
        for part in ("weight", "bias"):
            ours, theirs = f"blocks.{block}", f"transformer.resblocks.{block}"
            state |= {
                f"{theirs}.ln_1.{part}": base[f"{ours}.norm1.{part}"],
                f"{theirs}.attn.in_proj_{part}": base[f"{ours}.attn.qkv.{part}"],
                f"{theirs}.attn.out_proj.{part}": base[f"{ours}.attn.proj.{part}"],
                f"{theirs}.ln_2.{part}": base[f"{ours}.norm2.{part}"],
                f"{theirs}.mlp.c_fc.{part}": base[f"{ours}.mlp.fc1.{part}"],
                f"{theirs}.mlp.c_proj.{part}": base[f"{ours}.mlp.fc2.{part}"],
            }
    for kind, those in (blocks or dict.fromkeys(KINDS, tuple(range(depth)))).items():
        for block in those:
            prefix = f"transformer.resblocks.{block}.{kind}"
            state |= {f"{prefix}.fc1.weight": noise(rank, width), f"{prefix}.fc1.bias": noise(rank)}
            state |= {f"{prefix}.conv.weight": noise(rank, 1, 3, 1, 1), f"{prefix}.conv.bias": noise(rank)}
            state |= {f"{prefix}.fc2.weight": noise(width, rank), f"{prefix}.fc2.bias": noise(width)}
    state |= {"fc.weight": noise(classes, width), "fc.bias": noise(classes)}
    return {name: tensor.clone() for name, tensor in state.items()}


def trained(state: State) -> State:
    """What the official code leaves in a checkpoint."""
    return {name: tensor for name, tensor in state.items() if "adapter" in name or name.startswith("fc.")}


def save_checkpoint(path: Path, state: State, **more: Any) -> Path:
    """As the official code saves it, with the states of its optimizer, schedule and scaler."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3)}}, "param_groups": [{"params": [0]}]}
    content = {
        "model": state,
        "optimizer": optimizer,
        "lr_sched": {"lr_lambdas": [None]},
        "loss_scaler": {"scale": 1.0},
    }
    torch.save(content | {"next_epoch": 50} | more, path)
    return path


def official_logits(s: State, clips: Tensor) -> Tensor:
    """Logits (clips, classes) of normalised clips (clips, frames, 3, size, size), in the state's precision."""
    frames = clips.shape[1]
    patch = s["conv1.weight"].shape[-1]
    grid = F.conv2d(clips.flatten(0, 1).to(s["conv1.weight"]), s["conv1.weight"], stride=patch)
    x = grid.flatten(2).transpose(1, 2)
    x = torch.cat([s["class_embedding"].expand(len(x), 1, -1), x], dim=1) + s["positional_embedding"]
    x = _norm(s, "ln_pre", x)
    for block in range(sum(name.endswith("ln_1.weight") for name in s)):
        x = _block(s, f"transformer.resblocks.{block}", x, frames)
    vector = x.view(len(clips), frames, *x.shape[1:])[:, :, 0].mean(1)
    return _linear(s, "fc", _norm(s, "ln_post", vector))


def _block(s: State, prefix: str, x: Tensor, frames: int) -> Tensor:
    rows, tokens, width = x.shape
    x = x + _adapter(s, f"{prefix}.adapter_pre_attn", x, frames)
    both = _norm(s, f"{prefix}.ln_1", x) @ s[f"{prefix}.attn.in_proj_weight"].T + s[f"{prefix}.attn.in_proj_bias"]
    q, k, v = (part.view(rows, tokens, HEADS, -1).transpose(1, 2) for part in both.chunk(3, dim=-1))
    weights = (q @ k.transpose(-2, -1) * (width // HEADS) ** -0.5).softmax(-1)
    x = x + _linear(s, f"{prefix}.attn.out_proj", (weights @ v).transpose(1, 2).reshape(rows, tokens, width))
    x = x + _adapter(s, f"{prefix}.adapter_pre_mlp", x, frames)
    hidden = _linear(s, f"{prefix}.mlp.c_fc", _norm(s, f"{prefix}.ln_2", x))
    return x + _linear(s, f"{prefix}.mlp.c_proj", hidden * torch.sigmoid(1.702 * hidden))


def _adapter(s: State, prefix: str, x: Tensor, frames: int) -> Tensor:
    """What is added to the tokens: nothing to the class token."""
    if f"{prefix}.fc1.weight" not in s:
        return torch.zeros_like(x)
    rows, tokens, _ = x.shape
    side = round((tokens - 1) ** 0.5)
    hidden = _linear(s, f"{prefix}.fc1", x[:, 1:])
    rank = hidden.shape[-1]
    volume = hidden.view(rows // frames, frames, side, side, rank).permute(0, 4, 1, 2, 3)
    kernel = s[f"{prefix}.conv.weight"]
    mixed = F.conv3d(
        volume, kernel, s[f"{prefix}.conv.bias"], padding=tuple(k // 2 for k in kernel.shape[2:]), groups=rank
    )
    update = _linear(s, f"{prefix}.fc2", mixed.permute(0, 2, 3, 4, 1).reshape(rows, tokens - 1, rank))
    return F.pad(update, (0, 0, 1, 0))


def _linear(s: State, name: str, x: Tensor) -> Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def _norm(s: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps=1e-5)
