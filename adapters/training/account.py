"""What an adapter file tells of its training: counts, times and memory, as measured.

It knows a fitted model and its examples; it trains and writes nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

from adapters.training.baselines import PromptedModel
from adapters.training.checkpoint import FitResult
from adapters.training.decoding import MediaExamples
from adapters.training.fit import parameters_of
from adapters.training.model import HeadedModel
from adapters.version import installed_version

if TYPE_CHECKING:
    from adapters.training.tune import Tuned


WORTH = 0.01
"""Accuracy that half of the examples must cost before more of them are asked for."""
FEW = 100
"""Held-out examples below which a difference must be large to be more than chance."""
LEARNT = 0.05
"""Training loss below which nothing is left to learn from the examples that are there."""


def account_of(model: HeadedModel, result: FitResult, train: MediaExamples, held_out: MediaExamples) -> dict[str, Any]:
    """What can be said without knowing the command that was given."""
    count, share = parameters_of(model)
    return {
        "train_examples": len(train),
        "held_out_examples": len(held_out),
        **({"prompts_per_block": model.prompts.shape[1]} if isinstance(model, PromptedModel) else {}),
        "best_epoch": result.epoch,
        "epochs_run": result.epochs,
        "parameters": count,
        "share_of_backbone": round(share, 5),
        "backbone_parameters": model.backbone.layout.parameters,
        "seconds": round(result.seconds, 1),
        "device": str(model.backbone.device),
        "dtype": str(model.backbone.dtype).removeprefix("torch."),
        "peak_memory_bytes": peak_memory(model.backbone.device),
    }


def verdict(tuned: Tuned, method: str, reached: float) -> str:
    """One line to act on: what the method is worth here, and what more of something would likely give."""
    linear, more = tuned.linear["accuracy"], tuned.linear["accuracy"] - tuned.half
    held_out = len(tuned.vectors[1].labels)
    if more >= WORTH and (held_out >= FEW or more >= held_out**-0.5):
        data = f"half of the examples give a linear head {100 * more:.1f} points less, so more of them should help"
    elif held_out < FEW:
        data = f"whether more examples would help, {held_out} held-out files are too few to say"
    else:
        data = "half of the examples give a linear head as much, so more of them need not help"
    if tuned.kept_linear:
        return f"{method} found nothing better than the best linear head, which was kept ({linear:.2%}); {data}"
    if method == "linear":
        return f"the best linear head on the frozen backbone; {data}"
    gained = f"{100 * (reached - linear):+.1f} points over the best linear head ({linear:.2%})"
    losses = [line["loss"] for line in tuned.result.history]
    if losses and losses[-1] < LEARNT:
        return f"{gained}; the training examples are learnt by heart, so a higher rank will not help; {data}"
    return f"{gained}; the training loss still falls, so more epochs or a higher rank may give more; {data}"


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch held on CUDA, or the largest that this process ever was; 0 where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def tool() -> str:
    """This program and its version."""
    return f"adaptserve {installed_version()}"
