"""VideoMAE's ViT, which sees clips: a token for each tubelet of two frames, fixed positions, no class token.

timm has no such model, so these are registered with it under names of their own; blocks, pooling and last norm are
timm's. It knows checkpoints' names of tensors; it knows no files and no adapters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from adapters.config import MAX_FRAMES

TUBELET = 2
"""Frames of a tubelet."""
FRAMES = 16
"""Of a clip, as VideoMAE is published; names that end in ``_f8`` have 8, which AdaptFormer's official code takes."""
OTHER_FRAMES = (8, 32)
SIZES: Mapping[str, Mapping[str, int]] = {
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
_PREFIXES = ("encoder.", "backbone.")
"""Before the names of the ViT's tensors: in VideoMAE's masked training, and in others' training that goes on."""
_PARTS = re.compile(r"(blocks\.\d{1,4}\.attn)\.([qkv])_(?:proj\.)?(weight|bias)")


class TubeletEmbed(PatchEmbed):  # type: ignore[misc]
    """Clips (rows, frames, 3, height, width) -> tokens (rows, frames / tubelet * patches, width), moment by moment."""

    def __init__(self, *, frames: int, tubelet: int, in_chans: int, embed_dim: int, bias: bool = True,
                 device: Any = None, dtype: Any = None, **others: Any) -> None:  # fmt: skip
        super().__init__(in_chans=in_chans, embed_dim=embed_dim, bias=bias, device=device, dtype=dtype, **others)
        kernel = (tubelet, *self.patch_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel, kernel, bias=bias, device=device, dtype=dtype)
        self.num_patches *= frames // tubelet
        positions = sinusoids(self.num_patches, embed_dim, device=device).to(dtype or torch.get_default_dtype())
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, clips: Tensor) -> Tensor:
        tokens: Tensor = self.proj(clips.transpose(1, 2)).flatten(2).transpose(1, 2) + self.positions
        return tokens


class VideoTransformer(VisionTransformer):  # type: ignore[misc]
    """``forward_features`` takes clips (rows, frames, 3, height, width); timm's own in everything else."""

    def __init__(
        self, *, frames: int = FRAMES, tubelet: int = TUBELET, pool_eps: float | None = None, **args: Any
    ) -> None:
        """``pool_eps``: of the norm behind the pooling, where it is not that of the others."""
        if not (0 < tubelet <= frames <= MAX_FRAMES) or frames % tubelet:
            raise ValueError(f"{frames} frames are not whole tubelets of {tubelet}; up to {MAX_FRAMES} are taken")
        embed = partial(TubeletEmbed, frames=frames, tubelet=tubelet)
        super().__init__(embed_layer=embed, class_token=False, pos_embed="none", global_pool="avg", **args)
        self.frames = frames
        if pool_eps is not None:
            self.fc_norm.eps = pool_eps


def frames_of(model: nn.Module) -> int:
    """Of the clips that a model sees; 1 for models of pictures."""
    return model.frames if isinstance(model, VideoTransformer) else 1


def sinusoids(count: int, width: int, device: Any = None) -> Tensor:
    """VideoMAE's fixed positions (1, count, width) float64: sines and cosines of the token's number in turn."""
    numbers = torch.arange(count, dtype=torch.float64, device=device)
    pairs = torch.arange(width, device=device).div(2, rounding_mode="floor")
    angles = numbers[:, None] / torch.pow(10000.0, 2 * pairs.double() / width)
    return torch.where(torch.arange(width, device=device) % 2 == 0, angles.sin(), angles.cos())[None]


def timm_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """VideoMAE's and AdaptFormer's names of a video ViT's tensors -> timm's; other names stay.

    Queries, keys and values become one, whose keys have a bias of zero; what is incomplete stays as it is.
    """
    prefix = next((p for p in _PREFIXES if f"{p}patch_embed.proj.weight" in state), "")
    named = {re.sub(r"^(blocks\.\d+)\.(fc[12]\.)", r"\1.mlp.\2", n.removeprefix(prefix)): t for n, t in state.items()}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in named.items():
        if part := _PARTS.fullmatch(name):
            parts.setdefault(f"{part[1]}.qkv.{part[3]}", {})[part[2]] = tensor
    for whole, found in parts.items():
        if whole.endswith("bias") and found.keys() == {"q", "v"}:
            found["k"] = torch.zeros_like(found["q"])
        if found.keys() == set("qkv") and len({part.shape for part in found.values()}) == 1 and whole not in named:
            named = {n: t for n, t in named.items() if not _is_part(n, whole)}
            named[whole] = torch.cat([found[letter] for letter in "qkv"])
    for kind in ("weight", "bias"):  # in front of the pooling in masked training, behind it in whatever follows
        if f"norm.{kind}" in named and f"fc_norm.{kind}" not in named:
            named[f"fc_norm.{kind}"] = named.pop(f"norm.{kind}")
    return named


def _is_part(name: str, whole: str) -> bool:
    part = _PARTS.fullmatch(name)
    return part is not None and f"{part[1]}.qkv.{part[3]}" == whole


def checkpoint_filter_fn(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:  # noqa: ARG001
    """As timm's converters, which are found by this name."""
    inner = next((state[key] for key in ("module", "model") if isinstance(state.get(key), Mapping)), state)
    return timm_names(inner)


_SEEN = {
    "num_classes": 0, "input_size": (3, 224, 224), "fixed_input_size": True, "interpolation": "bilinear",
    "crop_pct": 1.0, "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "first_conv": "patch_embed.proj",
    "classifier": "head",
}  # fmt: skip
"""What VideoMAE's and AdaptFormer's own code evaluates with: the shorter side resized to 224, and parts of it."""
NAMES: Mapping[str, tuple[str, int]] = {
    f"videomae_{size}_patch16_224" + ("" if frames == FRAMES else f"_f{frames}"): (size, frames)
    for size in SIZES
    for frames in (FRAMES, *OTHER_FRAMES)
}
"""Of the models that timm knows by this module: the size and the frames of each."""
default_cfgs = generate_default_cfgs({name: dict(_SEEN) for name in NAMES})


def _entry(name: str, size: str, frames: int) -> Callable[..., nn.Module]:
    """What timm calls to make a model of that name."""

    def entry(pretrained: bool = False, **args: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(
            VideoTransformer, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn,
            **{"patch_size": 16, **SIZES[size], "frames": frames, **args},
        )  # fmt: skip
        return model

    entry.__name__ = name
    return entry


for _name, _kind in NAMES.items():
    register_model(_entry(_name, *_kind))
