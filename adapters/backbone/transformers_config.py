"""A folder that Hugging Face's transformers saved -> timm's architecture that computes the same, and its preprocessing.

It reads config.json and preprocessor_config.json; it knows no tensors.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from adapters.backbone.processor import find_processor, read_processor
from adapters.backbone.transformers_kinds import ACTS, KINDS, Fields, Kind
from adapters.config import Size
from adapters.errors import BackboneError, ImportRefused

log = logging.getLogger(__name__)

CONFIG = "config.json"
MAX_CONFIG_BYTES = 32 * 2**20
"""One with the labels of ImageNet-21k has 2 MB."""
WRAPPER = "timm_wrapper"
_PARTS = {"clip": "vision_config", "siglip": "vision_config"}
"""Types of models that have one of pictures as a part."""


@dataclass(frozen=True)
class Manner:
    """How a model computes where timm's with the same tensors may compute otherwise: with which epsilon in its layer
    norms, but in those of ``usual_eps``, and with which activation in its MLPs. None: as it is."""

    eps: float | None = None
    act: str | None = None
    usual_eps: Sequence[str] = ()

    def give(self, model: nn.Module) -> None:
        """Make a timm model compute so."""
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.LayerNorm) and self.eps is not None and not name.endswith(tuple(self.usual_eps)):
                module.eps = self.eps
            if self.act is not None and isinstance(getattr(module, "act", None), nn.Module):
                module.act = ACTS[self.act]()


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


def _kind_of(raw: Mapping[str, Any], name: str) -> tuple[Kind, Fields]:
    found = str(raw["model_type"])
    if found not in KINDS:
        raise BackboneError(
            f"{name} is a '{found[:40]}' of transformers, and only {', '.join(KINDS)} and {WRAPPER} are known; give "
            "timm's name of the architecture, and the weights with --weights", model=name, got=found[:40],
            expected=[*KINDS, WRAPPER],
        )  # fmt: skip
    part = raw.get(_PARTS[found]) or {} if found in _PARTS else raw
    if not isinstance(part, dict):
        raise BackboneError(f"{name}: its {_PARTS[found]} is no object", model=name)
    return KINDS[found], Fields(part, KINDS[found].defaults)


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
