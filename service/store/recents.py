"""The last inputs of predictions and what was answered, for feedback: off unless a setting says how many are kept.

They lie in the data folder, so that every front end finds those of the others, and are gone when the server starts
again. No request's id is ever a path. Several processes may each have one over one folder; nothing here is durable.

    root/recent/<time in ns>-<digest of the request's id>      a line of JSON, then the bytes
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.errors import UnknownRequest
from service.store.recovery import RECENT
from service.store.staging import disk_errors

KEY_CHARS = 32
MAX_HEADER_BYTES = 1024 * 1024
NEW = ".new"

Said = Mapping[str, Any]
"""A label with its ``index`` and ``score``."""


@dataclass(frozen=True)
class Recent:
    """An input that is kept: ``answers`` has what each task said, best first. ``key`` stands for the request's id."""

    request_id: str
    key: str
    created: str
    answers: Mapping[str, Sequence[Said]]
    path: Path
    offset: int

    def read(self) -> bytes:
        """The picture or clip. Raises UnknownRequest where it has just gone."""
        with disk_errors():
            try:
                return self.path.read_bytes()[self.offset :]
            except FileNotFoundError as error:
                raise UnknownRequest("this input was kept until a moment ago; send the picture itself") from error

    def sureness(self, task: str) -> float:
        """The best score that the task gave."""
        return max((float(one["score"]) for one in self.answers[task]), default=0.0)


class Recents:
    """At most ``most`` inputs and ``most_bytes`` bytes, of all processes together; the oldest go. Blocking."""

    def __init__(self, root: Path, most: int, most_bytes: int) -> None:
        self._folder, self._most, self._most_bytes = root / RECENT, most, most_bytes

    def keep(self, request_id: str, data: bytes, answers: Mapping[str, Sequence[Said]]) -> None:
        """Raises a storage error; an input that is too large is left out."""
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        header = json.dumps({"request_id": request_id, "created": created, "answers": answers}).encode() + b"\n"
        if len(header) + len(data) > self._most_bytes or len(header) > MAX_HEADER_BYTES:
            return
        path = self._folder / f"{time.time_ns():020d}-{key_of(request_id)}"
        new = path.with_suffix(NEW)
        with disk_errors():
            self._folder.mkdir(mode=0o700, exist_ok=True)
            try:
                with new.open("xb") as file:
                    file.write(header)
                    file.write(data)
                new.replace(path)
            except OSError:
                new.unlink(missing_ok=True)
                raise
            self._prune()

    def find(self, task: str, key: str) -> Recent:
        """The last input of the request with that key that the task answered. Raises UnknownRequest."""
        with disk_errors():
            for path in reversed(self._paths()):
                if path.name.endswith(f"-{key}") and (found := _read(path)) is not None and task in found.answers:
                    return found
        raise UnknownRequest(
            f"no input of this request is kept for task '{task}': it is not among the last {self._most} (keep_recent); "
            "send the picture itself",
            field="request_id", limit=self._most,
        )  # fmt: skip

    def unsure(self, task: str, most: int) -> list[Recent]:
        """Those that the task was least sure of, the least sure first."""
        return sorted(self._of(task), key=lambda one: one.sureness(task))[:most]

    def forget(self, task: str, key: str | None = None) -> None:
        """Remove a task's inputs, or that of one request."""
        for found in self._of(task):
            if key in (None, found.key):
                with disk_errors():
                    found.path.unlink(missing_ok=True)

    def _of(self, task: str) -> Iterator[Recent]:
        with disk_errors():
            paths = self._paths()
        for path in paths:
            found = _read(path)
            if found is not None and task in found.answers:
                yield found

    def _paths(self) -> list[Path]:
        """The oldest first."""
        with suppress(FileNotFoundError):
            return [self._folder / name for name in sorted(os.listdir(self._folder)) if not name.endswith(NEW)]  # noqa: PTH208
        return []

    def _prune(self) -> None:
        kept = []
        for path in reversed(self._paths()):
            with suppress(FileNotFoundError):
                kept.append((path, path.stat().st_size))
        total = 0
        for number, (path, size) in enumerate(kept):
            total += size
            if number >= self._most or total > self._most_bytes:
                path.unlink(missing_ok=True)


def key_of(request_id: str) -> str:
    """What stands for a request's id in names and addresses."""
    return hashlib.sha256(request_id.encode()).hexdigest()[:KEY_CHARS]


def _read(path: Path) -> Recent | None:
    """None where it has just gone, or is none of ours."""
    try:
        with path.open("rb") as file:
            header = file.readline(MAX_HEADER_BYTES + 1)
        told = json.loads(header)
        key = path.name.rpartition("-")[2]
        return Recent(told["request_id"], key, told["created"], told["answers"], path, len(header))
    except (OSError, ValueError, KeyError, TypeError):
        return None
