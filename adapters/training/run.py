"""From labelled files to an adapter file: list, decode, split, fit, score as served, write, report.

It knows the order of the steps and what to tell of them; each step is another module's. It knows no command line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import isnan
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors import SafetensorError

from adapters.backbone import Backbone
from adapters.config import AdapterConfig
from adapters.errors import TrainingError
from adapters.file import Adapter, write_adapter
from adapters.media import MediaLimits
from adapters.training.baselines import NO_FILE, PromptedModel, check_method, model_of
from adapters.training.checkpoint import Checkpoint, CheckpointFile, FitResult
from adapters.training.data import BadFile, Listing, check_classes, find_examples, reason_of, split
from adapters.training.decoding import CACHE_BYTES, MediaExamples, Reader, Scanned, scan
from adapters.training.fit import FitConfig, fit, parameters_of, predict
from adapters.training.model import AdaptedModel, HeadedModel
from adapters.training.recipe import Recipe, config_of
from adapters.training.report import write_report
from adapters.training.score import accuracy, scored, served_logits

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Plan:
    """What to train, from what, into which file. ``held_out`` is the share of a seeded split."""

    data: Path
    out: Path
    recipe: Recipe
    fit: FitConfig
    held_out: float = 0.2
    cache_bytes: int = CACHE_BYTES
    limits: MediaLimits = field(default_factory=MediaLimits)
    report: bool = True
    resume: bool = False

    @property
    def checkpoint(self) -> Path:
        """Where an interrupted training waits."""
        return self._beside("resume")

    @property
    def report_folder(self) -> Path:
        return self._beside("report")

    def _beside(self, suffix: str) -> Path:
        """A baseline's name carries its method, so that it lies next to the adapter it is compared with."""
        method = self.recipe.method
        return self.out.with_name(
            f"{self.out.name}.{method}.{suffix}" if method in NO_FILE else f"{self.out.name}.{suffix}"
        )


@dataclass(frozen=True)
class Trained:
    """What came of it. ``resumed_epochs`` were already done when this run began; a baseline has no ``digest``."""

    digest: str
    config: AdapterConfig
    accuracy: float
    bad: tuple[BadFile, ...]
    resumed_epochs: int
    report: Path | None


def train(plan: Plan, backbone: Backbone, bar: Progress, warn: Callable[[str], None]) -> Trained:
    """Train one adapter and write it whole or not at all; a baseline (``NO_FILE``) leaves its report alone.

    Raises an AdaptError with the reason. An interruption leaves ``plan.checkpoint``, from which the same plan with
    ``resume`` goes on.
    """
    if plan.out.suffix != SUFFIX:
        raise TrainingError(f"the file to write must end with {SUFFIX}, got '{plan.out.name}'", field="out")
    if plan.checkpoint.exists() and not plan.resume:
        raise TrainingError(
            f"{plan.checkpoint} holds an interrupted training; resume it (--resume) or delete it", field="resume"
        )
    check_method(plan.recipe, backbone)
    listing = find_examples(plan.data)
    config = config_of(plan.recipe, backbone, listing.modality, listing.labels)
    scanned, data = _data(plan, listing, config, bar)
    bad = (*listing.bad, *scanned.bad)
    model, result, resumed = _fit(plan, backbone, config, listing, data, bar, warn)
    adapter = Adapter(model.exported_config(), model.tensors(), "") if isinstance(model, AdaptedModel) else None
    settings = _settings(plan, data[1])
    if adapter:
        config, logits = adapter.config, served_logits(adapter, backbone, data[1], settings.workers)
    else:
        logits, _ = predict(model, data[1], settings)
    examples = scored(logits, config.labels, data[1])
    account = _account(plan, model, result, data, len(bad)) | {"held_out_accuracy": round(accuracy(examples), 4)}
    history = [{k: round(v, 5) for k, v in line.items()} for line in result.history]
    config = config.model_copy(update={"training": account | {"history": history}})
    digest = _write(plan, Adapter(config, adapter.tensors, "")) if adapter else ""
    report = plan.report_folder if plan.report else None
    if report:
        try:
            write_report(report, config, digest, examples, data[1], bad)
        except OSError as error:
            if not adapter:
                raise _unwritable(report, error) from error
            warn(f"the adapter is written, its report is not: {report}: {reason_of(error)}")
            report = None
    plan.checkpoint.unlink(missing_ok=True)
    return Trained(digest, config, accuracy(examples), bad, resumed, report)


def _data(
    plan: Plan, listing: Listing, config: AdapterConfig, bar: Progress
) -> tuple[Scanned, tuple[MediaExamples, MediaExamples]]:
    """Training and held-out examples, and what was found when every file was decoded."""
    reader = Reader(config, plan.limits)
    line = bar.add_task("reading files", total=len(listing.examples))
    scanned = scan(
        listing.examples, reader, threads=os.cpu_count() or 1, cache_bytes=plan.cache_bytes,
        on_file=lambda: bar.advance(line),
    )  # fmt: skip
    check_classes(listing, scanned.examples)
    classes = {label: i for i, label in enumerate(config.labels)}
    train, held_out = (
        MediaExamples(scanned, chosen, classes, reader)
        for chosen in split(scanned.examples, plan.held_out, plan.fit.seed)
    )
    return scanned, (train, held_out)


def _fit(
    plan: Plan,
    backbone: Backbone,
    config: AdapterConfig,
    listing: Listing,
    data: tuple[MediaExamples, MediaExamples],
    bar: Progress,
    warn: Callable[[str], None],
) -> tuple[HeadedModel, FitResult, int]:
    """The fitted model, its history, and how many epochs of it came from an interrupted run."""
    settings = _settings(plan, data[0])
    checkpoints = CheckpointFile(plan.checkpoint, _identity(plan, listing, config))
    start = checkpoints.load() if plan.resume and plan.checkpoint.exists() else None
    torch.manual_seed(settings.seed)
    model = model_of(plan.recipe, backbone, config, settings.dropout)
    line = bar.add_task("training", total=1.0)

    def keep(checkpoint: Checkpoint) -> None:
        epoch = len(checkpoint.result.history)
        try:
            plan.out.parent.mkdir(parents=True, exist_ok=True)
            checkpoints.save(checkpoint)
        except (OSError, RuntimeError) as error:
            if epoch == 0:
                raise _unwritable(plan.checkpoint, error) from error
            warn(f"epoch {epoch} cannot be resumed from: {plan.checkpoint}: {reason_of(error).splitlines()[0]}")

    def step(done: float, loss: float) -> None:
        bar.update(line, completed=done, description="frozen features" if isnan(loss) else f"training, loss {loss:.3f}")

    result = fit(model, *data, settings, start=start, on_epoch=keep, on_step=step)
    bar.update(line, completed=1.0)
    return model, result, len(start.result.history) if start else 0


def _settings(plan: Plan, data: MediaExamples) -> FitConfig:
    """Workers would only copy what is in memory already."""
    return dataclasses.replace(plan.fit, workers=0) if data.in_memory else plan.fit


def _write(plan: Plan, adapter: Adapter) -> str:
    try:
        return write_adapter(plan.out, adapter.config, adapter.tensors)
    except (OSError, SafetensorError) as error:
        raise _unwritable(plan.out, error) from error


def _unwritable(path: Path, error: Exception) -> TrainingError:
    reason = reason_of(error).splitlines()[0]
    return TrainingError(
        f"{path} could not be written ({reason}), and nothing was left there; make room or choose another place, "
        "then run the same again, with --resume if epochs were done", field="out", got=str(path),
    )  # fmt: skip


def _identity(plan: Plan, listing: Listing, config: AdapterConfig) -> str:
    """All that the tensors depend on, as one digest; a resumed training must agree with it."""
    options = dataclasses.asdict(plan.fit) | {"held_out": plan.held_out, "prompts": plan.recipe.prompts}
    options.pop("workers")
    text = json.dumps([listing.digest, config.model_dump(mode="json"), options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _account(
    plan: Plan, model: HeadedModel, result: FitResult, data: tuple[MediaExamples, MediaExamples], bad: int
) -> dict[str, Any]:
    """What the file tells of its training; measured, and without any path of this machine."""
    count, share = parameters_of(model)
    given = any(e.held_out is not None for e in data[1].examples)
    return {
        "method": plan.recipe.method,
        "data": plan.data.resolve().name,
        "train_examples": len(data[0]),
        "held_out_examples": len(data[1]),
        "split": "given with the data" if given else f"seeded, {plan.held_out:.0%} of each class held out",
        "bad_files": bad,
        **({"prompts_per_block": model.prompts.shape[1]} if isinstance(model, PromptedModel) else {}),
        "best_epoch": result.epoch,
        "epochs_run": len(result.history),
        "parameters": count,
        "share_of_backbone": round(share, 5),
        "backbone_parameters": model.backbone.layout.parameters,
        "seconds": round(result.seconds, 1),
        "device": str(model.backbone.device),
        "dtype": str(model.backbone.dtype).removeprefix("torch."),
        "peak_memory_bytes": peak_memory(model.backbone.device),
        "recipe": dataclasses.asdict(plan.fit),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "tool": f"adaptserve {_version()}",
    }


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch held on CUDA, or the largest that this process ever was; 0 where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _version() -> str:
    try:
        return version("adaptserve")
    except PackageNotFoundError:
        return "from source"
