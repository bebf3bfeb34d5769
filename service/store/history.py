"""History on disk: what was changed in a folder that one server has alone, a line of JSON for each change.

    root/history/<number>.jsonl     the changes from that number on: 1, 2, 3, ... in their order
    root/history/of/<task>.jsonl    what the store had told from which the task was copied

A change is announced first: its line is on the disk before its manifest is written, and the manifest then names its
number. So a change that was made is never without its event, and the event of one that was cut off is not told, since
no manifest and no later event names it: see ``service.store.past``. Lines are only ever added; a full file is followed
by the next one, and when all are too large the oldest one goes.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Collection, Iterable
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import Final, NamedTuple

from adapters.atomic import replacing
from service.store.events import Cause, TaskEvent, numbered
from service.store.files import safe_name
from service.store.manifest import TaskInfo
from service.store.staging import sync_folder

FOLDER, BROUGHT = "history", "of"
DIGITS: Final = 16
FILE_BYTES: Final = 4 * 2**20
MAX_BYTES: Final = 2**30
KEPT_FILES: Final = 4
"""Files that were read last and are kept in memory: a page goes to and fro between some."""
TAIL_BYTES: Final = 64 * 1024
"""Enough of a file's end to have a whole line in it."""
_FIRST: Final = re.compile(r"([0-9]{16})\.jsonl")
_NUMBER: Final = re.compile(rb'^\{"id": ([0-9]{1,16}), ', re.MULTILINE)


class _File(NamedTuple):
    """A file as it was read last: where each number's line begins."""

    path: Path
    text: bytes
    lines: dict[int, int]

    def event(self, number: int) -> TaskEvent | None:
        """None where it has none, or its writer was cut off."""
        start = self.lines.get(number)
        if start is not None:
            with suppress(ValueError):
                return TaskEvent.parse(self.text[start : self.text.find(b"\n", start)])
        return None


class HistoryFiles:
    """Blocking, and raises OSError. Whoever adds holds the folder's write lock."""

    def __init__(self, root: Path, *, file_bytes: int = FILE_BYTES, max_bytes: int = MAX_BYTES) -> None:
        """A file that has ``file_bytes`` is followed by the next; all together have ``max_bytes`` and one file more."""
        self._folder, self._file_bytes, self._max_bytes = root / FOLDER, file_bytes, max_bytes
        self._known: tuple[Path, int, int] | None = None  # the last file, its size and the last number, as left here
        self._synced: Path | None = None  # a file that will be found after a power cut
        self._last_read: tuple[_File, ...] = ()

    def record(self, old: TaskInfo, new: TaskInfo, cause: Cause) -> TaskInfo:
        """Announce a change durably; the task as it is to be written then."""
        path, size, last = self._end()
        number = max(last, old.generation) + 1
        line = cause.event(old, new, number).line()
        if path is None or size >= self._file_bytes:
            path, size = self._folder / f"{number:0{DIGITS}}.jsonl", 0
            self._make_room()
        self._known = None
        size += self._append(path, line, size)
        self._known = path, size, number
        return numbered(new, number)

    def read(self, numbers: Collection[int]) -> dict[int, TaskEvent]:
        """The events that were announced under these numbers, and are there."""
        wanted, files = sorted(numbers), self.files()
        found = dict[int, TaskEvent]()
        for (first, path), (end, _) in pairwise([*files, (1 << 62, Path())]):
            here = wanted[bisect_left(wanted, first) : bisect_left(wanted, end)]
            if here:
                with suppress(FileNotFoundError):  # the oldest go when there are too many
                    file = self._read(path)
                    found |= {number: event for number in here if (event := file.event(number)) is not None}
        return found

    def brought(self, task: str) -> list[TaskEvent]:
        """What another store had told of a task that was copied from there, oldest first."""
        try:
            return [TaskEvent.parse(line) for line in self._of(task).read_bytes().splitlines()]
        except (FileNotFoundError, ValueError):
            return []

    def bring(self, task: str, events: Iterable[TaskEvent]) -> None:
        """Keep what another store tells of a task, before its copy is announced."""
        path = self._of(task)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(b"".join(event.line() for event in events))
        sync_folder(path.parent)

    def last(self) -> int:
        """The last number that was announced; 0 for none."""
        return self._end()[2]

    def _read(self, path: Path) -> _File:
        """The file as it is; from memory where nothing was added since."""
        known = next((file for file in self._last_read if file.path == path), None)
        if known is None or path.stat().st_size != len(known.text):
            text = path.read_bytes()
            known = _File(path, text, {int(found[1]): found.start() for found in _NUMBER.finditer(text)})
            others = (file for file in self._last_read if file.path != path)
            self._last_read = (known, *islice(others, KEPT_FILES - 1))
        return known

    def _of(self, task: str) -> Path:
        return self._folder / BROUGHT / f"{safe_name(task)}.jsonl"

    def files(self) -> list[tuple[int, Path]]:
        """The number that each begins with, in order."""
        try:
            paths = sorted(self._folder.iterdir())
        except FileNotFoundError:
            return []
        return [(int(found[1]), path) for path in paths if (found := _FIRST.fullmatch(path.name))]

    def _end(self) -> tuple[Path | None, int, int]:
        """The last file, its size, and the last number that was announced; another process may have added to it."""
        files = self.files()
        if not files:
            return None, 0, 0
        first, path = files[-1]
        size = path.stat().st_size
        if self._known is not None and self._known[:2] == (path, size):
            return self._known
        with path.open("rb") as file:
            file.seek(max(0, size - TAIL_BYTES))
            numbers = _NUMBER.findall(file.read())
        return path, size, int(numbers[-1]) if numbers else first

    def _make_room(self) -> None:
        paths = [path for _, path in self.files()]
        total = sum(path.stat().st_size for path in paths)
        for path in paths[:-1]:
            if total <= self._max_bytes:
                return
            total -= path.stat().st_size
            path.unlink(missing_ok=True)

    def _append(self, path: Path, line: bytes, size: int) -> int:
        """How many bytes it added; where that fails, nothing, or what no reader takes for a line."""
        path.parent.mkdir(exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        with os.fdopen(handle, "ab") as file:
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":  # its writer was cut off
                line = b"\n" + line
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), size)
                raise
        if self._synced != path:
            sync_folder(path.parent)
            sync_folder(path.parent.parent)
            self._synced = path
        return len(line)
