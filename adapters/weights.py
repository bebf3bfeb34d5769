"""Build a timm model with the weights asked for, and refuse weights that fill only part of it.

It knows timm's names, folders and checkpoint filters; it knows nothing of sites or adapters.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import nn

from adapters.config import InputConfig
from adapters.errors import BackboneError
from adapters.media import input_config

DEMO_BACKBONE = Path(__file__).parent / "demo" / "backbone"


def build_model(name: str, weights: str) -> tuple[nn.Module, str, InputConfig]:
    """The model without classifier, the name it goes by, and its preprocessing. See ``load_backbone``."""
    source, label = _resolve(name)
    seed = re.fullmatch(r"random:(\d{1,9})", weights)
    if seed:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed[1]))
            model = _create(name, source, pretrained=False)
        label = f"{label}+random:{seed[1]}"
    elif weights.startswith("random"):
        raise BackboneError(f"weights '{weights}' must be random:SEED with a whole number", weights=weights)
    elif weights:
        model = _create(name, source, pretrained=False)
        _fill(model, Path(weights))
    else:
        model = _create(name, source, pretrained=True)
    return model, label, input_config(model)


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the classifier's tensors, such as ``head.``; empty strings never."""
    names: Any = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{n}." for n in ([names] if isinstance(names, str) else names))


def _resolve(name: str) -> tuple[str, str]:
    folder = DEMO_BACKBONE if name == "demo" else Path(name)
    if name == "demo" or (folder / "config.json").is_file():
        return f"local-dir:{folder}", name if name == "demo" else folder.name
    if not timm.is_model(name.split(".")[0]):
        close = timm.list_models(f"*{name.split('.')[0][:12]}*")[:5]
        hint = f"; close: {', '.join(close)}" if close else "; see timm.list_models()"
        raise BackboneError(f"'{name}' is neither a timm model nor a folder with a config.json{hint}", model=name)
    return name, name


def _create(name: str, source: str, *, pretrained: bool) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(source, pretrained=pretrained, num_classes=0)
    except Exception as error:  # timm and its hub client raise many kinds; each means: no such weights here
        raise BackboneError(
            f"{name} could not be loaded ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
            "give a local file with --weights, or use the shipped demo",
            model=name,
        ) from error
    return model


def _fill(model: nn.Module, path: Path) -> None:
    """Load a local checkpoint through timm's own filter; every tensor of the backbone must be in it."""
    if not path.is_file():
        raise BackboneError(f"weights file '{path}' does not exist", weights=str(path))
    try:
        state = load_state_dict(str(path), use_ema=True, weights_only=True)
        module = importlib.import_module(type(model).__module__)
        keep = getattr(module, "checkpoint_filter_fn", None)
        if keep is not None:
            state = keep(state, model)
        missing, _ = model.load_state_dict(state, strict=False)
    except Exception as error:
        raise BackboneError(
            f"weights file '{path.name}' cannot be read as a checkpoint of this model "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
            weights=str(path),
        ) from error
    skip = classifier_names(model)
    lacking = [m for m in missing if not (skip and m.startswith(skip))]
    if lacking:
        raise BackboneError(
            f"weights file '{path.name}' lacks {len(lacking)} tensors of the model, such as {lacking[0]}; "
            "it belongs to another architecture",
            weights=str(path), tensor=lacking[0],
        )  # fmt: skip
