"""From labelled files to an adapter file: list, decode, split, fit, score as served, write, report.

It knows the order of the steps and what to tell of them; each step is another module's. It knows no command line.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from adapters.backbone import Backbone
from adapters.config import AdapterConfig
from adapters.errors import AdapterTooLarge, TrainingError
from adapters.file import Adapter, write_adapter
from adapters.header import refusals
from adapters.limits import foreseen, needed
from adapters.training.account import account_of, tool, verdict
from adapters.training.baselines import NO_FILE, check_method
from adapters.training.calibration import abstention, bins_of, fit_temperature, told_of
from adapters.training.computing import Computing, Here
from adapters.training.data import NOUNS, BadFile, DataListing, check_classes, find_examples, reason_of, split
from adapters.training.decoding import MediaExamples, Reader, Scanned, all_views, scan
from adapters.training.fit import predict
from adapters.training.model import AdaptedModel
from adapters.training.plan import TrainingPlan, unwritable
from adapters.training.progress import Teller
from adapters.training.recipe import config_of
from adapters.training.report import write_report
from adapters.training.score import Recalls, Scored, accuracy, scored, sureness
from adapters.training.tune import Tuned, tune

SUFFIX = ".safetensors"
FEW = 2
"""Held-out files of a class by which little can be said of it."""
SHOWN = 5
MAX_HISTORY = 200
"""Epochs that the file itself tells of; the report has all."""


@dataclass(frozen=True)
class Trained:
    """What came of it; a baseline has no ``digest``."""

    digest: str
    config: AdapterConfig
    accuracy: float
    recalls: Recalls
    bad: tuple[BadFile, ...]
    tuned: Tuned
    report: Path | None


def train(
    plan: TrainingPlan, backbone: Backbone, teller: Teller, *, listing: DataListing | None = None,
    computing: Computing | None = None,
) -> Trained:  # fmt: skip
    """Train one adapter and write it whole or not at all; a baseline (``NO_FILE``) leaves its report alone.

    ``listing``: what ``plan.data`` holds, where that is known. ``computing``: who computes what is not trained, if not
    the backbone; a linear head then asks nothing of it but what it is. Raises an AdaptError with the reason. An
    interruption leaves ``plan.checkpoint``, from which the same plan with ``resume`` goes on.
    """
    if plan.out.suffix != SUFFIX:
        raise TrainingError(f"the file to write must end with {SUFFIX}, got '{plan.out.name}'", field="out")
    if plan.checkpoint.exists() and not plan.resume:
        raise TrainingError(
            f"{plan.checkpoint} holds an interrupted training; resume it (--resume) or delete it", field="resume"
        )
    check_method(plan.recipe, backbone)
    listing = listing or find_examples(plan.data, plan.part)
    computing = computing or Here(backbone)
    config = config_of(plan.recipe, backbone, listing.modality, listing.labels)
    refused = _refused(plan, config, backbone)
    for refusal in refused:
        teller.warn(foreseen(refusal))
    scanned, data, served = read_data(plan, listing, config, teller)
    bad = (*listing.bad, *scanned.bad)
    tuned = tune(plan, backbone, config, listing, data, teller, computing)
    model, settings = tuned.model, plan.settings(served)
    adapter = Adapter(model.exported_config(), model.tensors(), "") if isinstance(model, AdaptedModel) else None
    scoring = partial(teller.at, "scoring")
    config, refused = model.config, _refused(plan, model.config, backbone)
    if adapter:
        config, logits = adapter.config, computing.logits(adapter, served, settings.workers, scoring)
    else:
        batch = max(1, tuned.fit.batch // config.views)
        logits, _ = predict(model, served, dataclasses.replace(settings, batch=batch), scoring)
    config, examples, calibration = _calibrated(config, logits, served, plan, teller)
    given, recalls = data[1].examples[0].part, Recalls.of((e.label, e.predicted) for e in examples)
    account = {
        "method": "linear" if tuned.kept_linear else plan.recipe.method,
        **({"tried": plan.recipe.method} if tuned.kept_linear else {}),
        "data": plan.data.resolve().name,
        "split": f"given, {given} held out" if given else f"seeded, {plan.held_out:.0%} of each class held out",
        "bad_files": len(bad),
        **account_of(model, tuned.result, *data),
        "held_out_accuracy": round(accuracy(examples), 4),
        "held_out_balanced_accuracy": round(recalls.balanced_accuracy, 4),
        "linear_accuracy": round(tuned.linear["accuracy"], 4),
        "calibration": calibration.pop("told"),
        "verdict": verdict(tuned, plan.recipe.method, accuracy(examples)),
        **({"needs": [needed(refusal) for refusal in refused]} if refused else {}),
        "recipe": asdict(tuned.fit),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "tool": tool(),
    }
    result = tuned.result
    history = [{k: round(v, 5) for k, v in line.items()} for line in result.history]
    told = config.model_copy(update={"training": account | {"history": history} | calibration})
    step = max(1, -(-len(history) // MAX_HISTORY))
    kept = history[::-step][::-1]  # the last one among them
    config = config.model_copy(update={"training": account | {"history": kept}})
    digest = _write(plan, Adapter(config, adapter.tensors, "")) if adapter else ""
    report = plan.report_folder if plan.report else None
    if report:
        try:
            write_report(report, told, digest, examples, data, bad)
        except OSError as error:
            if not adapter:
                raise unwritable(report, error) from error
            teller.warn(f"the adapter is written, its report is not: {report}: {reason_of(error)}")
            report = None
    plan.checkpoint.unlink(missing_ok=True)
    return Trained(digest, config, accuracy(examples), recalls, bad, tuned, report)


def _calibrated(
    config: AdapterConfig, logits: Tensor, served: MediaExamples, plan: TrainingPlan, teller: Teller
) -> tuple[AdapterConfig, list[Scored], dict[str, Any]]:
    """The config with its temperature and its threshold, if one is asked, and what was held out, scored with them.

    Also what is ``told`` of it, and the ``reliability`` before and after.
    """
    classes = {label: number for number, label in enumerate(config.labels)}
    truth = torch.tensor([classes[example.label] for example in served.examples])
    logits = logits.reshape(len(served.examples), -1, len(config.labels))
    found = fit_temperature(logits, truth, plan.fit.seed)
    before, given = scored(logits, config, served), None
    config = config.model_copy(update={"temperature": found.value})
    after = before if found.value == 1.0 else scored(logits, config, served)
    confidence, right = sureness(after)
    if plan.abstain_accuracy is not None:
        given = abstention(confidence, right, plan.abstain_accuracy)
        if given is None:
            teller.warn(
                f"not even the surest answers reach {plan.abstain_accuracy:.2%}: no abstain threshold is written"
            )
        else:
            config = config.model_copy(update={"abstain": given.threshold})
    bins = bins_of(*sureness(before)), bins_of(confidence, right)
    reliability = {name: [asdict(one) for one in part] for name, part in zip(("before", "after"), bins, strict=True)}
    return config, after, {"told": told_of(found, *bins, given), "reliability": reliability}


def _refused(plan: TrainingPlan, config: AdapterConfig, backbone: Backbone) -> list[AdapterTooLarge]:
    """Why the server that the file is meant for would not take it."""
    if plan.recipe.method in NO_FILE:
        return []
    rank = backbone.layout.slot_rank(plan.served.max_rank)
    return refusals(config, backbone.layout, dataclasses.replace(plan.served, max_rank=rank))


def read_data(
    plan: TrainingPlan, listing: DataListing, config: AdapterConfig, teller: Teller
) -> tuple[Scanned, tuple[MediaExamples, MediaExamples], MediaExamples]:
    """What was found when every file was decoded; training and held-out examples; and the latter as they are served.

    Training sees one view of a clip, the server all of them.
    """
    for note in listing.notes:
        teller.note(note)
    seed, count = plan.fit.seed, len(listing.examples)
    split(listing.examples, plan.held_out, seed)  # what is wrong with it is known before all files are read
    # A clip of more frames than the server takes was warned of; it can be trained all the same.
    limits = dataclasses.replace(plan.limits, max_frames=max(plan.limits.max_frames, config.rows))
    reader, read = Reader(config.seen_once(), limits), iter(range(1, count + 1))
    scanned = scan(
        listing.examples, reader, threads=plan.threads or os.cpu_count() or 1, cache_bytes=plan.cache_bytes,
        on_file=lambda: teller.at(f"reading {count} files", next(read) / count),
    )  # fmt: skip
    check_classes(listing, scanned.examples)
    classes = {label: i for i, label in enumerate(config.labels)}
    train_on, hold_out = split(scanned.examples, plan.held_out, seed)
    if config.views > 1:
        every = Reader(config, limits)
        hold_out, served = all_views(scanned, hold_out, classes, every, cache_bytes=plan.cache_bytes)
    train, held_out = (MediaExamples(scanned, chosen, classes, reader) for chosen in (train_on, hold_out))
    noun = NOUNS[listing.modality]
    teller.note(f"{len(train)} {noun}s of {len(classes)} classes to train on, {len(held_out)} held out")
    _warn_of_few(config, held_out, teller)
    return scanned, (train, held_out), served if config.views > 1 else held_out


def _warn_of_few(config: AdapterConfig, held_out: MediaExamples, teller: Teller) -> None:
    counts = Counter(example.label for example in held_out.examples)
    none = [label for label in config.labels if not counts[label]]
    few = [label for label in config.labels if 0 < counts[label] <= FEW]
    if none:
        teller.warn(f"nothing is held out of {_some(none)}: no score here says anything of that")
    if few:
        teller.warn(f"only {FEW} files or fewer are held out of {_some(few)}: their scores say little")


def _some(labels: Sequence[str]) -> str:
    """``class 'a'``, or ``12 classes, such as 'a', 'b'``."""
    if len(labels) == 1:
        return f"class '{labels[0]}'"
    shown = ", ".join(f"'{label}'" for label in labels[:SHOWN])
    return f"{len(labels)} classes, such as {shown}" if len(labels) > SHOWN else f"classes {shown}"


def _write(plan: TrainingPlan, adapter: Adapter) -> str:
    try:
        return write_adapter(plan.out, adapter.config, adapter.tensors)
    except (OSError, SafetensorError) as error:
        raise unwritable(plan.out, error) from error
