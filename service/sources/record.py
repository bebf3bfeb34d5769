"""What was taken from a source before, kept in the data folder, so that a restart takes nothing twice.

It may be lost: then files are read again, and what a task has already changes nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapters.atomic import replacing

log = logging.getLogger(__name__)


class Record:
    """JSON values by name, of one ``place``; those of another one are forgotten. For one thread at a time."""

    def __init__(self, file: Path, place: str, *, most: int) -> None:
        """``most`` entries are kept, the last ones."""
        self._file, self._place, self._most = file, place, most
        self._kept: dict[str, Any] = {}
        self._changed = False
        with suppress(OSError, ValueError, TypeError, AttributeError):
            told = json.loads(file.read_bytes())
            if told["place"] == place:
                self._kept = dict(told["taken"].items())

    def get(self, name: str) -> Any:
        return self._kept.get(name)

    def put(self, name: str, value: Any) -> None:
        if self._kept.pop(name, None) is None and len(self._kept) >= self._most:
            del self._kept[next(iter(self._kept))]
        self._kept[name] = value
        self._changed = True

    def keep(self, names: Mapping[str, Any]) -> None:
        """Forget all others."""
        kept = {name: value for name, value in self._kept.items() if name in names}
        self._changed = self._changed or len(kept) != len(self._kept)
        self._kept = kept

    def save(self) -> None:
        """Where the disk does not take it, it is tried again the next time."""
        if not self._changed:
            return
        content = json.dumps({"place": self._place, "taken": self._kept})
        self._changed = False
        try:
            self._file.parent.mkdir(exist_ok=True)
            with replacing(self._file) as temporary:
                temporary.write_text(content)
        except OSError as error:
            self._changed = True
            log.warning("what was taken from sources cannot be written down (%s)", error.strerror)
