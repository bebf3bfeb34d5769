"""What every method starts from: the best linear head on what the frozen backbone says of the training data.

It chooses the pooling, and for clips whether the head sees the frames in their order, by the same cross-validation.
It knows the backbone, examples and the solver; it knows no residuals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.config import AdapterConfig, Pool
from adapters.training.batches import Batches, Examples
from adapters.training.linear import Solved, solve
from adapters.training.model import normalised

ROWS = 64
"""Of a batch of frozen features."""


@dataclass(frozen=True)
class Candidate:
    """A way from tokens to what a linear head sees, and the config that says so."""

    config: AdapterConfig
    solved: Solved

    def __str__(self) -> str:
        frames = {"mean": ", mean of the frames", "frames": ", frames in their order"}.get(self.config.head, "")
        return f"{self.config.pool}{frames if self.config.video else ''}: {self.solved.accuracy:.2%}"


@dataclass(frozen=True)
class Frozen:
    """Vectors (items, frames, width) float32 of each way of pooling, and the labels; of all items, in their order.

    Of a backbone of clips (items, 1, width).
    """

    vectors: dict[Pool, Tensor]
    labels: Tensor

    def seen(self, config: AdapterConfig) -> Tensor:
        """What the config's head looks at: (items, width), or (items, frames, width) where it sees time."""
        vectors = self.vectors[config.pool]
        return vectors.mean(1) if config.head == "mean" else vectors


def frozen(
    backbone: Backbone, config: AdapterConfig, pools: Sequence[Pool], data: Examples, workers: int = 0,
    on_batch: Callable[[float], None] | None = None,
) -> Frozen:  # fmt: skip
    """One pass over the data for all ``pools``; one that only repeats another of them is left out."""
    found: dict[Pool, list[Tensor]] = {pool: [] for pool in pools}
    labels = []
    batches = Batches(data, max(1, ROWS // config.frames), threads=workers)
    with torch.inference_mode():
        for number, (pixels, truth) in enumerate(batches, 1):
            features = backbone.features(normalised(pixels, config, backbone))
            for pool, parts in found.items():
                vectors = backbone.pool(features, pool, "frozen").float().cpu()
                parts.append(vectors.view(len(pixels), backbone.layout.rows_of(config), -1))
            if number == 1:
                found = _different(found)
            labels.append(truth)
            if on_batch:
                on_batch(number / len(batches))
    return Frozen({pool: torch.cat(parts) for pool, parts in found.items()}, torch.cat(labels))


def _different(found: dict[Pool, list[Tensor]]) -> dict[Pool, list[Tensor]]:
    """Those that are not what a later one says more exactly: timm's own pooling is mostly one of the other two."""
    pools = list(found)
    return {
        pool: found[pool]
        for at, pool in enumerate(pools)
        if not any(torch.equal(found[pool][0], found[other][0]) for other in pools[at + 1 :])
    }


def best_start(
    frozen: Frozen, configs: Sequence[AdapterConfig], seed: int, on_step: Callable[[float], None] | None = None
) -> tuple[Candidate, list[Candidate]]:
    """The best of the configs by cross-validation, and all of them. The first where nothing can be left out."""
    tried: list[Candidate] = []

    def step(share: float) -> None:
        if on_step:
            on_step((len(tried) + share) / len(configs))

    for config in configs:
        seen = frozen.seen(config).flatten(1)
        solved = solve(seen, frozen.labels, len(config.labels), seed=seed, on_step=step)
        tried.append(Candidate(config, solved))
    return max(tried, key=lambda one: (one.solved.accuracy, -one.solved.loss)), tried
