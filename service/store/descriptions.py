"""What is known of adapter files without opening them: the whole config for answers, a summary for lists.

It opens no file itself; ``service.store.catalogue`` does.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.config import AdapterConfig
from adapters.header import Header

LISTED_LABELS = 20
"""Labels of a task that a list shows; a page of tasks with thousands of classes each stays small."""
_CONFIG_BYTES, _LABEL_BYTES = 4096, 64
"""What a parsed config and each of its labels take in memory beside the label's characters: measured, rounded up."""


@dataclass(frozen=True)
class Description:
    """What a version's header says, the number of its parameters, and whether this server can run it.

    ``accuracy`` is that on held-out examples, where the file tells it.
    """

    config: AdapterConfig
    parameters: int
    fits: bool
    accuracy: float | None = None

    @classmethod
    def of(cls, header: Header, *, fits: bool) -> Self:
        return cls(header.config, header.parameters, fits, _accuracy(header.config))


class Summary(BaseModel):
    """What lists show of a file; ``config`` has its first labels and no training report.

    ``accuracy`` has no default: what was written before it was told is read anew.
    """

    model_config = ConfigDict(frozen=True)

    config: AdapterConfig
    classes: int
    parameters: int
    accuracy: float | None

    @classmethod
    def of(cls, known: Description) -> Self:
        config = known.config
        short = config.model_copy(update={"labels": config.labels[:LISTED_LABELS], "training": {}})
        return cls(config=short, classes=len(config.labels), parameters=known.parameters, accuracy=known.accuracy)

    @classmethod
    def read(cls, text: str) -> Self | None:
        """What ``text`` made; None for what another release made and this one does not know."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None

    def text(self) -> str:
        """JSON, a few hundred bytes."""
        return self.model_dump_json(exclude_defaults=True)


class Descriptions:
    """Descriptions by digest, the least recently used ones dropped beyond ``max_bytes``. Any thread may call."""

    def __init__(self, max_bytes: int) -> None:
        self._max, self._bytes = max_bytes, 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Description] = OrderedDict()

    def get(self, digest: str) -> Description | None:
        with self._lock:
            known = self._kept.get(digest)
            if known is not None:
                self._kept.move_to_end(digest)
            return known

    def keep(self, digest: str, description: Description) -> None:
        """Remember what a file says; the training report, which nothing here reads, is left out."""
        short = description.config.model_copy(update={"training": {}})
        with self._lock:
            self._drop(digest)
            self._kept[digest] = replace(description, config=short)
            self._bytes += _weight(short)
            while self._bytes > self._max:
                self._drop(next(iter(self._kept)))

    def forget(self, digest: str) -> None:
        with self._lock:
            self._drop(digest)

    def _drop(self, digest: str) -> None:
        gone = self._kept.pop(digest, None)
        if gone is not None:
            self._bytes -= _weight(gone.config)


def _accuracy(config: AdapterConfig) -> float | None:
    """Held-out accuracy as training writes it; a file may hold anything under that name."""
    told = config.training.get("held_out_accuracy")
    return float(told) if isinstance(told, int | float) and not isinstance(told, bool) and 0 <= told <= 1 else None


def _weight(config: AdapterConfig) -> int:
    return _CONFIG_BYTES + sum(_LABEL_BYTES + len(label) for label in config.labels)
