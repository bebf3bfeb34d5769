"""From examples to a fitted model: the best linear head, then what the method trains, if that is better.

It knows the order and what to tell of it; solving, fitting and choosing rates are other modules'.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import isnan

import torch
from torch.utils.data import TensorDataset

from adapters.backbone import Backbone
from adapters.config import AdapterConfig
from adapters.training.baselines import NO_FILE, model_of
from adapters.training.checkpoint import Checkpoint, CheckpointFile, FitResult
from adapters.training.computing import Computing
from adapters.training.data import DataListing, reason_of
from adapters.training.decoding import MediaExamples
from adapters.training.fit import FitConfig, accuracy_of, fit, predict, score_of
from adapters.training.linear import solve
from adapters.training.model import HeadedModel
from adapters.training.plan import TrainingPlan, unwritable
from adapters.training.progress import Teller
from adapters.training.recipe import Recipe, config_of, fit_of, heads_of, pools_of
from adapters.training.search import chosen_rate
from adapters.training.start import Candidate, Frozen, best_start

Data = tuple[MediaExamples, MediaExamples]
SCORED = 4096
"""Vectors of frozen features that are scored at once."""


@dataclass(frozen=True)
class Tuned:
    """The model to keep, and how it came to be.

    ``linear`` is what held-out data says of the best linear head, ``half`` its accuracy with half of the examples;
    ``kept_linear`` that nothing better was found. ``vectors``: what the frozen backbone says of both parts.
    """

    model: HeadedModel
    result: FitResult
    fit: FitConfig
    start: Candidate
    linear: dict[str, float]
    half: float
    vectors: tuple[Frozen, Frozen]
    kept_linear: bool
    resumed_epochs: int


def tune(
    plan: TrainingPlan, backbone: Backbone, config: AdapterConfig, listing: DataListing, data: Data, teller: Teller,
    computing: Computing,
) -> Tuned:  # fmt: skip
    """``config`` says how examples are read; how they are pooled is chosen here."""
    seed, began = plan.fit.seed, time.monotonic()
    pools, at = pools_of(plan.recipe, backbone.layout), partial(teller.at, "frozen features")
    train, held_out = (computing.frozen(config, pools, part, plan.settings(part).workers, at) for part in data)
    vectors = train, held_out
    start = start_of(plan.recipe, backbone, config, vectors[0], seed, teller)
    linear = _linear(plan, backbone, start, vectors[0])
    before, half = _score(linear, start, vectors[1]), _with_half(vectors, start)
    tuned = partial(Tuned, start=start, linear=before, half=half, vectors=vectors)
    settings = fit_of(plan.recipe, plan.settings(data[0]), len(data[0]), start.config.frames)
    if plan.recipe.method == "linear" and start.config.head != "attention":
        result = dataclasses.replace(_solved(before), seconds=time.monotonic() - began)
        return tuned(linear, result, settings, kept_linear=False, resumed_epochs=0)
    teller.note(f"the best linear head: held-out accuracy {before['accuracy']:.2%}")
    if plan.recipe.lr == "auto":
        settings = chosen_rate(
            lambda: begun(plan.recipe, backbone, start, vectors[0], settings), data[0], settings, teller
        )
    torch.manual_seed(seed)
    model = begun(plan.recipe, backbone, start, vectors[0], settings)
    result, resumed = _fit(plan, model, settings, listing, data, teller)
    better = (result.balanced_accuracy, -result.held_out_loss) > (before["balanced_accuracy"], -before["held_out_loss"])
    if better or not plan.fallback or plan.recipe.method in NO_FILE or start.config.head == "attention":
        return tuned(model, result, settings, kept_linear=False, resumed_epochs=resumed)
    told = dataclasses.replace(_solved(before), history=result.history, seconds=result.seconds)
    return tuned(linear, told, settings, kept_linear=True, resumed_epochs=resumed)


def start_of(
    recipe: Recipe, backbone: Backbone, config: AdapterConfig, vectors: Frozen, seed: int, teller: Teller
) -> Candidate:
    """The pooling, and for clips the head, whose linear head is best by cross-validation."""
    heads = heads_of(recipe, config.modality, backbone.layout)
    configs = [
        config_of(dataclasses.replace(recipe, pool=pool, head=head), backbone, config.modality, config.labels)
        for pool, head in itertools.product(vectors.vectors, heads)
    ]
    start, tried = best_start(vectors, configs, seed, partial(teller.at, "the best linear head"))
    if len(tried) > 1 and not isnan(start.solved.accuracy):
        told = "; ".join(str(one) for one in tried)
        teller.note(f"how to pool, by cross-validation of a linear head: {told}")
    return start


def _linear(plan: TrainingPlan, backbone: Backbone, start: Candidate, vectors: Frozen) -> HeadedModel:
    recipe = Recipe(task=plan.recipe.task, method="linear")
    bare = dataclasses.replace(start, config=start.config.model_copy(update={"sites": ()}))
    return begun(recipe, backbone, bare, vectors, plan.fit)


def begun(recipe: Recipe, backbone: Backbone, start: Candidate, vectors: Frozen, settings: FitConfig) -> HeadedModel:
    """At its start. What adapts the backbone begins with a head of its own: the best linear head knows the training
    data by heart, so that nothing would be left to learn (docs/RESULTS.md).
    """
    model = model_of(recipe, backbone, start.config, settings.dropout)
    model.start(vectors.seen(start.config), start.solved if recipe.method == "linear" else None)
    return model.eval()


def _with_half(vectors: tuple[Frozen, Frozen], start: Candidate) -> float:
    """Held-out accuracy of a linear head on half of the examples, which says what twice as many may give."""
    train, held_out = vectors
    chosen = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))[::2]
    config, labels = start.config, train.labels[chosen]
    seen = train.seen(config).flatten(1)[chosen]
    half = solve(seen, labels, len(config.labels), penalty=start.solved.penalty)
    return accuracy_of(held_out.seen(config).flatten(1) @ half.weight.T + half.bias, held_out.labels)


def _score(linear: HeadedModel, start: Candidate, vectors: Frozen) -> dict[str, float]:
    """What held-out data says of the best linear head; beside an attention, which has none, of that of all frames."""
    seen, labels = vectors.seen(start.config), vectors.labels
    if start.config.head == "attention":
        return score_of(seen.flatten(1) @ start.solved.weight.T + start.solved.bias, labels)
    return score_of(*predict(linear, TensorDataset(seen, labels), FitConfig(batch=SCORED)))


def _solved(score: Mapping[str, float]) -> FitResult:
    return FitResult(
        accuracy=score["accuracy"],
        balanced_accuracy=score["balanced_accuracy"],
        held_out_loss=score["held_out_loss"],
    )


def _fit(
    plan: TrainingPlan, model: HeadedModel, settings: FitConfig, listing: DataListing, data: Data, teller: Teller
) -> tuple[FitResult, int]:
    """The model's history, and how many epochs of it came from an interrupted run."""
    identity = plan.identity(listing.digest, model.config, settings, model.backbone.dtype)
    checkpoints = CheckpointFile(plan.checkpoint, identity)
    start = checkpoints.load() if plan.resume and plan.checkpoint.exists() else None

    def keep(checkpoint: Checkpoint) -> None:
        history, epoch = checkpoint.result.history, checkpoint.result.epochs
        if history:
            teller.scored(history, settings.epochs)
        try:
            plan.out.parent.mkdir(parents=True, exist_ok=True)
            checkpoints.save(checkpoint)
        except (OSError, RuntimeError) as error:
            if epoch == 0:
                raise unwritable(plan.checkpoint, error) from error
            teller.warn(f"epoch {epoch} cannot be resumed from: {plan.checkpoint}: {reason_of(error).splitlines()[0]}")

    def step(done: float, loss: float) -> None:
        if isnan(loss):
            teller.at("frozen features", done)
        else:
            teller.at("training", done, f"loss {loss:.3f}")

    result = fit(model, *data, settings, start=start, on_epoch=keep, on_step=step)
    return result, start.result.epochs if start else 0
