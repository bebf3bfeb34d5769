"""Score an adapter on files as the server would: packed into a slot, banked, many rows in one batch.

It knows the serving forward; it does not know how the adapter was made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from adapters.backbone import Backbone
from adapters.bank import PAGE, Slabs, pack
from adapters.file import Adapter
from adapters.forward import BankedForward, Job
from adapters.training.decoding import MediaExamples
from adapters.training.fit import Examples

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


def served_logits(adapter: Adapter, backbone: Backbone, data: Examples, workers: int = 0) -> Tensor:
    """Logits (items, classes) float32 on the CPU, in the order of the data."""
    rank = max((site.rank for site in adapter.config.sites), default=1)
    packed = pack(adapter, backbone.layout, rank, backbone.dtype)
    pages = tuple(range(1, 1 + len(packed.pages)))
    slabs = Slabs(
        backbone.layout, slots=1, rank=rank, pages=-(-len(adapter.config.labels) // PAGE), dtype=backbone.dtype,
        device=backbone.device,
    )  # fmt: skip
    slabs.write(1, pages, packed)
    forward = BankedForward(backbone, slabs)
    loader = DataLoader(data, batch_size=max(1, BATCH_ROWS // adapter.config.frames), num_workers=workers)
    found = [logits for pixels, _ in loader for logits in forward([Job(p, 1, pages, packed.meta) for p in pixels])]
    return torch.from_numpy(np.stack(found))


def scored(logits: Tensor, labels: tuple[str, ...], data: MediaExamples) -> list[Scored]:
    """Probabilities as the server computes them: in float64, equal ones in the order of the labels."""
    found = []
    for example, row in zip(data.examples, logits.double().softmax(1), strict=True):
        order = torch.argsort(row, descending=True, stable=True)[:MAX_SCORES].tolist()
        scores = {labels[i]: row[i].item() for i in order}
        found.append(Scored(example.name, example.label, labels[order[0]], scores))
    return found


def accuracy(examples: list[Scored]) -> float:
    """Share of examples whose best label is the right one."""
    return sum(e.label == e.predicted for e in examples) / len(examples)
