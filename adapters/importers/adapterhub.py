"""Adapters that AdapterHub's `adapters` saved for Hugging Face's ViT: bottlenecks, Compacter and LoRA, with their head.

The folder holds no backbone. Nothing of the library is imported: it is called `adapters` too. It knows no command.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapters.backbone import Backbone
from adapters.backbone.processor import Processor
from adapters.config import MAX_RANK, Activation, SiteName
from adapters.errors import ImportRefused
from adapters.importers.bottleneck import BottleneckSettings, residual_of, site_of_flags
from adapters.importers.common import (
    MAX_SOURCE_BYTES,
    Imported,
    ImportTerms,
    Residual,
    check_head,
    check_labels,
    config_of,
    labels_by_number,
    load_plain,
    site_of,
)
from adapters.importers.families import FAMILIES, base_told, place, seen_by

CONFIG, HEAD_CONFIG = "adapter_config.json", "head_config.json"
FILES = ("adapter.safetensors", "pytorch_adapter.bin")
HEAD_FILES = ("model_head.safetensors", "pytorch_model_head.bin")
MAX_CONFIG_BYTES = 2**20
_VIT = next(family for family in FAMILIES if family.name == "ViT")
_KEY = re.compile(
    r"(?:vit\.)?encoder\.layer\.(\d{1,4})\.(?:(output\.output_adapters|attention_adapters)\.adapters|(.+?)\.loras)"
    r"\.([^.]+)\.(.+)"
)
"""Groups: block; where a bottleneck stands; or the layer that has LoRA; the adapter's name; the tensor's."""
_SHARED = re.compile(r"(?:vit\.)?shared_parameters\.([^.]+)\.(.+)")
_NOT_HERE = {
    "use_gating": "a gate", "ln_before": "a LayerNorm of its own", "ln_after": "a LayerNorm of its own",
    "inv_adapter": "an invertible adapter", "use_dora": "DoRA", "vera_d": "VeRA", "vera_b": "VeRA",
}  # fmt: skip


class HubLoraSettings(BaseModel):
    """What we read of LoRA's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    r: int = Field(8, ge=1, le=MAX_RANK)
    alpha: float = Field(8, allow_inf_nan=False)
    composition_mode: str = "add"


@dataclass(frozen=True)
class HubAdapter:
    """A folder taken apart: residuals by site and block with their scale in ``up``, and the head.

    ``labels`` are those of the head's config, None where it has none. ``act`` is that of all residuals.
    """

    name: str
    trained_on: str | None
    residuals: Mapping[SiteName, Mapping[int, Residual]]
    act: Activation
    head: tuple[Tensor, Tensor]
    labels: tuple[str, ...] | None
    multilabel: bool

    @property
    def classes(self) -> int:
        return self.head[0].shape[0]


def read_folder(folder: Path) -> HubAdapter:
    """Read what ``save_adapter(..., with_head=True)`` wrote. Raises ImportRefused, OSError."""
    told = _json(folder / CONFIG)
    config = told.get("config")
    if not isinstance(config, dict):
        raise ImportRefused(f"{CONFIG} has no 'config'; expected what AdapterHub's save_adapter writes", field="config")
    if told.get("model_type") not in ("vit", None):
        raise ImportRefused(f"it was trained on a model of type {str(told['model_type'])[:40]!r}; of AdapterHub's "
                            "models only ViT can be imported", field="model_type")  # fmt: skip
    for field, what in _NOT_HERE.items():
        if config.get(field):
            raise ImportRefused(f"it has {what} ({field}), which nothing here computes", field=field)
    if not (folder / HEAD_CONFIG).exists():
        raise ImportRefused(f"the folder has no {HEAD_CONFIG}, and without a head there are no classes to answer "
                            "with; save it again with save_adapter(FOLDER, NAME, with_head=True)",
                            field=HEAD_CONFIG)  # fmt: skip
    act, residuals = _residuals(config, _tensors(folder, FILES))
    head, labels, multilabel = _head(_json(folder / HEAD_CONFIG), _tensors(folder, HEAD_FILES))
    trained_on = told.get("model_name")
    return HubAdapter(
        folder.name, trained_on if isinstance(trained_on, str) else None, residuals, act, head, labels, multilabel
    )


def labels_of(source: HubAdapter) -> tuple[str, ...]:
    """Those that its head names. Raises ImportRefused where it names none, or others than it has classes."""
    if source.labels is None:
        raise ImportRefused(f"{HEAD_CONFIG} names no labels; give them with --labels FILE", field="label2id")
    check_labels(source.labels, source.classes, HEAD_CONFIG)
    return source.labels


def convert(
    source: HubAdapter, backbone: Backbone, terms: ImportTerms, *, processor: Processor | None = None
) -> Imported:
    """The adapter's config and tensors for ``backbone``. Raises ImportRefused."""
    sites, tensors = [], {"head.weight": source.head[0], "head.bias": source.head[1]}
    for name, residuals in sorted(source.residuals.items()):
        site, more = site_of(name, residuals, act=source.act, scale=1.0)
        sites.append(site)
        tensors |= more
    granted = [base_told(source.trained_on, backbone.layout.model)]
    seen, guess = seen_by(_VIT, processor, backbone)
    if guess:
        granted.append(guess)
    config = config_of(
        terms, backbone.layout, backbone.input.model_copy(update=seen), tuple(sites), pool="cls", norm="frozen",
        score="sigmoid" if source.multilabel else "softmax",
        training={"imported_from": "AdapterHub", "source": source.name, "trained_on": source.trained_on or "not told"},
    )  # fmt: skip
    return Imported(config, tensors, tuple(granted))


def _residuals(
    config: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[Activation, dict[SiteName, dict[int, Residual]]]:
    grouped: dict[tuple[str, int], dict[str, Tensor]] = defaultdict(dict)
    shared: dict[str, Tensor] = {}
    names = set()
    for key, tensor in state.items():
        if match := _KEY.fullmatch(key):
            where = match[2] or match[3]
            grouped[where, int(match[1])][match[5]] = tensor.float()
            names.add(match[4])
        elif match := _SHARED.fullmatch(key):
            shared[match[2]] = tensor.float()
            names.add(match[1])
        else:
            raise ImportRefused(f"tensor {key[:200]} is none of a bottleneck adapter or LoRA on ViT's layers",
                                tensor=key[:200])  # fmt: skip
    if len(names) != 1:
        raise ImportRefused(f"the file holds {len(names)} adapters; save the one that is to be imported by itself",
                            field="name")  # fmt: skip
    architecture = config.get("architecture")
    if architecture == "lora":
        return "none", _lora(_validated(HubLoraSettings, config), grouped)
    if architecture is not None:
        raise ImportRefused(f"its architecture is {str(architecture)[:40]!r}; bottleneck adapters and LoRA can be "
                            "imported, and no tokens, gates or unions of several", field="architecture")  # fmt: skip
    settings = _validated(BottleneckSettings, config)
    found: dict[SiteName, dict[int, Residual]] = defaultdict(dict)
    for (where, block), tensors in grouped.items():
        site = site_of_flags(settings, in_attention=where == "attention_adapters")
        found[site][block] = residual_of(f"block {block}, {where}", settings, tensors, shared)
    return settings.act, found


def _lora(
    settings: HubLoraSettings, grouped: Mapping[tuple[str, int], Mapping[str, Tensor]]
) -> dict[SiteName, dict[int, Residual]]:
    if settings.composition_mode != "add":
        raise ImportRefused(f"its composition_mode is '{settings.composition_mode[:40]}', as IA3's: it multiplies; "
                            "only 'add' can be imported", field="composition_mode")  # fmt: skip
    found: dict[SiteName, dict[int, Residual]] = defaultdict(dict)
    for (layer, block), tensors in grouped.items():
        at = place(f"vit.encoder.layer.{block}.{layer}")
        if at is None or tensors.keys() != {"lora_A", "lora_B"}:
            raise ImportRefused(f"LoRA on layer {layer[:80]} of block {block} with {', '.join(sorted(tensors))[:80]} "
                                "cannot be served", tensor=layer[:80])  # fmt: skip
        down, up = tensors["lora_A"], tensors["lora_B"] * (settings.alpha / settings.r)
        found[at[1]][block] = Residual(down, torch.zeros(down.shape[:1]), up, torch.zeros(up.shape[:1]))
    return found


def _head(
    told: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[tuple[Tensor, Tensor], tuple[str, ...] | None, bool]:
    """The linear head, its labels, and whether several may hold at once; a static head has no config of its own."""
    config = told.get("config") or {}
    if config.get("use_pooler"):
        raise ImportRefused("its head stands behind the pooler's tanh (use_pooler), which no head here has",
                            field="use_pooler")  # fmt: skip
    if config.get("head_type", "image_classification") != "image_classification" or config.get("layers", 1) != 1:
        raise ImportRefused(f"its head is {str(config.get('head_type'))[:40]} with {str(config.get('layers'))[:9]} "
                            "layers; only an image_classification head of one layer can be served",
                            field="layers")  # fmt: skip
    parts = {"weight": [n for n in state if n.endswith(".weight")], "bias": [n for n in state if n.endswith(".bias")]}
    if len(parts["weight"]) != 1 or len(parts["bias"]) > 1 or sum(map(len, parts.values())) != len(state):
        raise ImportRefused(f"the head's file holds {len(state)} tensors, expected one weight and its bias",
                            field=HEAD_FILES[0])  # fmt: skip
    weight = state[parts["weight"][0]].float()
    bias = state[parts["bias"][0]].float() if parts["bias"] else torch.zeros(weight.shape[:1])
    check_head(weight, bias)
    label2id = config.get("label2id") or told.get("label2id")
    labels = None
    if isinstance(label2id, dict) and label2id:
        try:
            labels = tuple(map(str, labels_by_number({number: label for label, number in label2id.items()})))
        except (TypeError, ValueError) as error:
            raise ImportRefused(f"label2id of {HEAD_CONFIG} is no numbering ({error})", field="label2id") from error
    return (weight, bias), labels, bool(config.get("multilabel"))


def _validated(kind: type[Any], config: Mapping[str, Any]) -> Any:
    try:
        return kind.model_validate(config)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ImportRefused(f"{CONFIG}, field '{where}': {first['msg']}", field=where) from error


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ImportRefused(f"{path.name} has more than {MAX_CONFIG_BYTES} bytes", limit=MAX_CONFIG_BYTES)
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ImportRefused(f"{path.name} is not JSON ({error})", field=path.name) from error
    if not isinstance(found, dict):
        raise ImportRefused(f"{path.name} is no JSON object", field=path.name)
    return found


def _tensors(folder: Path, names: tuple[str, str]) -> Mapping[str, Tensor]:
    """The safetensors form, or the pickle read as plain tensors alone."""
    safe, pickled = (folder / name for name in names)
    if not safe.exists() and pickled.exists():
        found = load_plain(pickled)
        if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
            raise ImportRefused(f"{pickled.name} holds more than named tensors", field=pickled.name)
        return {str(name): tensor for name, tensor in found.items()}
    if safe.stat().st_size > MAX_SOURCE_BYTES:
        raise ImportRefused(f"{safe.name} has more than {MAX_SOURCE_BYTES} bytes", limit=MAX_SOURCE_BYTES)
    try:
        return load_file(safe)
    except SafetensorError as error:
        raise ImportRefused(f"{safe.name} is not a whole safetensors file ({error})", field=safe.name) from error
