"""AdaptFormer's own checkpoints: read without running a pickle, compare the backbone, convert.

A checkpoint is {'model', 'optimizer', 'epoch', 'scaler', 'args'} with the whole backbone inside: a ViT, or in the video
form VideoMAE's, which sees clips. It knows no command.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from adapters.backbone import Backbone
from adapters.backbone.tubelets import timm_names as video_names
from adapters.config import SiteConfig, VideoConfig
from adapters.errors import ImportRefused
from adapters.file import write_tensors
from adapters.importers import adaptformer_video
from adapters.importers.common import Imported, ImportTerms, Residual, check_head, config_of, read_state, site_of

Option = Literal["parallel", "sequential"]
DEFAULT_SCALE = 0.1
"""The paper's; the official scripts use it and store it nowhere."""
DEFAULT_OPTION: Option = "parallel"
"""The official scripts' ``ffn_option``, which they store nowhere either."""
TOLERANCE = 1e-6
HEAD_NORM_EPS = 1e-6
_PREPROCESSING = {"interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}
"""What the official code evaluates with: the shorter side resized to 256, and the middle 224 of it."""
_COLOURS = {
    r"jx_": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    r"mae_pretrain_vit|swin_base_patch4": {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD},
}
"""How the name of its pretrained file begins -> how the official code normalises; it knows no other names."""
_FULL = (
    "the checkpoint was fully tuned, so the task is the whole backbone and not an adapter; "
    "only checkpoints with a frozen backbone can be imported"
)


@dataclass(frozen=True)
class AdaptFormerCheckpoint:
    """A checkpoint taken apart, float32 on the CPU.

    ``backbone``: frozen tensors by timm name. ``option``: None where the file does not tell, as the official scripts'
    do not. ``residuals``: by block. ``learnt_scale``: each has its own scale in ``up`` already. ``norm``: the trained
    one of global pooling. ``head``: weight (classes, width) and bias, its BatchNorm folded in. ``pretrained``: the name
    of the file that the training began with; empty where it is not told. ``video``: how a checkpoint of the video form
    sees clips; ``inception`` is its argument of that name, which says how it normalises.
    """

    name: str
    backbone: Mapping[str, Tensor]
    option: Option | None
    residuals: Mapping[int, Residual]
    learnt_scale: bool
    norm: tuple[Tensor, Tensor] | None
    head: tuple[Tensor, Tensor]
    pretrained: str
    video: VideoConfig | None = None
    inception: bool = False

    @property
    def classes(self) -> int:
        return self.head[0].shape[0]


def read_checkpoint(path: Path) -> AdaptFormerCheckpoint:
    """Read a ``.pth`` of the official code. Raises ImportRefused for what is not one, or cannot be served; OSError."""
    state, args = _load(path)
    _refuse_other_forms(state, args)
    taken: dict[str, Tensor] = {}

    def take(name: str) -> Tensor:
        if name not in state:
            raise ImportRefused(f"{path.name} lacks tensor {name}; it is no checkpoint of AdaptFormer's code",
                                tensor=name)  # fmt: skip
        taken[name] = state[name].float()
        return taken[name]

    learnt = any(name.endswith(".adaptmlp.scale") for name in state)
    residuals = {block: _residual(take, block, learnt) for block in _adapted_blocks(state)}
    video = adaptformer_video.told(args) if state["patch_embed.proj.weight"].ndim == 5 else None
    norm = (take("fc_norm.weight"), take("fc_norm.bias")) if video or "fc_norm.weight" in state else None
    head = _head(take, batch_norm="head.0.running_var" in state)
    rest = {n: t for n, t in state.items() if n not in taken and n != "head.0.num_batches_tracked"}
    told = args.get("ffn_option")
    option: Option | None = None if told is None else "sequential" if told == "sequential" else "parallel"
    pretrained = re.split(r"[\\/]", str(args.get("finetune") or ""))[-1][:200]
    named = {n: t.float() for n, t in video_names(rest).items()} if video else _timm_names(rest)
    return AdaptFormerCheckpoint(
        path.name, named, option, residuals, learnt, norm, head, pretrained, video, bool(args.get("inception"))
    )  # fmt: skip


def convert(
    checkpoint: AdaptFormerCheckpoint, backbone: Backbone, terms: ImportTerms, *,
    scale: float | None = None, option: Option | None = None, clips: Mapping[str, object] | None = None,
) -> Imported:  # fmt: skip
    """The adapter's config and tensors. ``backbone`` is float32; ``scale`` counts where none was learnt.

    ``clips``: fields of VideoConfig in place of those that a checkpoint of the video form tells.
    ``scale`` and ``option`` are the official scripts' where neither the file nor the caller tells. Raises ImportRefused
    if the checkpoint's backbone is not this one, or its option another one.
    """
    _compare(checkpoint, backbone)
    if option and checkpoint.option and option != checkpoint.option:
        raise ImportRefused(f"the checkpoint says ffn_option {checkpoint.option}, --option says {option}",
                            field="args.ffn_option", expected=checkpoint.option, got=option)  # fmt: skip
    sites: tuple[SiteConfig, ...] = ()
    tensors = {"head.weight": checkpoint.head[0], "head.bias": checkpoint.head[1]}
    if checkpoint.residuals:
        factor = 1.0 if checkpoint.learnt_scale else DEFAULT_SCALE if scale is None else scale
        name = option or checkpoint.option or DEFAULT_OPTION
        site, residuals = site_of(name, checkpoint.residuals, act="relu", scale=factor)
        sites, tensors = (site,), tensors | residuals
    if checkpoint.norm:
        tensors |= {"norm.weight": checkpoint.norm[0], "norm.bias": checkpoint.norm[1]}
    video = adaptformer_video.asked(checkpoint.video, clips or {})
    known = next((c for pattern, c in _COLOURS.items() if re.match(pattern, checkpoint.pretrained)), {})
    seen = _PREPROCESSING | known
    if video:
        seen = known = adaptformer_video.seen(inception=checkpoint.inception)
    config = config_of(
        terms, backbone.layout, backbone.input.model_copy(update=seen), sites,
        pool="avg" if checkpoint.norm else "cls", norm="trained" if checkpoint.norm else "frozen", video=video,
        training={"imported_from": "AdaptFormer checkpoint", "source": checkpoint.name},
    )  # fmt: skip
    granted = _granted(checkpoint, scale, option, backbone.layout.model if not known else "", video)
    return Imported(config, tensors, granted)


def _granted(
    checkpoint: AdaptFormerCheckpoint, scale: float | None, option: Option | None, coloured: str,
    video: VideoConfig | None,
) -> tuple[str, ...]:  # fmt: skip
    """What neither the file nor the caller told; ``coloured`` names the base where mean and std are its own."""
    told = [f"pictures as the official code evaluates: bicubic, the middle {_PREPROCESSING['crop_pct']} of them"]
    if video:
        told = adaptformer_video.granted(video)
    if checkpoint.residuals and scale is None and not checkpoint.learnt_scale:
        told.append(f"scale {DEFAULT_SCALE:g}, which stands nowhere in a checkpoint: --scale where the training had "
                    "another")  # fmt: skip
    if checkpoint.residuals and option is None and checkpoint.option is None:
        told.append(f"adapters {DEFAULT_OPTION} to the MLP, which stands nowhere in a checkpoint either: "
                    "--option sequential where the training had ffn_option sequential")  # fmt: skip
    if coloured:
        why = f"{checkpoint.pretrained!r} is none that" if checkpoint.pretrained else "it names no weights that"
        told.append(f"mean and std of {coloured}, since {why} the official code knows a mean for")
    return tuple(told)


def export_backbone(checkpoint: AdaptFormerCheckpoint, backbone: Backbone, path: Path) -> str:
    """Write the checkpoint's backbone as timm weights for the architecture of ``backbone``. Returns the digest.

    A checkpoint with global pooling has no last norm; the one of ``backbone`` is written. Raises ImportRefused.
    """
    return write_tensors(path, _aligned(checkpoint, backbone), {"format": "pt"})


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The state dict and the arguments of the run, read by torch's restricted unpickler."""
    state, content = read_state(path, "AdaptFormer's code saves: a dictionary with 'model' and 'args'")
    args = content.get("args")
    return state, vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}


def _refuse_other_forms(state: Mapping[str, Tensor], args: Mapping[str, object]) -> None:
    if args.get("fulltune"):
        raise ImportRefused(_FULL, field="args.fulltune")
    prompt = next((n for n in state if n.startswith("embeddings.") or "prompt" in n), None)
    if prompt:
        raise ImportRefused(f"the checkpoint was tuned with visual prompts (tensor {prompt}); prompts add tokens, "
                            "and only residuals inside the blocks can be served", tensor=prompt)  # fmt: skip
    patches = state.get("patch_embed.proj.weight")
    if patches is None:
        raise ImportRefused("it lacks tensor patch_embed.proj.weight; it is no checkpoint of AdaptFormer's code",
                            tensor="patch_embed.proj.weight")  # fmt: skip
    normed = next((n for n in state if ".adapter_layer_norm_before." in n), None)
    if normed:
        raise ImportRefused(f"its adapters have a LayerNorm of their own (tensor {normed}), which no site here has; "
                            "only ffn_adapter_layernorm_option 'none' can be imported", tensor=normed)  # fmt: skip
    option = args.get("ffn_option", "parallel")
    if option not in ("parallel", "sequential"):
        raise ImportRefused(f"ffn_option {str(option)[:40]!r} is neither parallel nor sequential",
                            field="args.ffn_option")  # fmt: skip


def _adapted_blocks(state: Mapping[str, Tensor]) -> list[int]:
    found = (re.match(r"blocks\.(\d{1,4})\.adaptmlp\.", name) for name in state)
    return sorted({int(match[1]) for match in found if match})


def _residual(take: Callable[[str], Tensor], block: int, learnt: bool) -> Residual:
    prefix = f"blocks.{block}.adaptmlp"
    up, up_bias = take(f"{prefix}.up_proj.weight"), take(f"{prefix}.up_proj.bias")
    scale = take(f"{prefix}.scale") if learnt else torch.ones(1)
    return Residual(take(f"{prefix}.down_proj.weight"), take(f"{prefix}.down_proj.bias"), up * scale, up_bias * scale)


def _head(take: Callable[[str], Tensor], *, batch_norm: bool) -> tuple[Tensor, Tensor]:
    """The linear head with BatchNorm1d(affine=False) folded in: W' = W / sqrt(var + eps), b' = b - W' mean."""
    prefix = "head.1" if batch_norm else "head"
    weight, bias = take(f"{prefix}.weight"), take(f"{prefix}.bias")
    check_head(weight, bias)
    if not batch_norm:
        return weight, bias
    mean, variance = take("head.0.running_mean").double(), take("head.0.running_var").double()
    if mean.shape != weight.shape[1:] or variance.shape != weight.shape[1:]:
        raise ImportRefused("the head's BatchNorm and its Linear differ in width", tensor="head.0.running_mean",
                            expected=list(weight.shape[1:]), got=list(mean.shape))  # fmt: skip
    folded = weight.double() * (variance + HEAD_NORM_EPS).rsqrt()
    return folded.float(), (bias.double() - folded @ mean).float()


def _timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """q, k and v as one ``attn.qkv``, ``fc1`` and ``fc2`` under ``mlp``; every other name is timm's already."""
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part = re.fullmatch(r"(blocks\.\d+\.attn)\.([qkv])_proj\.(weight|bias)", name)
        if part is None:
            named[re.sub(r"^(blocks\.\d+)\.(fc[12]\.)", r"\1.mlp.\2", name)] = tensor.float()
        elif part[2] == "q":
            thirds = [state.get(f"{part[1]}.{letter}_proj.{part[3]}") for letter in "qkv"]
            whole = [t.float() for t in thirds if t is not None]
            if len(whole) < 3 or len({t.shape for t in whole}) > 1:
                raise ImportRefused(f"{part[1]} lacks one of q_proj, k_proj and v_proj, or their shapes differ",
                                    tensor=name)  # fmt: skip
            named[f"{part[1]}.qkv.{part[3]}"] = torch.cat(whole)
    return named


def _aligned(checkpoint: AdaptFormerCheckpoint, backbone: Backbone) -> dict[str, Tensor]:
    """The checkpoint's tensors under the names of ``backbone``, all of them and no others. Raises ImportRefused."""
    adaptformer_video.check_base(checkpoint.video, len(checkpoint.backbone["patch_embed.proj.weight"]), backbone.layout)
    base: dict[str, Tensor] = backbone.model.state_dict()
    last = "norm" if "norm.weight" in base else "fc_norm"  # timm puts it behind average pooling
    found = {re.sub(r"^norm\.", f"{last}.", name): tensor for name, tensor in checkpoint.backbone.items()}
    if checkpoint.norm:
        found = {n: t for n, t in base.items() if n.startswith(f"{last}.")} | found
    for name in (*base, *found):
        ours, theirs = base.get(name), found.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            raise ImportRefused(
                f"the checkpoint is of another architecture than {backbone.layout.model}: tensor {name} has shape "
                f"{_shape(theirs)}, expected {_shape(ours)}; name its own architecture with --base",
                tensor=name, expected=_shape(ours), got=_shape(theirs),
            )  # fmt: skip
    return {name: found[name] for name in base}


def _compare(checkpoint: AdaptFormerCheckpoint, backbone: Backbone) -> None:
    """Raise ImportRefused unless every frozen tensor equals the one that the adapter will be served on."""
    base = backbone.model.state_dict()
    found = _aligned(checkpoint, backbone)
    apart = {name: float((base[name].cpu() - tensor).abs().max()) for name, tensor in found.items()}
    differing = [name for name, distance in apart.items() if not distance <= TOLERANCE]
    if differing:
        first = differing[0]
        raise ImportRefused(
            f"the checkpoint's backbone is not {backbone.layout.model} as loaded here: {first} differs by "
            f"{apart[first]:.3g}, and {len(differing)} of {len(found)} tensors do; it was trained on other weights or "
            "tuned fully; for other weights, --export-base FILE writes them for --weights",
            tensor=first, value=apart[first], limit=TOLERANCE,
        )  # fmt: skip


def _shape(tensor: Tensor | None) -> str:
    return "x".join(map(str, tensor.shape)) if tensor is not None else "none"
