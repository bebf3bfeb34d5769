"""Checkpoints of adapter_plus (Steitz and Roth 2024): adapters and head of a timm ViT, in PyTorch Lightning's file.

Where an adapter stands is told by the run's OmegaConf settings alone; they are read as plain values, with no OmegaConf
and without running what a pickle asks for. It knows no command.
"""

from __future__ import annotations

import collections
import re
import typing
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from adapters.backbone import Backbone
from adapters.config import Activation, SiteName
from adapters.errors import ImportRefused
from adapters.importers.common import Imported, ImportTerms, Residual, check_head, config_of, load_plain, site_of
from adapters.importers.families import base_told

_SITES: Mapping[str, Mapping[str, SiteName]] = {
    "post": {"adapter": "output"}, "pfeiffer": {"adapter": "output"}, "parallel": {"adapter": "parallel"},
    "pre": {"adapter": "pre_mlp"}, "intermediate": {"adapter": "sequential"},
    "houlsby": {"adapter": "sequential", "adapter_attn": "attn"},
}  # fmt: skip
"""``adapter.config`` -> the site of each of a block's adapters."""
_LORA: Mapping[str, SiteName] = {"q": "q", "k": "k", "v": "v", "o": "attn"}
"""The one on ``o`` taps the output of the attention's last layer, not what goes in."""
_KEY = re.compile(r"vit\.blocks\.(\d{1,4})\.(adapter|adapter_attn|attn\.adapters\.[qkvo])\.(.+)")
_SEEN = {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"}


class _Node:
    """In place of any object of OmegaConf: what it held."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        self.held = dict(state) if isinstance(state, dict) else {}


_NODES = (
    "dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata", "nodes.AnyNode",
    "nodes.StringNode", "nodes.IntegerNode", "nodes.FloatNode", "nodes.BooleanNode",
)  # fmt: skip
_READ: list[Any] = [
    *((_Node, f"omegaconf.{name}") for name in _NODES), (typing.Any, "typing.Any"), collections.defaultdict,
    (dict, "builtins.dict"), (list, "builtins.list"), (int, "builtins.int"), (int, "__builtin__.long"),
    (dict, "__builtin__.dict"), (list, "__builtin__.list"),
]  # fmt: skip


@dataclass(frozen=True)
class PlusCheckpoint:
    """A checkpoint taken apart: residuals by site and block with their scale in ``up``, one ``act``, the head."""

    name: str
    trained_on: str | None
    residuals: Mapping[SiteName, Mapping[int, Residual]]
    act: Activation
    head: tuple[Tensor, Tensor]

    @property
    def classes(self) -> int:
        return self.head[0].shape[0]


def read_checkpoint(path: Path) -> PlusCheckpoint:
    """Raises ImportRefused for what is not one, or cannot be served; OSError."""
    content = load_plain(path, also=_READ)
    state = content.get("state_dict") if isinstance(content, dict) else None
    told = content.get("hyper_parameters") if isinstance(content, dict) else None
    settings = _plain(told.get("cfg")) if isinstance(told, dict) else None
    if not isinstance(state, dict) or not isinstance(settings, dict):
        raise ImportRefused(f"{path.name} lacks 'state_dict' or 'hyper_parameters.cfg'; expected what adapter_plus's "
                            "training saves", field="hyper_parameters")  # fmt: skip
    if settings.get("prompt") or _anywhere(settings, "train_ln"):
        what = "visual prompts, which add tokens" if settings.get("prompt") else "every LayerNorm (train_ln)"
        raise ImportRefused(f"the run trained {what}, and only residuals inside the blocks can be served", field="cfg")
    method = settings.get("adapter") or settings.get("lora")
    if not isinstance(method, dict) or (settings.get("adapter") and settings.get("lora")):
        raise ImportRefused("its settings name no adapter and no LoRA, or both at once", field="cfg.adapter")
    sites = _LORA if settings.get("lora") else _SITES.get(str(method.get("config")))
    if sites is None:
        raise ImportRefused(f"adapter.config {str(method.get('config'))[:40]!r} is none of {', '.join(_SITES)}",
                            field="cfg.adapter.config")  # fmt: skip
    head, residuals = {}, defaultdict[SiteName, dict[int, Residual]](dict)
    grouped: dict[tuple[str, int], dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in state.items():
        if match := _KEY.fullmatch(str(name)):
            grouped[match[2].removeprefix("attn.adapters."), int(match[1])][match[3]] = tensor.float()
        elif name in ("vit.head.weight", "vit.head.bias"):
            head[str(name).rpartition(".")[2]] = tensor.float()
        else:
            raise ImportRefused(f"tensor {str(name)[:200]} is none of an adapter or the head", tensor=str(name)[:200])
    if head.keys() != {"weight", "bias"} or not grouped:
        raise ImportRefused(f"{path.name} lacks adapters, or a head with weight and bias", tensor="vit.head.weight")
    check_head(head["weight"], head["bias"])
    for (kind, block), tensors in grouped.items():
        if kind not in sites:
            raise ImportRefused(f"block {block} has tensors of {kind}, which adapter.config {method.get('config')} "
                                "does not use", tensor=kind)  # fmt: skip
        residuals[sites[kind]][block] = _residual(f"block {block}, {kind}", tensors, method.get("scaling"))
    model = settings.get("vit", {}).get("model") if isinstance(settings.get("vit"), dict) else None
    act: Activation = "gelu" if method.get("act_layer") else "none"
    return PlusCheckpoint(
        path.name, model if isinstance(model, str) else None, residuals, act, (head["weight"], head["bias"])
    )


def convert(source: PlusCheckpoint, backbone: Backbone, terms: ImportTerms) -> Imported:
    """The adapter's config and tensors for ``backbone``. Raises ImportRefused."""
    blocks = list(getattr(backbone.model, "blocks", ()))
    scaled = any(not isinstance(getattr(block, "ls2", None), nn.Identity) for block in blocks)
    if scaled and {"sequential", "attn"} & source.residuals.keys():
        raise ImportRefused(f"{backbone.layout.model} scales its layers (LayerScale), and these adapters tap what is "
                            "scaled, where nothing can be added here", field="base")  # fmt: skip
    if any(type(block) is not Block for block in blocks):
        raise ImportRefused(f"{backbone.layout.model} is not built of timm's pre-norm blocks, which adapter_plus "
                            "adapts", field="base")  # fmt: skip
    sites, tensors = [], {"head.weight": source.head[0], "head.bias": source.head[1]}
    for name, residuals in sorted(source.residuals.items()):
        site, more = site_of(name, residuals, act=source.act, scale=1.0)
        sites.append(site)
        tensors |= more
    told = {"imported_from": "adapter_plus", "source": source.name, "trained_on": source.trained_on or "not told"}
    config = config_of(
        terms, backbone.layout, backbone.input.model_copy(update=_SEEN), tuple(sites), pool="backbone", norm="frozen",
        training=told,
    )  # fmt: skip
    seen = (
        "pictures squashed, bilinear, with mean and std of the base, as the official code evaluates on VTAB; that code "
        "resizes without antialiasing, so that scores of large pictures differ a little"
    )
    return Imported(config, tensors, (base_told(source.trained_on, backbone.layout.model), seen))


def _residual(name: str, tensors: Mapping[str, Tensor], scaling: object) -> Residual:
    down, up = (tensors.get(f"bottleneck.{number}.weight") for number in (1, 4))
    if down is None or up is None or down.ndim != 2 or up.ndim != 2:
        raise ImportRefused(f"{name} lacks bottleneck.1.weight or bottleneck.4.weight", tensor="bottleneck.1.weight")
    down_bias, up_bias = (
        tensors.get(f"bottleneck.{number}.bias", torch.zeros(len(weight))) for number, weight in ((1, down), (4, up))
    )
    scale = tensors.get("scaling")
    if scale is None:
        if isinstance(scaling, bool) or not isinstance(scaling, int | float):
            raise ImportRefused(f"{name} lacks its scaling, which the settings call {str(scaling)[:40]!r}",
                                tensor="scaling")  # fmt: skip
        scale = torch.tensor([float(scaling)])
    known = {"scaling", *(f"bottleneck.{number}.{part}" for number in (1, 4) for part in ("weight", "bias"))}
    if left := sorted(tensors.keys() - known):
        raise ImportRefused(f"{name} holds {left[0][:80]}: a LayerNorm of its own (norm_layer), which no site here has",
                            tensor=left[0][:80])  # fmt: skip
    if scale.shape not in ((1,), up_bias.shape) or up_bias.shape != up.shape[:1]:
        raise ImportRefused(
            f"{name}: its scaling or bias and bottleneck.4.weight do not fit together", tensor="scaling"
        )
    return Residual(down, down_bias, up * scale.view(-1, 1), up_bias * scale)


def _plain(node: object, depth: int = 0) -> Any:
    """What OmegaConf's nodes held, as dictionaries, lists and values."""
    if depth > 20:
        raise ImportRefused("its settings nest deeper than 20 levels", field="hyper_parameters.cfg")
    if isinstance(node, _Node):
        return _plain(node.held["_content"] if "_content" in node.held else node.held.get("_val"), depth + 1)
    if isinstance(node, dict):
        return {str(key): _plain(value, depth + 1) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value, depth + 1) for value in node]
    return node if isinstance(node, str | bool | int | float) else None


def _anywhere(settings: Mapping[str, Any], field: str) -> bool:
    return any(bool(v) if k == field else isinstance(v, dict) and _anywhere(v, field) for k, v in settings.items())
