"""What an adapter file tells of its training: counts, times and memory, as measured.

It knows a fitted model and its examples; it trains and writes nothing.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from adapters.training.baselines import PromptedModel
from adapters.training.checkpoint import FitResult
from adapters.training.decoding import MediaExamples
from adapters.training.fit import parameters_of
from adapters.training.model import HeadedModel
from adapters.version import installed_version


def account_of(model: HeadedModel, result: FitResult, train: MediaExamples, held_out: MediaExamples) -> dict[str, Any]:
    """What can be said without knowing the command that was given."""
    count, share = parameters_of(model)
    return {
        "train_examples": len(train),
        "held_out_examples": len(held_out),
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


def tool() -> str:
    """This program and its version."""
    return f"adaptserve {installed_version()}"
