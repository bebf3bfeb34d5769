"""Logits -> probabilities and the best labels. Pure: numpy in, plain values out.

It does not know tasks, versions or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Prediction:
    """One label with its place in the file's list and its probability."""

    label: str
    index: int
    score: float


def probabilities(logits: NDArray[np.float32], score: str, temperature: float = 1.0) -> NDArray[np.float64]:
    """Softmax over (classes,), each class's own sigmoid, or with ``none`` the logits; in float64, without overflow.

    Both are of the logits over the ``temperature``; ``none`` leaves them as they are.

    Of an input that is seen several times (views, classes): the mean of the views' probabilities, as VideoMAE and
    mmaction's ``average_clips='prob'`` have it; and not of the logits, whose scale differs from view to view.
    """
    if logits.ndim == 2:
        mean: NDArray[np.float64] = np.mean([probabilities(view, score, temperature) for view in logits], axis=0)
        return mean
    values = logits.astype(np.float64)
    if score == "none":
        return values
    if temperature != 1.0:
        values /= temperature
    if score == "sigmoid":
        small = np.exp(-np.abs(values))  # at most 1
        return np.where(values >= 0, 1.0, small) / (1.0 + small)
    shifted = np.exp(values - values.max())
    result: NDArray[np.float64] = shifted / shifted.sum()
    return result


def best(values: NDArray[np.float64], labels: Sequence[str], top_k: int) -> list[Prediction]:
    """The ``top_k`` highest scores, best first, equal ones in the order of the labels; all if there are fewer."""
    order = np.argsort(-values, kind="stable")[: max(1, top_k)]
    return [Prediction(labels[i], int(i), float(values[i])) for i in order]
