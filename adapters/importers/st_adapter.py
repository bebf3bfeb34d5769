"""ST-Adapter's own checkpoints (Pan et al. 2022, on CLIP): read without running a pickle, check the base, convert.

A checkpoint is {'model', 'optimizer', 'lr_sched', 'loss_scaler', 'next_epoch'} and holds what was trained: the adapters
and the classifier. Whatever of the backbone is in it too is compared. It knows no command.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from timm.data import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.layers import QuickGELU
from torch import Tensor, nn

from adapters.backbone import Backbone
from adapters.config import SiteConfig, SiteName, VideoConfig
from adapters.errors import ImportRefused
from adapters.importers.common import Imported, ImportTerms, Residual, check_head, config_of, read_state, site_of

TOLERANCE = 1e-6
NORM_EPS = 1e-5
_SITES: Mapping[str, SiteName] = {"adapter_pre_attn": "input", "adapter_pre_mlp": "pre_mlp"}
_ADAPTER = re.compile(r"transformer\.resblocks\.(\d{1,4})\.(adapter_pre_attn|adapter_pre_mlp)\.")
_PARTS = ("fc1.weight", "fc1.bias", "conv.weight", "conv.bias", "fc2.weight", "fc2.bias")
_NAMES = {
    r"class_embedding": "cls_token", r"positional_embedding": "pos_embed", r"conv1\.weight": "patch_embed.proj.weight",
    r"ln_pre\.(weight|bias)": r"norm_pre.\1",
    r"transformer\.resblocks\.(\d{1,4})\.ln_([12])\.(weight|bias)": r"blocks.\1.norm\2.\3",
    r"transformer\.resblocks\.(\d{1,4})\.attn\.in_proj_(weight|bias)": r"blocks.\1.attn.qkv.\2",
    r"transformer\.resblocks\.(\d{1,4})\.attn\.out_proj\.(weight|bias)": r"blocks.\1.attn.proj.\2",
    r"transformer\.resblocks\.(\d{1,4})\.mlp\.c_fc\.(weight|bias)": r"blocks.\1.mlp.fc1.\2",
    r"transformer\.resblocks\.(\d{1,4})\.mlp\.c_proj\.(weight|bias)": r"blocks.\1.mlp.fc2.\2",
}  # fmt: skip
"""CLIP's names of the backbone's tensors -> timm's."""
_PREPROCESSING = {
    "mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD, "interpolation": "bicubic", "crop_pct": 1.0,
    "crop_mode": "center",
}  # fmt: skip
"""What the official code evaluates with: the shorter side resized to the input's, and the middle of it."""


@dataclass(frozen=True)
class STAdapterCheckpoint:
    """A checkpoint taken apart, on the CPU.

    ``backbone``: what it holds of the frozen tensors, by timm name and in its own dtype. ``residuals``: by site and
    block, the convolution's bias folded in. ``norm``: the last norm, if it is there. ``head``: weight and bias.
    """

    name: str
    backbone: Mapping[str, Tensor]
    residuals: Mapping[SiteName, Mapping[int, Residual]]
    norm: tuple[Tensor, Tensor] | None
    head: tuple[Tensor, Tensor]

    @property
    def classes(self) -> int:
        return self.head[0].shape[0]


def read_checkpoint(path: Path) -> STAdapterCheckpoint:
    """Read a ``.pth`` of the official code. Raises ImportRefused for what is not one, or cannot be served; OSError."""
    raw, _ = read_state(path, "ST-Adapter's code saves: a dictionary with 'model'")
    state = {name.removeprefix("module."): tensor for name, tensor in raw.items()}

    def take(name: str) -> Tensor:
        if name not in state:
            raise ImportRefused(f"{path.name} lacks tensor {name}; it is no checkpoint of ST-Adapter's code",
                                tensor=name)  # fmt: skip
        return state.pop(name).float()

    residuals: dict[SiteName, dict[int, Residual]] = defaultdict(dict)
    for kind, block, prefix in sorted({(m[2], int(m[1]), m[0]) for m in map(_ADAPTER.match, state) if m}):
        residuals[_SITES[kind]][block] = _residual(prefix, *(take(f"{prefix}{part}") for part in _PARTS))
    if not residuals:
        raise ImportRefused(f"{path.name} holds no adapter_pre_attn or adapter_pre_mlp; it is no checkpoint of "
                            "ST-Adapter's code")  # fmt: skip
    head = take("fc.weight"), take("fc.bias")
    check_head(*head)
    norm = (take("ln_post.weight"), take("ln_post.bias")) if "ln_post.weight" in state else None
    return STAdapterCheckpoint(path.name, _timm_names(state), residuals, norm, head)


def convert(checkpoint: STAdapterCheckpoint, backbone: Backbone, terms: ImportTerms, *, frames: int = 8) -> Imported:
    """The adapter's config and tensors. ``backbone`` is float32; ``frames`` are those of a clip, which no file tells.

    The last norm stands behind the mean over frames, so that it goes into the file as a norm of its own. Raises
    ImportRefused if the backbone is none that ST-Adapter's code knows, or not the checkpoint's.
    """
    _check_base(backbone)
    _compare(checkpoint, backbone)
    sites: list[SiteConfig] = []
    norm = checkpoint.norm or (backbone.model.norm.weight.float(), backbone.model.norm.bias.float())
    tensors = {"head.weight": checkpoint.head[0], "head.bias": checkpoint.head[1]}
    tensors |= {"norm.weight": norm[0], "norm.bias": norm[1]}
    for name, residuals in checkpoint.residuals.items():
        site, own = site_of(name, residuals, act="none", scale=1.0, tokens="patches")
        sites.append(site)
        tensors |= own
    config = config_of(
        terms, backbone.layout, backbone.input.model_copy(update=_PREPROCESSING), tuple(sites),
        pool="cls", norm="trained", video=VideoConfig(frames=frames),
        training={"imported_from": "ST-Adapter checkpoint", "source": checkpoint.name},
    )  # fmt: skip
    held = len(checkpoint.backbone)
    seen = f"was seen from {held} tensors in the file" if held else "cannot be seen from the file"
    granted = (
        f"it was trained on OpenAI's CLIP; that {backbone.layout.model} has the same weights {seen}",
        f"{frames} frames from all over a clip, and one view of it",
    )
    return Imported(config, tensors, granted)


def _residual(
    prefix: str, down: Tensor, down_bias: Tensor, kernel: Tensor, kernel_bias: Tensor, up: Tensor, up_bias: Tensor
) -> Residual:
    """``up(conv(h) + b)`` is ``up(conv(h)) + up(b)``, at the ends of a clip too: there the zeros are beside ``h``."""
    rank = down_bias.numel()
    if tuple(kernel.shape) not in ((rank, 1, 3, 1, 1), (rank, 1, 1, 1, 1)):
        raise ImportRefused(
            f"{prefix}conv.weight has shape {'x'.join(map(str, kernel.shape))}; only kernels of 3x1x1 can be served, "
            f"{rank}x1x3x1x1 here: three frames, and every patch for itself",
            tensor=f"{prefix}conv.weight", expected=[rank, 1, 3, 1, 1], got=list(kernel.shape),
        )  # fmt: skip
    if kernel_bias.shape != (rank,) or up.shape != (*up_bias.shape, rank):
        raise ImportRefused(f"the tensors of {prefix[:-1]} do not fit together; its rank is {rank}",
                            tensor=f"{prefix}fc2.weight")  # fmt: skip
    time = kernel[..., 0, 0]
    if time.shape[-1] == 1:
        time = F.pad(time, (1, 1))
    return Residual(down, down_bias, up, up_bias + up @ kernel_bias, time)


def _timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in _NAMES.items():
            if match := re.fullmatch(pattern, name):
                named[match.expand(replacement)] = tensor
                break
        else:
            raise ImportRefused(f"tensor {name[:200]} is none of ST-Adapter's code", tensor=name[:200])
    return named


def _check_base(backbone: Backbone) -> None:
    """Raise ImportRefused unless the base computes as the only backbone that the official code has."""
    model, layout = backbone.model, backbone.layout
    wanted = {
        "a norm before its blocks": isinstance(getattr(model, "norm_pre", None), nn.LayerNorm),
        "a class token and no registers": "cls" in layout.pools and layout.prefix_tokens == 1,
        "QuickGELU": any(isinstance(module, QuickGELU) for module in model.modules()),
        f"norms with an epsilon of {NORM_EPS:g}": backbone.norm_eps == NORM_EPS,
    }
    if lacking := next((what for what, there in wanted.items() if not there), None):
        raise ImportRefused(
            f"{layout.model} lacks {lacking}, which OpenAI's CLIP has, and ST-Adapter's code knows no other backbone; "
            "scores would be others; name one such as vit_base_patch16_clip_quickgelu_224.openai with --base",
            field="base",
        )  # fmt: skip


def _compare(checkpoint: STAdapterCheckpoint, backbone: Backbone) -> None:
    """Raise ImportRefused unless the frozen tensors of the file are those that the adapter will be served on.

    The official code keeps its backbone in half precision, and so it is compared.
    """
    base: dict[str, Tensor] = backbone.model.state_dict()
    for name, tensor in checkpoint.backbone.items():
        ours = base.get(name)
        if ours is None or ours.numel() != tensor.numel():
            raise ImportRefused(
                f"the checkpoint is of another architecture than {backbone.layout.model}: tensor {name} has "
                f"{tensor.numel()} values, expected {0 if ours is None else ours.numel()}; name its own with --base",
                tensor=name, expected=0 if ours is None else ours.numel(), got=tensor.numel(),
            )  # fmt: skip
        apart = float((ours.cpu().to(tensor.dtype).float().flatten() - tensor.float().flatten()).abs().max())
        if not apart <= TOLERANCE:
            raise ImportRefused(
                f"the checkpoint's backbone is not {backbone.layout.model} as loaded here: {name} differs by "
                f"{apart:.3g}; it was trained on other weights or tuned fully; name its own with --base and --weights",
                tensor=name, value=apart, limit=TOLERANCE,
            )  # fmt: skip
