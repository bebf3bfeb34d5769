"""What is known of adapter files without opening them: the whole config for answers, a summary for lists.

It opens no file itself; ``service.store.catalogue`` does.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.config import AdapterConfig

LISTED_LABELS = 20
"""Labels of a task that a list shows; a page of tasks with thousands of classes each stays small."""
_CONFIG_BYTES, _LABEL_BYTES = 4096, 64
"""What a parsed config and each of its labels take in memory beside the label's characters: measured, rounded up."""


@dataclass(frozen=True)
class Description:
    """What a version's header says, the number of its parameters, and whether this server can run it."""

    config: AdapterConfig
    parameters: int
    fits: bool


class Summary(BaseModel):
    """What lists show of a file; ``config`` has its first labels and no training report."""

    model_config = ConfigDict(frozen=True)

    config: AdapterConfig
    classes: int
    parameters: int

    @classmethod
    def of(cls, config: AdapterConfig, parameters: int) -> Self:
        """Of a whole config."""
        short = config.model_copy(update={"labels": config.labels[:LISTED_LABELS], "training": {}})
        return cls(config=short, classes=len(config.labels), parameters=parameters)

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
            self._kept[digest] = Description(short, description.parameters, description.fits)
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


def _weight(config: AdapterConfig) -> int:
    return _CONFIG_BYTES + sum(_LABEL_BYTES + len(label) for label in config.labels)
