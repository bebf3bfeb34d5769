"""A training that can go on: everything its next epoch depends on, in memory and in a file beside the adapter's.

It knows tensors and generators; it does not know data, losses or how an epoch goes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from adapters.atomic import replacing
from adapters.errors import TrainingError

MAX_CHECKPOINT_BYTES = 64 * 2**30
_UNREADABLE = (OSError, ValueError, RuntimeError, TypeError, AttributeError, LookupError, EOFError, UnpicklingError)


@dataclass
class FitResult:
    """``history``: for each score the epochs so far, the loss since the last one, what held-out data says, seconds.

    ``epoch`` is the best one, with its ``accuracy``, ``balanced_accuracy`` and ``held_out_loss``; ``seconds`` all.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    accuracy: float = 0.0
    balanced_accuracy: float = -1.0
    held_out_loss: float = math.inf
    epoch: int = 0
    seconds: float = 0.0

    @property
    def epochs(self) -> int:
        """How many are done."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    def takes(self, line: Mapping[str, float]) -> bool:
        """Whether it is the best so far, which it then is."""
        better = (line["balanced_accuracy"], -line["held_out_loss"]) > (self.balanced_accuracy, -self.held_out_loss)
        if better:
            self.epoch = int(line["epoch"])
            self.accuracy, self.balanced_accuracy = line["accuracy"], line["balanced_accuracy"]
            self.held_out_loss = line["held_out_loss"]
        return better


@dataclass(frozen=True)
class Checkpoint:
    """State between two epochs. ``model`` and ``best`` hold the adapter's tensors only, never the backbone's.

    ``shuffle``, ``random`` and ``cuda`` are generator states: the order of the data, dropout on the CPU and on CUDA.
    """

    model: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[str, Any]
    shuffle: Tensor
    random: Tensor
    cuda: Tensor | None
    result: FitResult

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        result: FitResult,
        best: dict[str, Tensor],
    ) -> Checkpoint:
        """A copy that later steps do not change."""
        return cls(
            model=copy.deepcopy(model.state_dict()),
            best=best,
            optimizer=copy.deepcopy(optimizer.state_dict()),
            shuffle=generator.get_state(),
            random=torch.get_rng_state(),
            cuda=torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            result=copy.deepcopy(result),
        )

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> tuple[FitResult, dict[str, Tensor]]:
        """Put everything back in place; returns the result so far and the best epoch's tensors."""
        model.load_state_dict(self.model)
        optimizer.load_state_dict(copy.deepcopy(self.optimizer))
        generator.set_state(self.shuffle)
        torch.set_rng_state(self.random)
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda)
        return copy.deepcopy(self.result), copy.deepcopy(self.best)


class CheckpointFile:
    """A checkpoint on disk, replaced whole, and bound to the data and options it was made with (``identity``)."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self._identity = path, identity

    def save(self, checkpoint: Checkpoint) -> None:
        """Write atomically. Raises OSError or RuntimeError, torch's word for a full disk; the old file then stays."""
        state = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}
        state |= {"result": asdict(checkpoint.result), "identity": self._identity}
        with replacing(self.path) as temporary:
            torch.save(state, temporary)

    def load(self) -> Checkpoint:
        """Only tensors and plain values are read. Raises TrainingError for a file that is not this training's."""
        try:
            if self.path.stat().st_size > MAX_CHECKPOINT_BYTES:
                raise ValueError(f"more than {MAX_CHECKPOINT_BYTES} bytes")
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            identity, result = state.pop("identity"), FitResult(**state.pop("result"))
            checkpoint = Checkpoint(**state, result=result)
        except _UNREADABLE as error:
            raise TrainingError(
                f"{self.path} is no training that can be resumed ({type(error).__name__}); delete it and train anew",
                field="resume", got=str(self.path),
            ) from error  # fmt: skip
        if identity != self._identity:
            raise TrainingError(
                f"{self.path} was made with other data or options; give the same ones again, or delete it",
                field="resume", expected=self._identity, got=identity,
            )  # fmt: skip
        return checkpoint

    def remove(self) -> None:
        """Forget the training, once its adapter is written."""
        self.path.unlink(missing_ok=True)
