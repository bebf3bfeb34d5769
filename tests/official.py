"""AdaptFormer's official image model written out anew: checkpoints in its layout, and its forward.

It shares no code with the importer: separate q, k and v, the adapter on raw x', a BatchNorm head.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.backbone import Backbone

HEADS = 3


def random_state(
    backbone: Backbone,
    *,
    rank: int = 7,
    classes: int = 5,
    global_pool: bool = False,
    blocks: tuple[int, ...] | None = None,
    seed: int = 1,
) -> dict[str, Tensor]:
    """The official names: the backbone's own tensors, random adapters and a random head."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    state: dict[str, Tensor] = {}
    for name, tensor in backbone.model.state_dict().items():
        if ".attn.qkv." in name:
            for letter, part in zip("qkv", tensor.clone().chunk(3), strict=True):
                state[name.replace("qkv", f"{letter}_proj")] = part.clone()
        else:
            state[name.replace(".mlp.", ".")] = tensor.clone()
    width = backbone.layout.width
    for block in range(backbone.layout.blocks) if blocks is None else blocks:
        prefix = f"blocks.{block}.adaptmlp"
        state |= {f"{prefix}.down_proj.weight": noise(rank, width), f"{prefix}.down_proj.bias": noise(rank)}
        state |= {f"{prefix}.up_proj.weight": noise(width, rank), f"{prefix}.up_proj.bias": noise(width)}
    if global_pool:
        del state["norm.weight"], state["norm.bias"]
        state |= {"fc_norm.weight": 1 + noise(width), "fc_norm.bias": noise(width)}
    state |= {"head.0.running_mean": noise(width), "head.0.running_var": noise(width).abs() + 0.1}
    state["head.0.num_batches_tracked"] = torch.tensor(40)
    state |= {"head.1.weight": noise(classes, width), "head.1.bias": noise(classes)}
    return state


def save_checkpoint(path: Path, state: dict[str, Tensor], **args: Any) -> Path:
    """As the official code saves it, with its optimizer, its scaler and its arguments."""
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    options = argparse.Namespace(**({"model": "vit_base_patch16", "ffn_adapt": True, "fulltune": False} | args))
    content = {"model": state, "optimizer": optimizer, "epoch": 99, "scaler": {"scale": 65536.0}, "args": options}
    torch.save(content, path)
    return path


def official_logits(
    state: dict[str, Tensor], images: Tensor, *, scale: float = 0.1, option: str = "parallel"
) -> Tensor:
    """Logits (rows, classes) of normalised images (rows, 3, size, size), in float64."""
    s = {name: tensor.double() for name, tensor in state.items()}
    images = images.double()
    patches = F.conv2d(images, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=_patch(s))
    x = patches.flatten(2).transpose(1, 2)
    x = torch.cat([s["cls_token"].expand(len(x), -1, -1), x], dim=1) + s["pos_embed"]
    depth = 1 + max(int(name.split(".")[1]) for name in s if name.startswith("blocks."))
    for index in range(depth):
        x = _block(s, f"blocks.{index}", x, scale, option)
    vector = _norm(s, "fc_norm", x[:, 1:].mean(1)) if "fc_norm.weight" in s else _norm(s, "norm", x)[:, 0]
    vector = F.batch_norm(vector, s["head.0.running_mean"], s["head.0.running_var"], eps=1e-6)
    return _linear(s, "head.1", vector)


def _block(s: dict[str, Tensor], prefix: str, x: Tensor, scale: float, option: str) -> Tensor:
    rows, tokens, width = x.shape
    normed = _norm(s, f"{prefix}.norm1", x)
    q, k, v = (
        _linear(s, f"{prefix}.attn.{letter}_proj", normed).view(rows, tokens, HEADS, -1).transpose(1, 2)
        for letter in "qkv"
    )
    weights = (q @ k.transpose(-2, -1) * (width // HEADS) ** -0.5).softmax(-1)
    x = x + _linear(s, f"{prefix}.attn.proj", (weights @ v).transpose(1, 2).reshape(rows, tokens, width))
    branch = _linear(s, f"{prefix}.fc2", F.gelu(_linear(s, f"{prefix}.fc1", _norm(s, f"{prefix}.norm2", x))))
    if f"{prefix}.adaptmlp.up_proj.weight" not in s:
        return x + branch
    scale = float(s.get(f"{prefix}.adaptmlp.scale", torch.tensor(scale)))
    tap = x if option == "parallel" else branch
    hidden = torch.relu(_linear(s, f"{prefix}.adaptmlp.down_proj", tap))
    return x + branch + scale * _linear(s, f"{prefix}.adaptmlp.up_proj", hidden)


def _linear(s: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def _norm(s: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps=1e-6)


def _patch(s: dict[str, Tensor]) -> int:
    return s["patch_embed.proj.weight"].shape[-1]
