"""Who computes what a training does not train: the frozen backbone's vectors, and answers as they are served.

Usually the backbone at hand; a server's trainer asks the engine that serves the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from adapters.backbone import Backbone
from adapters.config import AdapterConfig, Pool
from adapters.file import Adapter
from adapters.training.decoding import MediaExamples
from adapters.training.score import served_logits
from adapters.training.start import Frozen, frozen

OnBatch = Callable[[float], None]
"""Gets the share that is done."""


class Computing(Protocol):
    """``workers``: threads that decode what is not in memory."""

    def frozen(
        self, config: AdapterConfig, pools: Sequence[Pool], data: MediaExamples, workers: int, on_batch: OnBatch
    ) -> Frozen:
        """What ``start.frozen`` gives."""
        ...

    def logits(self, adapter: Adapter, data: MediaExamples, workers: int, on_batch: OnBatch) -> Tensor:
        """What ``score.served_logits`` gives."""
        ...


class Here:
    """See ``Computing``: on the backbone that is trained on."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def frozen(
        self, config: AdapterConfig, pools: Sequence[Pool], data: MediaExamples, workers: int, on_batch: OnBatch
    ) -> Frozen:
        return frozen(self._backbone, config, pools, data, workers, on_batch)

    def logits(self, adapter: Adapter, data: MediaExamples, workers: int, on_batch: OnBatch) -> Tensor:
        return served_logits(adapter, self._backbone, data, workers, on_batch)
