"""Small models of real timm architectures, random adapters for them, and an independent reference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor

from adapters.backbone import Backbone, load_backbone
from adapters.config import AdapterConfig, BaseModelConfig, SiteConfig, VideoConfig
from adapters.file import Adapter
from adapters.layout import Layout

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}),
    "dinov2": (
        "vit_small_patch14_reg4_dinov2",
        {"img_size": 28, "embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 0.5},
    ),
    "gap": ("vit_medium_patch16_gap_240", {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "eva02": ("eva02_tiny_patch14_224", {"img_size": 28, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "dinov3": ("vit_small_patch16_dinov3", {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "beit": ("beit_base_patch16_224", {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "embed_dim": 24, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4},
    ),
    "swinv2": (
        "swinv2_tiny_window8_256",
        {"img_size": 32, "embed_dim": 24, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4},
    ),
    "relpos": ("vit_relpos_small_patch16_224", {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "cait": (
        "cait_xxs24_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "init_values": 0.5},
    ),
    "xcit": ("xcit_tiny_12_p16_224", {"img_size": 48, "embed_dim": 48, "depth": 2, "num_heads": 3, "eta": 0.5}),
    "hiera": (
        "hiera_tiny_224",
        {
            "img_size": [32, 32],
            "embed_dim": 24,
            "num_heads": 1,
            "stages": [1, 2],
            "q_pool": 1,
            "mask_unit_size": [4, 4],
            "mask_unit_attn": [True, False],
        },
    ),
    "hieradet": (
        "sam2_hiera_tiny",
        {
            "embed_dim": 24,
            "num_heads": 1,
            "stages": [1, 1, 2, 1],
            "global_att_blocks": [3],
            "window_spec": [4, 2, 3, 1],
        },
    ),
    "sam": (
        "samvit_base_patch16",
        {
            "img_size": 48,
            "patch_size": 8,
            "embed_dim": 48,
            "depth": 2,
            "num_heads": 3,
            "window_size": 4,
            "global_attn_indexes": [1],
            "neck_chans": 32,
        },
    ),
    "qwen3": (
        "qwen3_vit_88m",
        {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "pos_embed_grid_size": 4},
    ),
    "deepseek": (
        "deepseek_vit_412m",
        {"img_size": 28, "embed_dim": 48, "depth": 2, "num_heads": 3},
    ),
}
OWN_SIZE = 64
"""Pixels a side, of those that are not told their size."""
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": (
        "vit_base_patch16_clip_quickgelu_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
    ),
    "siglip": (
        "vit_base_patch16_siglip_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    ),
    "deit": ("deit_base_distilled_patch16_224", {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "dinov2_plain": (
        "vit_small_patch14_dinov2",
        {"img_size": 28, "embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 0.5},
    ),
    "swiglu": ("eva02_base_patch14_224", {"img_size": 28, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "merged": (
        "qwen3_vit_88m_merge",
        {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "pos_embed_grid_size": 4, "out_features": 48},
    ),
    "samnorm": (
        "samvit_base_patch16_224",
        {
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 48,
            "depth": 2,
            "num_heads": 3,
            "window_size": 3,
            "global_attn_indexes": [1],
        },
    ),
    "abswin": (
        "hiera_small_abswin_256",
        {
            "img_size": [64, 64],
            "embed_dim": 24,
            "num_heads": 1,
            "stages": [1, 2],
            "q_pool": 1,
            "mask_unit_size": [4, 4],
            "mask_unit_attn": [True, False],
        },
    ),
}
"""Of a family above, for tests of their own."""
OF_CLIPS: dict[str, tuple[str, dict[str, Any]]] = {
    "videomae": (
        "videomae_small_patch16_224_f8",
        {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "frames": 4},
    ),
}
"""They see clips and no pictures."""


def small_backbone(folder: Path, family: str = "vit", device: str = "cpu", dtype: str = "float32") -> Backbone:
    """A family's real architecture with a few small blocks and weights from seed 0, large enough to matter."""
    architecture, args = (FAMILIES | OTHERS | OF_CLIPS)[family]
    folder.mkdir(parents=True, exist_ok=True)
    height, width = to_2tuple(args.get("img_size", OWN_SIZE))
    cfg = {"input_size": [3, height, width], "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3], "crop_pct": 0.9}
    (folder / "config.json").write_text(
        json.dumps({"architecture": architecture, "num_classes": 0, "model_args": args, "pretrained_cfg": cfg})
    )
    backbone = load_backbone(str(folder), "random:0", device, dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.add_(noise.to(parameter))
    return backbone


@dataclass(frozen=True)
class Spec:
    """What a random adapter should look like."""

    sites: tuple[SiteConfig, ...] = ()
    classes: int = 5
    pool: str = "backbone"
    norm: str = "frozen"
    frames: int = 1
    score: str = "softmax"
    head: str = "mean"
    head_rank: int = 0
    head_width: int = 0


def random_adapter(backbone: Backbone, spec: Spec, seed: int, size: float = 0.3, task: str = "t") -> Adapter:
    """Random values in every tensor, so that nothing can be left out unnoticed."""
    config = config_of(backbone, spec, task)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) * size for name, shape in backbone.layout.tensors(config).items()
    }
    return Adapter(config, tensors, f"{seed:064x}")


def config_of(backbone: Backbone, spec: Spec, task: str = "t") -> AdapterConfig:
    layout: Layout = backbone.layout
    return AdapterConfig(
        task=task,
        modality="video" if spec.frames > 1 else "image",
        labels=tuple(f"label {i}" for i in range(spec.classes)),
        score=spec.score,
        base=BaseModelConfig(model=layout.model, fingerprint=layout.fingerprint),
        sites=spec.sites,
        pool=spec.pool,
        norm=spec.norm,
        input=backbone.input,
        video=VideoConfig(frames=spec.frames, head=spec.head, head_rank=spec.head_rank, head_width=spec.head_width)
        if spec.frames > 1
        else None,
    )


def residual(adapter: Adapter, site: str, block: int, tap: Tensor, prefix: int = 0) -> Tensor | float:
    """The formula of the paper, once more; ``tap`` is (rows, ..., width), ``prefix`` tokens before the patches."""
    chosen = [s for s in adapter.config.sites if s.site == site and block in s.blocks]
    if not chosen:
        return 0.0
    config, t, p = chosen[0], adapter.tensors, f"{site}.{block}"
    hidden = tap @ t[f"{p}.down.weight"].T + t[f"{p}.down.bias"]
    if config.temporal:
        frames = adapter.config.frames
        kernel = t[f"{p}.time.weight"][:, 0]
        clips = hidden.reshape(-1, frames, *hidden.shape[1:])
        padded = F.pad(clips.movedim(1, -1), (1, 1)).movedim(-1, 1)
        mixed = sum(padded[:, k : k + frames] * kernel[:, k] for k in range(3))
        hidden = mixed.reshape(hidden.shape)
    act = {"none": lambda v: v, "relu": torch.relu, "gelu": F.gelu, "silu": F.silu}[config.act]
    update = config.scale * (act(hidden) @ t[f"{p}.up.weight"].T + t[f"{p}.up.bias"])
    if config.tokens == "patches" and tap.ndim == 3:
        update[:, :prefix] = 0
    return update


def head_of(backbone: Backbone, adapter: Adapter, pooled: Tensor) -> Tensor:
    """Mean over frames, the file's own norm if it has one, the linear head; or what sees time, frame by frame."""
    clips = pooled.float().reshape(-1, adapter.config.frames, pooled.shape[-1])
    t: Mapping[str, Tensor] = adapter.tensors
    if adapter.config.head == "mean":
        clips = clips.mean(1, keepdim=True)
    if adapter.config.norm == "trained":
        clips = F.layer_norm(clips, clips.shape[-1:], t["norm.weight"], t["norm.bias"], backbone.norm_eps)
    made = torch.stack([_seen(adapter, clip) for clip in clips])
    return made @ t["head.weight"].T + t["head.bias"]


def _seen(adapter: Adapter, clip: Tensor) -> Tensor:
    """What the last map takes, of one clip (frames, width) or its mean (1, width)."""
    t = adapter.tensors
    if adapter.config.head == "attention":
        values = [[t["head.value.weight"][i] @ v + p[i] for i in range(len(p))]
                  for v, p in zip(clip, t["head.value.position"], strict=True)]  # fmt: skip
        scores = torch.stack(
            [t["head.score.weight"] @ v + p for v, p in zip(clip, t["head.score.position"], strict=True)]
        )
        shares = torch.exp(scores) / torch.exp(scores).sum(0)
        return torch.stack(
            [sum(shares[k, i // 15] * values[k][i] for k in range(len(clip))) for i in range(len(values[0]))]
        )
    flat = torch.cat(list(clip))
    return t["head.down.weight"] @ flat if "head.down.weight" in t else flat


def close(found: Tensor, expected: Tensor) -> None:
    """Equal but for the rounding of float32, which differs from CPU to CPU with the order of its sums.

    ``expected`` in float64 is exact. The bound is 256 units of float32 at the largest value: a dozen times what two
    kernels differ by after three blocks, a hundredth of what a wrong scale, row or activation does.
    """
    assert expected.std() > 0.01  # what is nothing proves nothing
    bound = 256 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=bound)
