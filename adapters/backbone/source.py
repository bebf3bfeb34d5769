"""What timm is asked for: a model by its name, or the one that a folder of timm or transformers describes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import timm
from torch import nn

from adapters.backbone.manner import Manner
from adapters.backbone.transformers_config import Described, described
from adapters.config import Size


class Source(NamedTuple):
    """What timm is asked for: its ``name`` of a model, or of a ``folder``, in which the weights are.

    ``told``: what the folder says of its model where that is not timm's own, and ``manner`` how it computes.
    """

    name: str
    folder: Path | None = None
    told: Described | None = None
    manner: Manner | None = None

    def create(self, size: Size | None, *, pretrained: bool) -> nn.Module:
        """Raises whatever timm raises."""
        args: dict[str, Any] = {"img_size": size} if size else {}
        if self.told:
            args = {**self.told.args, **args, "pretrained_cfg_overlay": dict(self.told.seen)}
        model: nn.Module = timm.create_model(self.name, pretrained=pretrained, num_classes=0, **args)
        if self.manner:
            self.manner.give(model)
        return model


def hint(name: str) -> str:
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        return f"; on the Hugging Face hub it would be hf-hub:{name}"
    close = timm.list_models(f"*{name.split('.')[0][:12]}*")[:5]
    return f"; close: {', '.join(close)}" if close else "; see timm.list_models()"


def in_folder(folder: Path, label: str) -> tuple[Source, str]:
    told = described(folder, label)
    if told is None:
        return Source(f"local-dir:{folder}", folder), label
    return Source(told.architecture, folder, told, told.manner), label
