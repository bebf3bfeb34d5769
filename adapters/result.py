"""Result: what one task says of one input, in the library. Logits in, labels and scores out; it knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adapters.scores import Prediction, best, probabilities


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What one task says of one input.

    ``logits`` (classes,) float32; ``scores`` (classes,) float64, the softmax over the classes or each one's own
    sigmoid, as the adapter's ``score`` says; both in the order of ``labels``, and not to be written. Where a task looks
    at a clip several times, ``logits`` is (views, classes), and ``scores`` the mean of the views'. ``bad_frames``:
    frames of a clip that did not decode, in whose place others stand. ``temperature`` and ``abstain`` are the file's.
    """

    task: str
    labels: tuple[str, ...]
    score: Literal["softmax", "sigmoid"]
    logits: NDArray[np.float32]
    bad_frames: int = 0
    temperature: float = 1.0
    abstain: float | None = None

    def __repr__(self) -> str:
        return f"Result(task={self.task!r}, best={self.best!r}, classes={len(self.labels)})"

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        found = probabilities(self.logits, self.score, self.temperature)
        found.setflags(write=False)
        return found

    @cached_property
    def best(self) -> Prediction:
        """The label with the highest score, the first of equal ones."""
        return self.top_k(1)[0]

    @property
    def accepted(self) -> bool | None:
        """Whether the best score reaches the file's ``abstain`` threshold; None where it has none."""
        return None if self.abstain is None else self.best.score >= self.abstain

    def top_k(self, k: int = 5) -> list[Prediction]:
        """The ``k`` highest, best first; all of them if there are fewer."""
        return best(self.scores, self.labels, k)

    def above(self, threshold: float = 0.5) -> list[Prediction]:
        """Every label with at least that score, best first: the answer of a task with many labels at once."""
        return [found for found in self.top_k(len(self.labels)) if found.score >= threshold]
