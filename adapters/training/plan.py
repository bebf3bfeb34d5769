"""What to train, from what, into which file; and what is told when a file cannot be written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from adapters.config import AdapterConfig
from adapters.errors import TrainingError
from adapters.limits import FileLimits, MediaLimits
from adapters.training.baselines import NO_FILE
from adapters.training.data import reason_of
from adapters.training.decoding import CACHE_BYTES, MediaExamples
from adapters.training.fit import FitConfig
from adapters.training.names import Part
from adapters.training.recipe import Recipe


@dataclass(frozen=True)
class TrainingPlan:
    """What to train, from what, into which file.

    ``held_out`` is the share of a seeded split; ``part`` the one to hold out of a split that the data brings, where it
    is not ``val``. ``limits`` bound what is read, ``served`` is what the server takes that the file is meant for, with
    ``max_rank`` 0 for what fits the backbone. ``fallback``: to the best linear head, where the method is no better.
    ``abstain_accuracy``: what answers above the file's threshold are to have; it gets none without. ``threads`` decode
    the files at first; 0 are as many as the machine has.
    """

    data: Path
    out: Path
    recipe: Recipe
    fit: FitConfig
    held_out: float = 0.2
    part: Part | None = None
    cache_bytes: int = CACHE_BYTES
    limits: MediaLimits = field(default_factory=MediaLimits)
    served: FileLimits = field(default_factory=lambda: FileLimits(max_rank=0))
    fallback: bool = True
    abstain_accuracy: float | None = None
    report: bool = True
    threads: int = 0
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

    def settings(self, data: MediaExamples) -> FitConfig:
        """``fit``; workers would only copy what is in memory already."""
        return dataclasses.replace(self.fit, workers=0) if data.in_memory else self.fit

    def identity(self, data: str, config: AdapterConfig, fit: FitConfig, dtype: torch.dtype) -> str:
        """All that the tensors depend on, as one digest; a resumed training must agree with it."""
        options = dataclasses.asdict(fit) | {
            "dtype": str(dtype),
            "held_out": self.held_out,
            "part": self.part,
            "recipe": dataclasses.asdict(self.recipe),
        }
        options.pop("workers")
        text = json.dumps([data, config.model_dump(mode="json"), options], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def unwritable(path: Path, error: Exception) -> TrainingError:
    """The error that says so, and what to do."""
    reason = reason_of(error).splitlines()[0]
    return TrainingError(
        f"{path} could not be written ({reason}), and nothing was left there; make room or choose another place, "
        "then run the same again, with --resume if epochs were done", field="out", got=str(path),
    )  # fmt: skip
