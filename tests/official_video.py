"""AdaptFormer's official video model written out anew: checkpoints in its layout, and its forward, in float64.

It shares no code with the backbone or the importer: q, k and v apart, biases of q and v alone, positions number by
number, tubelets cut by hand.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.backbone import Backbone
from tests.official import HEADS

State = dict[str, Tensor]


def random_clip_state(
    backbone: Backbone, *, rank: int = 7, classes: int = 5, blocks: tuple[int, ...] | None = None, seed: int = 1
) -> State:
    """The official names: the backbone's own tensors, random adapters, a trained ``fc_norm`` and a random head."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    state: State = {}
    for name, tensor in backbone.model.state_dict().items():
        parts = tensor.clone().chunk(3)
        if name.endswith(".attn.qkv.weight"):
            for letter, part in zip("qkv", parts, strict=True):
                state[name.replace("qkv", f"{letter}_proj")] = part.clone()
        elif name.endswith(".attn.qkv.bias"):
            assert not parts[1].any()
            state[name.replace("qkv.bias", "q_bias")] = parts[0].clone()
            state[name.replace("qkv.bias", "v_bias")] = parts[2].clone()
        else:
            state[name.replace(".mlp.", ".")] = tensor.clone()
    width = backbone.layout.width
    for block in range(backbone.layout.blocks) if blocks is None else blocks:
        prefix = f"blocks.{block}.adaptmlp"
        state |= {f"{prefix}.down_proj.weight": noise(rank, width), f"{prefix}.down_proj.bias": noise(rank)}
        state |= {f"{prefix}.up_proj.weight": noise(width, rank), f"{prefix}.up_proj.bias": noise(width)}
    state |= {"fc_norm.weight": 1 + noise(width), "fc_norm.bias": noise(width)}
    state |= {"head.0.running_mean": noise(width), "head.0.running_var": noise(width).abs() + 0.1}
    state["head.0.num_batches_tracked"] = torch.tensor(40)
    state |= {"head.1.weight": noise(classes, width), "head.1.bias": noise(classes)}
    return state


def official_vectors(state: State, clips: Tensor, *, scale: float = 0.1, option: str = "parallel") -> Tensor:
    """Pooled and normed vectors (clips, width) of normalised clips (clips, frames, 3, size, size)."""
    s = {name: tensor.double() for name, tensor in state.items()}
    kernel = s["patch_embed.proj.weight"]
    x = _tubelets(clips.double(), kernel.shape[-1]) @ kernel.flatten(1).T + s["patch_embed.proj.bias"]
    x = x + _positions(x.shape[1], x.shape[2])
    depth = 1 + max(int(name.split(".")[1]) for name in s if name.startswith("blocks."))
    for index in range(depth):
        x = _block(s, f"blocks.{index}", x, scale, option)
    return _norm(s, "fc_norm", x.mean(1))


def official_clip_logits(state: State, clips: Tensor, *, scale: float = 0.1, option: str = "parallel") -> Tensor:
    """Logits (clips, classes) of normalised clips (clips, frames, 3, size, size)."""
    s = {name: tensor.double() for name, tensor in state.items()}
    vector = official_vectors(state, clips, scale=scale, option=option)
    vector = F.batch_norm(vector, s["head.0.running_mean"], s["head.0.running_var"], eps=1e-6)
    return vector @ s["head.1.weight"].T + s["head.1.bias"]


def _tubelets(clips: Tensor, patch: int) -> Tensor:
    """(clips, tokens, 3 * 2 * patch * patch), time first, then rows, then columns."""
    _, frames, _, height, width = clips.shape
    return torch.stack([
        clips[:, t : t + 2, :, y : y + patch, x : x + patch].transpose(1, 2).flatten(1)
        for t in range(0, frames, 2)
        for y in range(0, height, patch)
        for x in range(0, width, patch)
    ], 1)  # fmt: skip


def _positions(count: int, width: int) -> Tensor:
    """``get_sinusoid_encoding_table`` of VideoMAE: even columns are sines, odd ones cosines."""
    return torch.tensor([
        [(math.cos if j % 2 else math.sin)(position / 10000 ** (2 * (j // 2) / width)) for j in range(width)]
        for position in range(count)
    ], dtype=torch.float64)  # fmt: skip


def _block(s: State, prefix: str, x: Tensor, scale: float, option: str) -> Tensor:
    rows, tokens, width = x.shape
    normed = _norm(s, f"{prefix}.norm1", x)
    q, k, v = (normed @ s[f"{prefix}.attn.{letter}_proj.weight"].T for letter in "qkv")
    q, v = q + s[f"{prefix}.attn.q_bias"], v + s[f"{prefix}.attn.v_bias"]
    q, k, v = (part.view(rows, tokens, HEADS, -1).transpose(1, 2) for part in (q, k, v))
    weights = ((q * (width // HEADS) ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
    x = x + _linear(s, f"{prefix}.attn.proj", (weights @ v).transpose(1, 2).reshape(rows, tokens, width))
    branch = _linear(s, f"{prefix}.fc2", F.gelu(_linear(s, f"{prefix}.fc1", _norm(s, f"{prefix}.norm2", x))))
    if f"{prefix}.adaptmlp.up_proj.weight" not in s:
        return x + branch
    scale = float(s.get(f"{prefix}.adaptmlp.scale", torch.tensor(scale)))
    hidden = torch.relu(_linear(s, f"{prefix}.adaptmlp.down_proj", x if option == "parallel" else branch))
    return x + branch + scale * _linear(s, f"{prefix}.adaptmlp.up_proj", hidden)


def _linear(s: State, name: str, x: Tensor) -> Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def _norm(s: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps=1e-6)
