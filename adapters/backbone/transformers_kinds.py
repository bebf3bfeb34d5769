"""Which models of Hugging Face's transformers are known, and what their config says in timm's arguments.

It knows fields of a config; it knows no files and no tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timm.layers import QuickGELU, SwiGLUPacked
from torch import nn

from adapters.backbone.processor import CENTER, SQUASH, SQUASH_BICUBIC
from adapters.config import MAX_BLOCKS

MAX_WIDTH = 2**16
ACTS: Mapping[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU, "gelu_python": nn.GELU, "quick_gelu": QuickGELU, "relu": nn.ReLU, "silu": nn.SiLU,
    "swish": nn.SiLU,
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), lambda: nn.GELU("tanh")),
}  # fmt: skip
_OF_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_OF_CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
_SIZES = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "image_size": 224, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """Of models: timm's architecture and the arguments that differ from one to another, which are made of a config.

    ``defaults``: of transformers, for what a config leaves out. ``seen``: the published processors' preprocessing.
    """

    architecture: str
    args: Callable[[Fields], Mapping[str, Any]]
    defaults: Mapping[str, Any]
    seen: Mapping[str, object]
    usual_eps: Sequence[str] = ()
    antialias: bool | None = False


class Fields:
    """config.json's fields, each of the type that is asked for, with transformers' defaults. Raises ValueError."""

    def __init__(self, raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._fields = {**defaults, **{name: value for name, value in raw.items() if value is not None}}

    def whole(self, name: str, most: int = MAX_WIDTH) -> int:
        value = self._fields[name]
        if isinstance(value, list) and len(set(value)) == 1:  # a square
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise ValueError(f"{name} is {value!r:.60}, expected a whole number up to {most}")
        return value

    def wholes(self, name: str) -> tuple[int, ...]:
        value = self._fields[name]
        if not isinstance(value, list) or not value or len(value) > MAX_BLOCKS:
            raise ValueError(f"{name} is {value!r:.60}, expected a list of whole numbers")
        return tuple(Fields({name: one}, {}).whole(name) for one in value)

    def number(self, name: str) -> float:
        value = self._fields[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MAX_WIDTH:
            raise ValueError(f"{name} is {value!r:.60}, expected a number")
        return float(value)

    def on(self, name: str) -> bool:
        value = self._fields[name]
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r:.60}, expected true or false")
        return value

    def act(self) -> str:
        value = "silu" if self._fields.get("use_swiglu_ffn") else self._fields["hidden_act"]
        if value not in ACTS:
            raise ValueError(f"hidden_act is {value!r:.60}, known are {', '.join(ACTS)}")
        return str(value)


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
    if not config.on("use_mean_pooling"):
        pooling: dict[str, Any] = {"global_pool": "token", "use_fc_norm": False}
    else:
        pooling = {"global_pool": "avg"}
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


def _videomae(config: Fields) -> dict[str, Any]:
    ratio = _ratio(config.whole("intermediate_size"), config.whole("hidden_size"))
    return {
        **_plain(config), "mlp_ratio": ratio, "qkv_bias": config.on("qkv_bias") and config.on("qv_bias"),
        "frames": config.whole("num_frames"), "tubelet": config.whole("tubelet_size"),
        "pool_eps": 1e-5 if config.on("use_mean_pooling") else config.number("layer_norm_eps"),
    }  # fmt: skip


_VIT = Kind("vit_base_patch16_224", _vit, _SIZES, {**SQUASH, **_HALVES})
_CLIP = Kind(
    "vit_base_patch16_clip_224", _vit,
    {**_SIZES, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    {**CENTER, "crop_pct": 1.0, **_OF_CLIP},
)  # fmt: skip
_SIGLIP = Kind(
    "vit_base_patch16_siglip_224", _siglip,
    {**_SIZES, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": True},
    {**SQUASH_BICUBIC, **_HALVES},
)  # fmt: skip
_BEIT = Kind(
    "beit_base_patch16_224", _beit,
    {**_SIZES, "use_mean_pooling": True, "layer_scale_init_value": 0.1, "use_absolute_position_embeddings": False,
     "use_relative_position_bias": False, "use_shared_relative_position_bias": False},
    {**SQUASH, **_HALVES}, antialias=None,
)  # fmt: skip
_DINOV2 = Kind(
    "vit_base_patch14_dinov2", _dinov2,
    {**_SIZES, "patch_size": 14, "layer_norm_eps": 1e-6, "mlp_ratio": 4, "layerscale_value": 1.0,
     "use_swiglu_ffn": False, "num_register_tokens": 4},
    {**CENTER, **_OF_IMAGENET},
)  # fmt: skip
_SWIN_DEFAULTS = {
    "image_size": 224, "patch_size": 4, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24],
    "window_size": 7, "mlp_ratio": 4.0, "qkv_bias": True, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
    "use_absolute_embeddings": False,
}  # fmt: skip
KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("vit", "vit_mae"), _VIT),
    "vit_msn": Kind(_VIT.architecture, _vit, {**_SIZES, "layer_norm_eps": 1e-6}, _VIT.seen),
    "ijepa": Kind("vit_huge_patch14_gap_224", _vit, {**_SIZES, "layer_norm_eps": 1e-6}, _VIT.seen),
    "deit": Kind("deit_base_distilled_patch16_224", _vit, _SIZES, {**CENTER, "crop_mode": "squash", **_OF_IMAGENET}),
    "dinov2": _DINOV2,
    "dinov2_with_registers": Kind(
        "vit_base_patch14_reg4_dinov2", _registers, _DINOV2.defaults, _DINOV2.seen, antialias=True
    ),
    **dict.fromkeys(("clip", "clip_vision_model"), _CLIP),
    **dict.fromkeys(("siglip", "siglip_vision_model"), _SIGLIP),
    **dict.fromkeys(("beit", "data2vec-vision"), _BEIT),
    "swin": Kind(
        "swin_tiny_patch4_window7_224", _swin, _SWIN_DEFAULTS, {**SQUASH_BICUBIC, **_OF_IMAGENET},
        usual_eps=("patch_embed.norm", "downsample.norm"), antialias=None,
    ),
    "videomae": Kind(
        "videomae_base_patch16_224", _videomae,
        {**_SIZES, "qv_bias": True, "num_frames": 16, "tubelet_size": 2, "use_mean_pooling": True},
        {**CENTER, "crop_pct": 1.0, "interpolation": "bilinear", **_OF_IMAGENET},
        usual_eps=("fc_norm",), antialias=None,
    ),
}  # fmt: skip
"""By ``model_type``."""
