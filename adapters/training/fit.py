"""Fit one adapter: AdamW, warm-up and cosine, the best epoch kept; and score a model on held-out data.

It knows tensors of pixels and labels; it does not know files, folders or where pictures come from.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from adapters.errors import TrainingError
from adapters.training.augment import Crop, mixing_weight
from adapters.training.batches import Batches, Examples
from adapters.training.checkpoint import Checkpoint, FitResult
from adapters.training.model import HeadedModel, images_of, prefix_of, written_out_attention

PREFIX_BYTES = 2**31
"""Of memory for tokens that are computed once."""


@dataclass(frozen=True)
class FitConfig:
    """The recipe; its defaults work for adapters on most ViTs.

    ``lr`` is the highest rate of what is trained inside the backbone, ``head_lr`` that of the head. ``crop``: the
    smallest share of a picture's area that a random crop leaves. ``flip``: mirror half of them. ``mixup``: alpha of the
    Beta that blends neighbours. ``patience``: scores in a row without gain before it stops; 0 never. ``every``: epochs
    between two scores on held-out data. ``clip``: the largest norm of a step's gradients. ``workers``: threads that
    decode ahead.
    """

    epochs: int = 20
    batch: int = 32
    lr: float = 3e-3
    head_lr: float = 3e-3
    weight_decay: float = 1e-4
    warmup: float = 0.1
    label_smoothing: float = 0.0
    dropout: float = 0.0
    crop: float = 1.0
    flip: bool = False
    mixup: float = 0.0
    patience: int = 0
    every: int = 1
    clip: float = 1.0
    workers: int = 0
    seed: int = 0


Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Pixels uint8 (items, frames, 3, height, width) -> the same shape, changed at random."""


def learning_rate(progress: float, peak: float, warmup: float) -> float:
    """Linear warm-up for a share of ``warmup``, then cosine to zero; ``progress`` runs from 0 to 1."""
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def fit(
    model: HeadedModel,
    train: Examples,
    held_out: Examples,
    config: FitConfig,
    *,
    augment: Augment | None = None,
    on_step: Callable[[float, float], None] | None = None,
    on_epoch: Callable[[Checkpoint], None] | None = None,
    start: Checkpoint | None = None,
) -> FitResult:
    """Train in place; the model ends with the weights of its best epoch, by balanced accuracy, then by loss.

    ``augment`` stands in for the recipe's crop and flip. ``on_step`` gets progress and loss, not a
    number while a frozen backbone's features are computed. ``on_epoch`` gets all that is needed to go on, before the
    first epoch and after each; ``start`` goes on from there, to the same bits as without the interruption. Raises
    TrainingError when the loss is no longer finite.
    """
    began, generator = time.monotonic(), torch.Generator().manual_seed(config.seed)
    torch.manual_seed(config.seed)
    if augment is None and (config.crop < 1 or config.flip):
        augment = Crop(config.crop, config.flip)
    if augment is None and not config.mixup:
        train = _computed_once(model, train, config, on_step)
    held_out = _computed_once(model, held_out, config, on_step)
    loader = Batches(train, config.batch, threads=config.workers, generator=generator)
    optimizer = _optimizer(model, config)
    result, best = FitResult(), copy.deepcopy(model.state_dict())
    if start is not None:
        result, best = start.restore(model, optimizer, generator)
    elif on_epoch:
        on_epoch(Checkpoint.of(model, optimizer, generator, result, best))
    before, done = result.seconds, result.epochs
    while done < config.epochs and not _has_ended(result, config):
        following = range(done, min(done + config.every, config.epochs))
        with written_out_attention(model.backbone):
            losses = [
                _epoch(model, loader, optimizer, config, epoch, augment=augment, on_step=on_step, generator=generator)
                for epoch in following
            ]
        done, loss = following.stop, sum(losses) / len(losses)
        scored = _scoring(on_step, done / config.epochs, loss)
        result.seconds = before + time.monotonic() - began
        line = {"epoch": done, "loss": loss, **score_of(*predict(model, held_out, config, scored))}
        result.history.append(line | {"seconds": result.seconds})
        if result.takes(line):
            best = copy.deepcopy(model.state_dict())
        if on_epoch:
            on_epoch(Checkpoint.of(model, optimizer, generator, result, best))
    model.load_state_dict(best)
    model.eval()
    return result


def _optimizer(model: HeadedModel, config: FitConfig) -> torch.optim.Optimizer:
    """AdamW with a rate of its own for the head; ``peak`` is what the schedule goes up to."""
    head = [p for p in model.head.parameters() if p.requires_grad]
    own = {id(p) for p in head}
    inside = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    groups = [{"params": inside, "peak": config.lr}, {"params": head, "peak": config.head_lr}]
    return torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=config.weight_decay)


def score_of(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """What a held-out part says of logits, by the names that a history has for it."""
    return {
        "held_out_loss": loss_of(logits, labels).item(),
        "accuracy": accuracy_of(logits, labels),
        "balanced_accuracy": balanced_accuracy_of(logits, labels),
    }


def _scoring(
    on_step: Callable[[float, float], None] | None, progress: float, loss: float
) -> Callable[[float], None] | None:
    """Lets ``on_step`` hear that an epoch goes on while it is scored, which may take as long as its steps."""
    return (lambda _share: on_step(progress, loss)) if on_step else None


def _has_ended(result: FitResult, config: FitConfig) -> bool:
    """Whether neither balanced accuracy nor loss was better than ever within ``patience`` scores."""
    last, before = result.history[-config.patience :], result.history[: -config.patience]
    if not config.patience or not before:
        return False
    balanced, loss = max(one["balanced_accuracy"] for one in before), min(one["held_out_loss"] for one in before)
    return all(one["balanced_accuracy"] <= balanced and one["held_out_loss"] >= loss for one in last)


def _epoch(
    model: HeadedModel,
    loader: Batches,
    optimizer: torch.optim.Optimizer,
    config: FitConfig,
    epoch: int,
    *,
    augment: Augment | None,
    on_step: Callable[[float, float], None] | None,
    generator: torch.Generator,
) -> float:
    """One pass over the training data; returns its mean loss."""
    model.train()
    losses, device, trained = [], model.backbone.device, [p for p in model.parameters() if p.requires_grad]
    for step, (pixels, truth) in enumerate(loader):
        progress = (epoch + step / len(loader)) / config.epochs
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, group["peak"], config.warmup)
        here = pixels.to(device)
        images = images_of(model, augment(here, generator) if augment else here)
        optimizer.zero_grad(set_to_none=True)
        loss = _mixed_loss(model, images, truth.to(device), config, generator)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise TrainingError(
                f"the loss became {losses[-1]} in epoch {epoch + 1}; train again with a lower learning rate than "
                f"{config.lr:g}", field="lr", value=config.lr,
            )  # fmt: skip
        if on_step:
            on_step(progress, losses[-1])
    return sum(losses) / len(losses)


def _mixed_loss(
    model: HeadedModel, images: Tensor, labels: Tensor, config: FitConfig, generator: torch.Generator
) -> Tensor:
    """The loss of a batch, each item blended with another by one weight, its label too (mixup, Zhang et al. 2017)."""
    keep = mixing_weight(config.mixup, generator)
    if keep == 1.0:
        return loss_of(model(images), labels, config.label_smoothing)
    others = images.view(len(labels), -1, *images.shape[1:]).flip(0).flatten(0, 1)
    logits = model(torch.lerp(others, images, keep))
    own, other = (loss_of(logits, truth, config.label_smoothing) for truth in (labels, labels.flip(0)))
    return keep * own + (1 - keep) * other


def loss_of(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy for one label each, binary cross-entropy for many."""
    if labels.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


@torch.no_grad()
def _computed_once(
    model: HeadedModel, data: Examples, config: FitConfig, on_step: Callable[[float, float], None] | None
) -> Examples:
    """What the frozen part of the backbone makes of every item, so that no epoch computes it again.

    Where nothing inside is trained, vectors float32; else the tokens before the first block that is, in the backbone's
    dtype, unless they would take more than ``PREFIX_BYTES``. The data itself, where the first block is trained.
    """
    if not model.pools_alike and not model.first_block:
        return data
    model.eval()
    found, labels, loader = [], [], Batches(data, config.batch, threads=config.workers)
    for pixels, truth in loader:
        images = images_of(model, pixels)
        if model.pools_alike:
            found.append(model.pooled_items(images).cpu())
        else:
            tokens = prefix_of(model, images)
            if tokens.nbytes * len(loader) > PREFIX_BYTES:
                return data
            found.append(tokens.view(len(pixels), -1, *tokens.shape[1:]).cpu())
        labels.append(truth)
        if on_step:
            on_step(len(found) / len(loader), math.nan)
    return TensorDataset(torch.cat(found), torch.cat(labels))


@torch.inference_mode()
def predict(
    model: HeadedModel, data: Examples, config: FitConfig, on_batch: Callable[[float], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Logits and labels of a whole data set, on the CPU, in its order. ``on_batch`` gets the share that is done."""
    model.eval()
    logits, labels = [], []
    batches = Batches(data, config.batch, threads=config.workers)
    for pixels, truth in batches:
        logits.append(model(images_of(model, pixels)).cpu())
        labels.append(truth)
        if on_batch:
            on_batch(len(logits) / len(batches))
    return torch.cat(logits), torch.cat(labels)


def accuracy_of(logits: Tensor, labels: Tensor) -> float:
    """Share of right answers; for many labels, the share of single yes-or-no answers that are right."""
    if labels.is_floating_point():
        return ((logits > 0) == (labels > 0.5)).float().mean().item()
    return (logits.argmax(1) == labels).float().mean().item()


def balanced_accuracy_of(logits: Tensor, labels: Tensor) -> float:
    """The mean over the classes of the share of each that is right; for many labels, the accuracy."""
    if labels.is_floating_point():
        return accuracy_of(logits, labels)
    right, count = (logits.argmax(1) == labels).double(), labels.bincount()
    recalls = labels.bincount(right)[count > 0] / count[count > 0]
    return recalls.mean().item()


def parameters_of(model: HeadedModel) -> tuple[int, float]:
    """Trainable parameters, and their share of the backbone."""
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return count, count / model.backbone.layout.parameters


def trainable(model: HeadedModel) -> Iterator[str]:
    """Names of what gets gradients."""
    return (name for name, p in model.named_parameters() if p.requires_grad)
