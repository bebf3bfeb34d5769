"""Score an adapter on files as the server would: packed into a slot, banked, many rows in one batch.

It knows the serving forward; it does not know how the adapter was made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.backbone import Backbone
from adapters.config import MAX_CLIP_ROWS, AdapterConfig
from adapters.file import Adapter
from adapters.limits import MediaLimits
from adapters.predictor import Predictor
from adapters.scores import best, probabilities
from adapters.training.batches import Batches, Examples
from adapters.training.decoding import MediaExamples

BATCH_ROWS = 64
MAX_SCORES = 100
"""Labels whose scores are kept per example, best first; a server shows as many at most."""


@dataclass(frozen=True)
class Scored:
    """One held-out file: what it is, what the adapter says, and ``scores`` by label, best first."""

    path: str
    label: str
    predicted: str
    scores: dict[str, float]

    @property
    def confidence(self) -> float:
        """The best label's score."""
        return self.scores[self.predicted]


def served_logits(
    adapter: Adapter,
    backbone: Backbone,
    data: Examples,
    workers: int = 0,
    on_batch: Callable[[float], None] | None = None,
) -> Tensor:
    """Logits (items, classes) float32 on the CPU, in the data's order; ``on_batch`` gets the share that is done.

    Of an adapter with several views (items, views, classes), of data that holds all of them.
    """
    predictor = Predictor(backbone, adapter, batch_rows=BATCH_ROWS, limits=MediaLimits(max_frames=MAX_CLIP_ROWS))
    batches = Batches(data, max(1, BATCH_ROWS // adapter.config.rows), threads=workers)
    found = []
    for number, (pixels, _) in enumerate(batches, 1):
        found += predictor.logits(pixels.numpy())
        if on_batch:
            on_batch(number / len(batches))
    return torch.from_numpy(np.stack(found))


def scored(logits: Tensor, config: AdapterConfig, data: MediaExamples) -> list[Scored]:
    """Scores as the server computes them, of logits (items, views, classes)."""
    found = []
    for example, row in zip(data.examples, logits.numpy(), strict=True):
        values = probabilities(row, config.score, config.temperature)
        scores = {one.label: one.score for one in best(values, config.labels, MAX_SCORES)}
        found.append(Scored(example.name, example.label, next(iter(scores)), scores))
    return found


def accuracy(examples: Sequence[Scored]) -> float:
    """Share of examples whose best label is the right one."""
    return sum(e.label == e.predicted for e in examples) / len(examples)


def sureness(examples: Sequence[Scored]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Of every example (items,): the best label's score, and whether it is the right one."""
    return np.array([e.confidence for e in examples]), np.array([e.label == e.predicted for e in examples])


@dataclass(frozen=True)
class Recalls:
    """Label -> how many of its examples are right, and how many there are; labels without any are not in it."""

    found: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Recalls:
        """From (right label, given label) of every example."""
        right, count = Counter[str](), Counter[str]()
        for label, given in pairs:
            count[label] += 1
            right[label] += given == label
        return cls({label: (right[label], count[label]) for label in count})

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the recalls, so that a class counts as much as any other, however few examples it has."""
        return sum(right / count for right, count in self.found.values()) / len(self.found)

    def summary(self) -> str:
        """The balanced accuracy and the class with the least recall, in words."""
        label, (right, count) = min(self.found.items(), key=lambda item: item[1][0] / item[1][1])
        return (
            f"{self.balanced_accuracy:.2%}, the mean over {len(self.found)} classes; least is '{label}' with "
            f"{right} of {count}"
        )
