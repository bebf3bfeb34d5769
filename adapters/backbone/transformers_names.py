"""The names that Hugging Face's transformers gives the tensors of vision models -> timm's.

One table of layers' names serves weights here and adapters in the importers. It knows no files and builds no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapters.config import SiteName
from adapters.errors import BackboneError

LINEARS: Mapping[str, SiteName] = {
    # transformers 4, and in files: ViT, DeiT, BEiT, I-JEPA, DINOv2
    "attention.attention.query": "q", "attention.attention.key": "k", "attention.attention.value": "v",
    "attention.output.dense": "proj", "intermediate.dense": "fc1", "output.dense": "fc2",
    # Swin
    "attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v",
    # transformers 5
    "attention.q_proj": "q", "attention.k_proj": "k", "attention.v_proj": "v", "attention.o_proj": "proj",
    "mlp.fc1": "fc1", "mlp.fc2": "fc2",
    # CLIP and SigLIP
    "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.out_proj": "proj",
}  # fmt: skip
"""A block's Linears -> LoRA's sites."""
_OF_SITES: Mapping[SiteName, str] = {"proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_IN_BLOCK: Mapping[str, str] = {
    **{name: _OF_SITES[site] for name, site in LINEARS.items() if site in _OF_SITES},
    "layernorm_before": "norm1", "layernorm_after": "norm2", "norm1": "norm1", "norm2": "norm2",
    "layer_norm1": "norm1", "layer_norm2": "norm2",
    "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma",
    "attention.attention.q_bias": "attn.q_bias", "attention.attention.v_bias": "attn.v_bias",  # VideoMAE
    "lambda_1": "gamma_1", "lambda_2": "gamma_2",
    "mlp.weights_in": "mlp.fc1", "mlp.weights_out": "mlp.fc2", "mlp.down_proj": "mlp.fc2",  # DINOv2's SwiGLU
}  # fmt: skip
_PARTS: Mapping[str, str] = {
    **{name: site for name, site in LINEARS.items() if site in ("q", "k", "v")},
    "mlp.gate_proj": "gate", "mlp.up_proj": "up",  # DINOv2's SwiGLU in transformers 5
}  # fmt: skip
"""Linears that are parts of one of timm's."""
_IN_ATTENTION = re.compile(
    r"(?:attention(?:\.(?:attention|self))?\.)?(?:relative_position_bias\.)?"
    r"(relative_position_bias_table|relative_position_index|logit_scale|continuous_position_bias_mlp\.\d"
    r"|relative_coords_table)"
)
_OUTSIDE: Mapping[str, str] = {
    "embeddings.cls_token": "cls_token", "embeddings.class_embedding": "cls_token",
    "embeddings.distillation_token": "dist_token", "embeddings.register_tokens": "reg_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed", "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj", "embeddings.patch_embedding": "patch_embed.proj",
    "embeddings.norm": "patch_embed.norm", "pre_layrnorm": "norm_pre",
    "encoder.relative_position_bias.relative_position_bias_table": "rel_pos_bias.relative_position_bias_table",
    "encoder.relative_position_bias.relative_position_index": "rel_pos_bias.relative_position_index",
    "shared_position_bias.relative_position_bias_table": "rel_pos_bias.relative_position_bias_table",
    "layernorm": "norm", "post_layernorm": "norm", "pooler.layernorm": "fc_norm",
    # SigLIP's own pooling; its attention comes in one piece
    "head.probe": "attn_pool.latent", "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm", "head.mlp.fc1": "attn_pool.mlp.fc1", "head.mlp.fc2": "attn_pool.mlp.fc2",
}  # fmt: skip
_ASIDE = re.compile(
    r"(classifier|cls_classifier|distillation_classifier|lm_head|decoder|decode_head|auxiliary_head|pooler\.dense"
    r"|text_model|text_projection|visual_projection)\..+|logit_scale|logit_bias|(text_model\.)?embeddings\.position_ids"
)
"""No part of a backbone of pictures: classifiers, decoders, a text model and what compares with it."""
_OUTER_NORM = re.compile(r"layernorm\.(weight|bias)")
"""Beside a backbone with a prefix: of BEiT's masked training."""
_FIRST = re.compile(r"(?P<root>(?:\w+\.)*)embeddings\.(?:patch_embeddings\.projection|patch_embedding)\.weight")
_BLOCK = re.compile(r"(?:encoder\.)?layers?\.(\d{1,4})\.(?:blocks\.(\d{1,4})\.)?(.+)")
_WRAPPED = "timm_model."


class Renamed(NamedTuple):
    """``tensors`` by timm's names; what has none has its own. ``aside``: names of what is no part of a backbone."""

    tensors: dict[str, Any]
    aside: tuple[str, ...]


def timm_names(state: Mapping[str, Any]) -> Renamed | None:
    """The tensors of a file of transformers, told by their names, with or without the prefix of a class.

    Queries, keys and values become one tensor. None for any other file. Raises BackboneError where a block has one of
    them and lacks another.
    """
    if any(name.startswith(_WRAPPED) for name in state):
        return Renamed({name.removeprefix(_WRAPPED): value for name, value in state.items()}, ())
    found = [match for name in state if (match := _FIRST.fullmatch(name))]
    if len(found) != 1:
        return None
    root = found[0]["root"]
    tensors: dict[str, Any] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    aside = []
    for full, value in state.items():
        name = full.removeprefix(root)  # of ViT-MSN, transformers 5 saves the blocks without it
        if _ASIDE.fullmatch(name) or (root and _OUTER_NORM.fullmatch(full)):
            aside.append(full)
        elif (block := _BLOCK.fullmatch(name)) and (part := _part_of(block[3])):
            parts.setdefault(_place(block), {})[part] = value
        elif (here := _renamed(name) or full) in tensors:
            raise BackboneError(f"{full[:200]} comes twice, under two names", tensor=full[:200])
        else:
            tensors[here] = value
    for place, qkv in parts.items():
        tensors |= _joined(place, qkv)
    _reshape(tensors)
    return Renamed(tensors, tuple(aside))


def _place(block: re.Match[str]) -> str:
    return f"blocks.{block[1]}" if block[2] is None else f"layers.{block[1]}.blocks.{block[2]}"


def _part_of(name: str) -> str:
    """``q.weight`` and so on; empty for what is whole in timm too."""
    module, _, kind = name.rpartition(".")
    return f"{_PARTS[module]}.{kind}" if module in _PARTS and kind in ("weight", "bias") else ""


def _renamed(name: str) -> str:
    """timm's name of a tensor; empty where there is none."""
    block = _BLOCK.fullmatch(name)
    if block is None:
        return _looked_up(_OUTSIDE, name)
    if block[2] is None and block[3].startswith("downsample."):  # timm counts it to the stage that it comes before
        return f"layers.{int(block[1]) + 1}.{block[3]}"
    attention = _IN_ATTENTION.match(block[3])
    if attention:
        inside = f"{attention[1]}{block[3][attention.end() :]}".replace("continuous_position_bias_mlp", "cpb_mlp")
        return f"{_place(block)}.attn.{inside}"
    inner = _looked_up(_IN_BLOCK, block[3])
    return f"{_place(block)}.{inner}" if inner else ""


def _looked_up(names: Mapping[str, str], name: str) -> str:
    """Of a tensor of that name, or of the weight or bias of a module of that name."""
    module, _, kind = name.rpartition(".")
    if kind in ("weight", "bias") and module in names:
        return names[module] if names[module] == "pos_embed" else f"{names[module]}.{kind}"
    return names.get(name, "")


def _joined(place: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What timm has in one tensor of a block: queries, keys and values, and a gate beside what it lets through.

    Biases are apart where keys have none (BEiT).
    """
    joined: dict[str, Tensor] = {}
    for whole, names in (("attn.qkv", ("q", "k", "v")), ("mlp.fc1", ("gate", "up"))):
        for kind in ("weight", "bias"):
            here = {name: parts[f"{name}.{kind}"] for name in names if f"{name}.{kind}" in parts}
            if kind == "bias" and here.keys() == {"q", "v"}:
                joined |= {f"{place}.attn.q_bias": here["q"], f"{place}.attn.v_bias": here["v"]}
            elif len(here) == len(names) and len({part.shape[1:] for part in here.values()}) == 1:
                joined[f"{place}.{whole}.{kind}"] = torch.cat([here[name] for name in names])
            elif here:
                raise BackboneError(f"{place} has the {kind} of {', '.join(here)}, and needs those of "
                                    f"{', '.join(names)} of one width", tensor=place)  # fmt: skip
    return joined


def _reshape(tensors: dict[str, Any]) -> None:
    """Tokens and positions as timm has them (1, count, width); SigLIP's pooling in timm's two pieces."""
    if (token := tensors.get("cls_token")) is not None and token.ndim == 1:
        tensors["cls_token"] = token[None, None]
    if (positions := tensors.get("pos_embed")) is not None and positions.ndim == 2:
        tensors["pos_embed"] = positions[None]
    if "reg_token" in tensors and {"cls_token", "pos_embed"} <= tensors.keys():
        positions = tensors["pos_embed"]  # timm adds the class token's own to it, for good
        tensors["cls_token"] = tensors["cls_token"].float() + positions[:, :1].float()
        tensors["pos_embed"] = positions[:, 1:].contiguous()
    for kind, joint in (("weight", "head.attention.in_proj_weight"), ("bias", "head.attention.in_proj_bias")):
        for name in [n for n in tensors if n.endswith(joint)]:
            whole = tensors.pop(name)
            third = len(whole) // 3
            tensors[f"attn_pool.q.{kind}"] = whole[:third].contiguous()
            tensors[f"attn_pool.kv.{kind}"] = whole[third:].contiguous()
