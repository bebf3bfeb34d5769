"""What held-out examples say of a version, as the engine answers for them, and whether one version is better.

It asks for answers one by one; it trains and publishes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters.config import AdapterConfig
from adapters.errors import TrainingError
from adapters.limits import MediaLimits
from adapters.scores import probabilities
from adapters.training.data import ClassPlace, DataListing, Example
from adapters.training.decoding import MediaExamples, Reader, scan
from adapters.training.score import Recalls
from service.messages import Item
from service.store.examples import ExampleSet
from service.teach.asking import Asking
from service.teach.split import held_out

LEAST_PROBABILITY = 1e-6
"""Of a right label in a log loss, also where a version does not know the label."""


@dataclass(frozen=True)
class Judged:
    """What a version says of the held-out examples: the log loss of each (items,), and how often it is right."""

    losses: NDArray[np.float64]
    accuracy: float
    balanced_accuracy: float

    def better_than(self, other: Judged) -> bool:
        """Whether it loses less by more than one standard error of the difference, and is no less often right.

        The difference is that of each example with itself, so that few examples say as much as they can.
        """
        gain = other.losses - self.losses
        error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
        return self.balanced_accuracy >= other.balanced_accuracy and bool(gain.mean() > error)


def listing_of(examples: ExampleSet) -> DataListing:
    """As training knows a data set that brings its split."""
    apart = held_out(examples)
    return DataListing(
        modality=examples.items[0].modality,
        places={label: ClassPlace(label) for label in examples.counts},
        examples=tuple(
            Example(
                one.path, f"{one.label}/{one.digest[:12]}", one.label, one.label,
                "val" if one.digest in apart else "train",
            )
            for one in examples.items
        ),
        bad=(),
    )  # fmt: skip


def judged(
    asking: Asking, version: Item, config: AdapterConfig, examples: ExampleSet, limits: MediaLimits, threads: int
) -> Judged:
    """Ask ``version`` about every held-out example. Raises TrainingError where none can be read."""
    listing, reader = listing_of(examples), Reader(config, limits)
    found = scan([example for example in listing.examples if example.part == "val"], reader, threads=threads)
    if not found.examples:
        raise TrainingError("no held-out example can be read any more; they were deleted meanwhile")
    data = MediaExamples(found, range(len(found.examples)), dict.fromkeys(listing.labels, 0), reader)
    logits = asking.answers(version, config, data, 0 if data.in_memory else threads, lambda _: None).numpy()
    places = {label: place for place, label in enumerate(config.labels)}
    losses, pairs = [], []
    for example, row in zip(found.examples, logits, strict=True):
        scores = probabilities(row, config.score, config.temperature)
        place = places.get(example.label)
        losses.append(-np.log(max(LEAST_PROBABILITY, 0.0 if place is None else float(scores[place]))))
        pairs.append((example.label, config.labels[int(scores.argmax())]))
    right = sum(label == given for label, given in pairs) / len(pairs)
    return Judged(np.array(losses), right, Recalls.of(pairs).balanced_accuracy)
