"""The classifier of a model that Hugging Face's transformers saved -> a task of a head alone, on the model's backbone.

It knows no adapters; what a model of transformers is, ``adapters.backbone`` says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from adapters.backbone import Backbone
from adapters.backbone.processor import Processor
from adapters.backbone.reading import read_as_named
from adapters.backbone.source import file_in
from adapters.backbone.transformers_config import read_config
from adapters.errors import ImportRefused
from adapters.importers.common import Imported, ImportTerms, check_head, config_of
from adapters.importers.families import FAMILIES, SIGLIP, Family, base_told, clips_for, seen_by

_CLASSIFIER = re.compile(r"(?:classifier|(?:timm_model\.)?head(?:\.fc)?)\.(weight|bias)")


@dataclass(frozen=True)
class Classifier:
    """A head (classes, width) and (classes,), and what its folder says of the model before it."""

    name: str
    trained_on: str | None
    family: Family
    head: tuple[Tensor, Tensor]
    score: Literal["softmax", "sigmoid"]

    @property
    def classes(self) -> int:
        return self.head[0].shape[0]


def read_folder(folder: Path) -> Classifier:
    """Read what ``save_pretrained`` of a model for image classification wrote. Raises ImportRefused, BackboneError."""
    config = read_config(folder)
    if not config:
        raise ImportRefused(f"{folder} has a config.json without 'model_type'; expected what save_pretrained of "
                            "transformers writes", field="model_type")  # fmt: skip
    found = config["model_type"]
    family = next((one for one in (*FAMILIES, SIGLIP) if found in one.types), None)
    if family is None:
        known = ", ".join(kind for one in (*FAMILIES, SIGLIP) for kind in one.types)
        raise ImportRefused(f"its model is a '{found[:40]}', and classifiers are known of {known}", field="model_type",
                            got=found[:40])  # fmt: skip
    state = read_as_named(file_in(folder, folder.name))
    heads = {match[1]: tensor for name, tensor in state.items() if (match := _CLASSIFIER.fullmatch(name))}
    if heads.keys() != {"weight", "bias"}:
        why = "two that are averaged" if "cls_classifier.weight" in state else "none with weight and bias"
        raise ImportRefused(f"{folder.name} must hold one classifier, and has {why}; a model without one is a backbone "
                            "alone, for --backbone and --base", field="classifier")  # fmt: skip
    check_head(heads["weight"], heads["bias"])
    if found == "videomae" and config.get("use_mean_pooling") is False:
        raise ImportRefused("its classifier sees the first of a clip's tokens alone (use_mean_pooling is false), and "
                            "only the mean of all can be served", field="use_mean_pooling")  # fmt: skip
    several = config.get("problem_type") == "multi_label_classification"
    told = config.get("_name_or_path")
    return Classifier(
        folder.name, told if isinstance(told, str) and told else None, family, (heads["weight"], heads["bias"]),
        "sigmoid" if several else "softmax",
    )  # fmt: skip


def convert(
    source: Classifier, backbone: Backbone, terms: ImportTerms, *, processor: Processor | None = None, own: bool = True
) -> Imported:
    """The task's config and tensors. Raises ImportRefused.

    ``own``: the backbone was read from the same folder. ``processor``: what the training's pictures went through;
    without one it is what the family's published ones do, with the base's mean and std.
    """
    family = source.family
    seen, guess = seen_by(family, processor, backbone)
    video, clips = clips_for(backbone.layout)
    granted = [*([guess] if guess else []), *clips]
    if not own:
        granted.append(base_told(source.trained_on or source.name, backbone.layout.model))
    told: Mapping[str, object] = {"imported_from": "transformers, a classifier", "source": source.name}
    config = config_of(
        terms, backbone.layout, backbone.input.model_copy(update=dict(seen)), (), pool=family.pool, norm=family.norm,
        training=told, score=source.score, video=video,
    )  # fmt: skip
    return Imported(config, {"head.weight": source.head[0], "head.bias": source.head[1]}, tuple(granted))
