"""Train the demo's adapters on the demo backbone, and score the shipped files through the serving path."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from adapters.backbone import Backbone
from adapters.config import AdapterConfig, BaseModelConfig, SiteConfig, VideoConfig
from adapters.file import Adapter, read_adapter, write_adapter
from adapters.limits import FileLimits
from adapters.training.account import tool
from adapters.training.checkpoint import FitResult
from adapters.training.demo.tasks import DemoTask
from adapters.training.fit import accuracy_of, fit, parameters_of
from adapters.training.model import AdaptedModel
from adapters.training.progress import Teller
from adapters.training.score import served_logits
from adapters.training.start import frozen


def config_for(task: DemoTask, backbone: Backbone, *, temporal: bool) -> AdapterConfig:
    """AdaptFormer in every block at about 1.4 % of the backbone, over the mean of the tokens."""
    layout = backbone.layout
    site = SiteConfig(
        site="parallel",
        blocks=tuple(range(layout.blocks)),
        rank=layout.default_rank(),
        scale=task.scale,
        temporal=temporal,
    )
    return AdapterConfig(
        task=task.name,
        modality="video" if task.frames > 1 else "image",
        labels=task.labels,
        score=task.score,
        base=BaseModelConfig(model=layout.model, fingerprint=layout.fingerprint),
        sites=(site,),
        pool="avg",
        input=backbone.input,
        video=VideoConfig(frames=task.frames) if task.frames > 1 else None,
    )


def train_task(task: DemoTask, backbone: Backbone, teller: Teller, *, temporal: bool) -> tuple[AdaptedModel, FitResult]:
    """Fit one adapter; the same seed gives the same weights."""
    torch.manual_seed(task.fit.seed)
    config, (train, held_out) = config_for(task, backbone, temporal=temporal), task.data()
    vectors = frozen(backbone, config, (config.pool,), TensorDataset(*train))
    model = AdaptedModel(backbone, config)
    model.start(vectors.seen(config))
    result = fit(
        model, TensorDataset(*train), TensorDataset(*held_out), task.fit, augment=task.augment,
        on_step=lambda done, loss: teller.at(task.name, done, f"loss {loss:.3f}"),
    )  # fmt: skip
    return model, result


def write_task(task: DemoTask, model: AdaptedModel, result: FitResult, path: Path, notes: dict[str, object]) -> None:
    """The adapter file, with an honest account of its training inside."""
    count, share = parameters_of(model)
    train, held_out = task.data()
    training = {
        "about": task.about,
        "train_examples": len(train[0]),
        "held_out_examples": len(held_out[0]),
        "held_out_accuracy": round(result.accuracy, 4),
        "best_epoch": result.epoch,
        "parameters": count,
        "share_of_backbone": round(share, 5),
        "seconds": round(result.seconds),
        "recipe": dataclasses.asdict(task.fit),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "tool": tool(),
        **notes,
    }
    config = model.exported_config().model_copy(update={"training": training})
    write_adapter(path, config, model.tensors())


def score_file(path: Path, task: DemoTask, backbone: Backbone) -> tuple[Adapter, float]:
    """Held-out accuracy of a shipped file, computed as the server computes it."""
    adapter = read_adapter(path, backbone.layout, FileLimits())
    held_out = task.data()[1]
    return adapter, accuracy_of(served_logits(adapter, backbone, TensorDataset(*held_out)), held_out[1])


def without_looking(labels: Tensor) -> float:
    """Accuracy of always giving the most frequent answer; for many labels, to each of the yes-or-no questions."""
    if labels.is_floating_point():
        yes = (labels > 0.5).float().mean(0)
        return torch.maximum(yes, 1 - yes).mean().item()
    return labels.bincount().max().item() / len(labels)
