"""``--lr auto``: a short, seeded search for the learning rate, on a part of the training data alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.data import Subset

from adapters.errors import TrainingError
from adapters.training.batches import Examples
from adapters.training.fit import FitConfig, fit
from adapters.training.model import HeadedModel
from adapters.training.progress import Teller

FACTORS = (1 / 3, 1.0, 3.0)
"""Of the method's usual rate."""
SHARE = 0.25
"""Of the epochs, for each rate."""
LEFT_OUT = 0.2


def chosen_rate(made: Callable[[], HeadedModel], data: Examples, settings: FitConfig, teller: Teller) -> FitConfig:
    """The settings with the rate that ends with the least loss on what is left out; ``made`` gives a new model."""
    count = len(data)  # type: ignore[arg-type]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed)).tolist()
    out = max(1, round(LEFT_OUT * count))
    epochs = max(1, round(SHARE * settings.epochs))
    losses: dict[float, float] = {}
    for number, factor in enumerate(FACTORS):
        rate = settings.lr * factor
        short = dataclasses.replace(settings, lr=rate, epochs=epochs, every=epochs, patience=0)
        torch.manual_seed(settings.seed)
        told = partial(_tell, teller, number)
        try:
            result = fit(made(), Subset(data, order[out:]), Subset(data, order[:out]), short, on_step=told)
        except TrainingError:  # the loss is not finite
            continue
        losses[rate] = result.held_out_loss
    if not losses:
        why = f"no learning rate near {settings.lr:g} keeps the loss finite; give one, with --lr"
        raise TrainingError(why, field="lr")
    best = min(losses, key=lambda rate: losses[rate])
    shown = ", ".join(f"{rate:.2g}: {loss:.3f}" for rate, loss in losses.items())
    teller.note(f"learning rate {best:.2g}, of least loss on {out} training files after {epochs} epochs ({shown})")
    return dataclasses.replace(settings, lr=best)


def _tell(teller: Teller, number: int, done: float, loss: float) -> None:
    teller.at("learning rates", (number + done) / len(FACTORS), f"loss {loss:.3f}")
