"""A folder that Hugging Face's transformers saved -> timm's architecture that computes the same, and its preprocessing.

It reads config.json and preprocessor_config.json; it knows no tensors.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.layers import SwiGLUPacked

from adapters.backbone.fields import Fields
from adapters.backbone.manner import Manner
from adapters.backbone.processor import (
    CENTER,
    HALVES,
    OF_CLIP,
    OF_IMAGENET,
    SQUASH,
    SQUASH_BICUBIC,
    find_processor,
    read_processor,
)
from adapters.config import MAX_BLOCKS, Size
from adapters.errors import BackboneError, ImportRefused

log = logging.getLogger(__name__)

CONFIG = "config.json"
MAX_CONFIG_BYTES = 32 * 2**20
"""One with the labels of ImageNet-21k has 2 MB."""
WRAPPER = "timm_wrapper"
_PARTS = {"clip": "vision_config", "siglip": "vision_config"}
"""Types of models that have one of pictures as a part."""
_SIZES = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "image_size": 224, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True,
}  # fmt: skip


@dataclass(frozen=True)
class Described:
    """What a folder says of its model.

    timm's ``architecture`` with ``args``; ``seen``: its preprocessing, by the names of timm's pretrained configs;
    ``size``: of the pictures that its processor makes, where that is not the model's own. ``antialias``: whether it
    resamples positions so, None where that is timm's business.
    """

    architecture: str
    args: Mapping[str, Any]
    seen: Mapping[str, Any]
    manner: Manner = field(default_factory=Manner)
    size: Size | None = None
    antialias: bool | None = None


@dataclass(frozen=True)
class _Kind:
    """Of models: timm's architecture and the arguments that differ from one to another, which are made of a config.

    ``defaults``: of transformers, for what a config leaves out. ``seen``: the published processors' preprocessing.
    """

    architecture: str
    args: Callable[[Fields], Mapping[str, Any]]
    defaults: Mapping[str, Any]
    seen: Mapping[str, object]
    usual_eps: Sequence[str] = ()
    antialias: bool | None = False


def _ratio(hidden: int, width: int) -> float:
    """The ``mlp_ratio`` with which timm makes so many hidden units of that width."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else ratio + 0.5 / width


def _plain(config: Fields) -> dict[str, Any]:
    """Arguments of every transformer whose blocks are alike, but the MLP's width."""
    return {
        "img_size": config.whole("image_size"), "patch_size": config.whole("patch_size"),
        "embed_dim": config.whole("hidden_size"), "depth": config.whole("num_hidden_layers", MAX_BLOCKS),
        "num_heads": config.whole("num_attention_heads"),
    }  # fmt: skip


def _vit(config: Fields) -> dict[str, Any]:
    ratio = _ratio(config.whole("intermediate_size"), config.whole("hidden_size"))
    return {**_plain(config), "mlp_ratio": ratio, "qkv_bias": config.on("qkv_bias")}


def _siglip(config: Fields) -> dict[str, Any]:
    return {**_vit(config), **({} if config.on("vision_use_head") else {"global_pool": "avg", "fc_norm": False})}


def _dinov2(config: Fields) -> dict[str, Any]:
    width = config.whole("hidden_size")
    hidden = int(width * config.number("mlp_ratio"))
    args = {
        **_plain(config),
        "qkv_bias": config.on("qkv_bias"),
        "init_values": config.number("layerscale_value") or 1.0,
    }
    if not config.on("use_swiglu_ffn"):
        return {**args, "mlp_ratio": _ratio(hidden, width)}
    hidden = (int(hidden * 2 / 3) + 7) // 8 * 8  # as DINOv2's own code counts them
    return {**args, "mlp_ratio": _ratio(2 * hidden, width), "mlp_layer": SwiGLUPacked}


def _registers(config: Fields) -> dict[str, Any]:
    return {**_dinov2(config), "reg_tokens": config.whole("num_register_tokens")}


def _beit(config: Fields) -> dict[str, Any]:
    mean = config.on("use_mean_pooling")
    pooling: dict[str, Any] = {"global_pool": "avg"} if mean else {"global_pool": "token", "use_fc_norm": False}
    scale = config.number("layer_scale_init_value")
    return {
        **_vit(config), **pooling, "init_values": scale or None,
        "use_abs_pos_emb": config.on("use_absolute_position_embeddings"),
        "use_rel_pos_bias": config.on("use_relative_position_bias"),
        "use_shared_rel_pos_bias": config.on("use_shared_relative_position_bias"),
    }  # fmt: skip


def _swin(config: Fields) -> dict[str, Any]:
    if config.on("use_absolute_embeddings"):
        raise ValueError("use_absolute_embeddings is true, which timm's Swin has not")
    return {
        "img_size": config.whole("image_size"), "patch_size": config.whole("patch_size"),
        "embed_dim": config.whole("embed_dim"), "depths": config.wholes("depths"),
        "num_heads": config.wholes("num_heads"), "window_size": config.whole("window_size"),
        "mlp_ratio": config.number("mlp_ratio"), "qkv_bias": config.on("qkv_bias"),
    }  # fmt: skip


_VIT = _Kind("vit_base_patch16_224", _vit, _SIZES, {**SQUASH, **HALVES})
_CLIP = _Kind(
    "vit_base_patch16_clip_224", _vit,
    {**_SIZES, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    {**CENTER, "crop_pct": 1.0, **OF_CLIP},
)  # fmt: skip
_SIGLIP = _Kind(
    "vit_base_patch16_siglip_224", _siglip,
    {**_SIZES, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": True},
    {**SQUASH_BICUBIC, **HALVES},
)  # fmt: skip
_BEIT = _Kind(
    "beit_base_patch16_224", _beit,
    {**_SIZES, "use_mean_pooling": True, "layer_scale_init_value": 0.1, "use_absolute_position_embeddings": False,
     "use_relative_position_bias": False, "use_shared_relative_position_bias": False},
    {**SQUASH, **HALVES}, antialias=None,
)  # fmt: skip
_DINOV2 = _Kind(
    "vit_base_patch14_dinov2", _dinov2,
    {**_SIZES, "patch_size": 14, "layer_norm_eps": 1e-6, "mlp_ratio": 4, "layerscale_value": 1.0,
     "use_swiglu_ffn": False, "num_register_tokens": 4},
    {**CENTER, **OF_IMAGENET},
)  # fmt: skip
_SWIN_DEFAULTS = {
    "image_size": 224, "patch_size": 4, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24],
    "window_size": 7, "mlp_ratio": 4.0, "qkv_bias": True, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
    "use_absolute_embeddings": False,
}  # fmt: skip
_KINDS: Mapping[str, _Kind] = {
    **dict.fromkeys(("vit", "vit_mae"), _VIT),
    "vit_msn": _Kind(_VIT.architecture, _vit, {**_SIZES, "layer_norm_eps": 1e-6}, _VIT.seen),
    "ijepa": _Kind("vit_huge_patch14_gap_224", _vit, {**_SIZES, "layer_norm_eps": 1e-6}, _VIT.seen),
    "deit": _Kind("deit_base_distilled_patch16_224", _vit, _SIZES, {**CENTER, "crop_mode": "squash", **OF_IMAGENET}),
    "dinov2": _DINOV2,
    "dinov2_with_registers": _Kind(
        "vit_base_patch14_reg4_dinov2", _registers, _DINOV2.defaults, _DINOV2.seen, antialias=True
    ),
    **dict.fromkeys(("clip", "clip_vision_model"), _CLIP),
    **dict.fromkeys(("siglip", "siglip_vision_model"), _SIGLIP),
    **dict.fromkeys(("beit", "data2vec-vision"), _BEIT),
    "swin": _Kind(
        "swin_tiny_patch4_window7_224", _swin, _SWIN_DEFAULTS, {**SQUASH_BICUBIC, **OF_IMAGENET},
        usual_eps=("patch_embed.norm", "downsample.norm"), antialias=None,
    ),
}  # fmt: skip
"""By ``model_type``."""


def read_config(folder: Path) -> Mapping[str, Any]:
    """config.json, where transformers wrote it; empty for any other. Raises BackboneError."""
    path = folder / CONFIG
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {MAX_CONFIG_BYTES} bytes")
        raw: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(f"{path} cannot be read ({type(error).__name__}: {error})", model=folder.name) from error
    return raw if isinstance(raw, dict) and isinstance(raw.get("model_type"), str) else {}


def described(folder: Path, name: str) -> Described | None:
    """The model in a folder of transformers; None for any other folder. Raises BackboneError for an unknown one."""
    raw = read_config(folder)
    if not raw:
        return None
    if raw["model_type"] == WRAPPER:
        return _wrapped(raw, name)
    kind, config = _kind_of(raw, name)
    try:
        args, manner = kind.args(config), Manner(config.number("layer_norm_eps"), config.act(), kind.usual_eps)
    except ValueError as error:
        raise BackboneError(f"{name} is a {raw['model_type']} that cannot be built: {error}", model=name) from error
    seen, size = _seen(folder, name)
    if not seen:
        log.info("%s has no preprocessor_config.json: pictures are as those of published %s models", name,
                 raw["model_type"])  # fmt: skip
    own = (args["img_size"], args["img_size"])
    return Described(
        kind.architecture, args, {**kind.seen, **seen, "input_size": (3, *own), "fixed_input_size": True}, manner,
        size if size != own else None, kind.antialias,
    )  # fmt: skip


def manner_beside(weights: Path) -> Manner | None:
    """How a model computes by the config.json that lies beside its weights, where that is one of transformers."""
    if not (weights.parent / CONFIG).is_file():
        return None
    raw = read_config(weights.parent)
    if not raw or raw["model_type"] == WRAPPER:
        return None
    kind, config = _kind_of(raw, weights.parent.name)
    try:
        return Manner(config.number("layer_norm_eps"), config.act(), kind.usual_eps)
    except ValueError as error:
        raise BackboneError(f"{weights.parent / CONFIG}: {error}", weights=str(weights)) from error


def _kind_of(raw: Mapping[str, Any], name: str) -> tuple[_Kind, Fields]:
    found = str(raw["model_type"])
    if found not in _KINDS:
        raise BackboneError(
            f"{name} is a '{found[:40]}' of transformers, and only {', '.join(_KINDS)} and {WRAPPER} are known; give "
            "timm's name of the architecture, and the weights with --weights", model=name, got=found[:40],
            expected=[*_KINDS, WRAPPER],
        )  # fmt: skip
    part = raw.get(_PARTS[found]) or {} if found in _PARTS else raw
    if not isinstance(part, dict):
        raise BackboneError(f"{name}: its {_PARTS[found]} is no object", model=name)
    return _KINDS[found], Fields(part, _KINDS[found].defaults)


def _wrapped(raw: Mapping[str, Any], name: str) -> Described:
    """timm's own model, of which transformers keeps timm's own description."""
    args, seen = raw.get("model_args") or {}, raw.get("pretrained_cfg") or {}
    if not isinstance(raw.get("architecture"), str) or not isinstance(args, dict) or not isinstance(seen, dict):
        raise BackboneError(f"{name} is a {WRAPPER} without an architecture of timm's", model=name)
    known = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "input_size", "fixed_input_size")
    return Described(raw["architecture"], args, {key: seen[key] for key in known if key in seen})


def _seen(folder: Path, name: str) -> tuple[Mapping[str, object], Size | None]:
    """Preprocessing by the folder's own file, if there is one."""
    file = find_processor(folder)
    if file is None:
        return {}, None
    try:
        found = read_processor(file)
    except ImportRefused as error:
        raise BackboneError(f"{name}: {error.message}", model=name) from error
    return found.fields, found.size
