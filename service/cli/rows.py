"""A file of answers, a row for each picture or clip: written whole rows at a time, and gone on with after any end.

It knows CSV and JSON lines, and what a row must have; it asks nobody.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from adapters.errors import AdaptError
from adaptserve_client import BatchOutcome, ProblemError

Form = Literal["csv", "jsonl"]


class WrongFiles(AdaptError):
    """The files that are named, or the one with rows, are not what can be worked with."""


@dataclass(frozen=True)
class Run:
    """What all rows of a file have in common. ``labels``: how many of each picture or clip."""

    task: str
    version: int
    labels: int


class CsvRows:
    """``file``, the best labels and their scores, ``task``, ``version``, ``error``."""

    def __init__(self, run: Run) -> None:
        self._run = run
        more = [f"{name}_{place}" for place in range(2, run.labels + 1) for name in ("label", "score")]
        self._columns = ["file", "label", "score", *more, "task", "version", "error"]
        self.head = _csv(self._columns)

    def row(self, outcome: BatchOutcome) -> str:
        """A line, or several where a name has line breaks."""
        best = outcome.answer.predictions[: self._run.labels] if outcome.answer else ()
        cells: list[object] = [cell for one in best for cell in (one.label, one.score)]
        cells += [""] * (2 * (self._run.labels - len(best)))
        error = "" if outcome.error is None else reason(outcome.error)
        return _csv([outcome.name, *cells, self._run.task, self._run.version, error])

    def read(self, record: str) -> tuple[str, str, int]:
        """File, task and version of a row. Raises ValueError."""
        (cells,) = csv.reader(io.StringIO(record, newline=""), strict=True)
        if len(cells) != len(self._columns):
            raise ValueError(f"{len(cells)} cells")
        return cells[0], cells[-3], int(cells[-2])

    def whole(self, record: bytes, /) -> bool:
        """False while a quote is open: the line goes on."""
        return record.count(b'"') % 2 == 0


class JsonRows:
    """The server's answer with ``file`` before it; or ``file``, ``task``, ``version`` and ``problem`` or ``error``."""

    head = ""

    def __init__(self, run: Run) -> None:
        self._run = run

    def row(self, outcome: BatchOutcome) -> str:
        """One line."""
        found: dict[str, Any] = {"file": outcome.name}
        if outcome.answer:
            found |= outcome.answer.raw
        else:
            found |= {"task": self._run.task, "version": self._run.version}
            if isinstance(outcome.error, ProblemError):
                found["problem"] = outcome.error.members
            elif outcome.error is not None:
                found["error"] = reason(outcome.error)
        text = json.dumps(found, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError:  # a file's name that is no text
            text = json.dumps(found)
        return text + "\n"

    def read(self, record: str) -> tuple[str, str, int]:
        """File, task and version of a row. Raises ValueError."""
        found = json.loads(record)
        try:
            return str(found["file"]), str(found["task"]), int(found["version"])
        except (KeyError, TypeError) as error:
            raise ValueError("members are missing") from error

    def whole(self, _: bytes) -> bool:
        """A line is a row."""
        return True


@dataclass
class Rows:
    """An open file, or stdout; ``there`` has the names that had a row before."""

    form: CsvRows | JsonRows
    file: IO[bytes]
    there: set[str] = field(default_factory=set)

    def write(self, outcome: BatchOutcome) -> None:
        """A whole row, out of this process."""
        self.text(self.form.row(outcome))

    def text(self, text: str) -> None:
        """Names of files that are no text come out as the bytes that they are."""
        self.file.write(text.encode("utf-8", "surrogateescape"))
        self.file.flush()


@contextmanager
def rows_in(path: Path, form: CsvRows | JsonRows, run: Run, *, resume: bool) -> Iterator[Rows]:
    """A new file, or one to go on with: what a kill left of a row is cut off. Raises WrongFiles, OSError."""
    exists = path.exists()
    if exists and path.is_file() and not resume:
        raise WrongFiles(f"{path} is there already; go on with it by --resume, or give --out another name")
    with path.open(("r+b" if path.is_file() else "wb") if exists else "xb") as file:
        _lock(file, path)
        rows = Rows(form, file)
        if exists and path.is_file():
            file.truncate(_read(rows, path, run))
            file.seek(0, io.SEEK_END)
        if not exists or not file.seekable() or file.tell() == 0:
            rows.text(form.head)
        yield rows


def reason(error: Exception) -> str:
    """One line: what the server says, or the system."""
    if isinstance(error, ProblemError):
        text = f"{error.detail} ({error.status})"
    elif isinstance(error, OSError):
        text = (error.strerror or str(error)).lower()
    else:
        text = str(error)
    return " ".join(text.split())


def _csv(cells: list[Any]) -> str:
    line = io.StringIO(newline="")
    bare = any("\r" in str(cell) for cell in cells)  # the module quotes these only where they end its lines
    csv.writer(line, lineterminator="\n", quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL).writerow(cells)
    return line.getvalue()


def _lock(file: IO[bytes], path: Path) -> None:
    """Two commands at once would mix their rows."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise WrongFiles(f"another command is writing to {path}; wait for it, or give --out another name") from error
    except OSError:  # a file system without locks, a device
        pass


def _read(rows: Rows, path: Path, run: Run) -> int:
    """Note the names of all whole rows; where the last of them ends. Raises WrongFiles."""
    form, end, number, record = rows.form, 0, 0, b""
    for line in rows.file:
        record += line
        if not record.endswith(b"\n") or not form.whole(record):
            continue
        number += 1
        text = record.decode("utf-8", "surrogateescape")
        if number == 1 and form.head:
            if text.rstrip("\r\n") != form.head.rstrip("\n"):
                raise WrongFiles(
                    f"{path} begins with '{text[:80].strip()}', not with '{form.head.strip()}'; give the same --top-k "
                    "and --format as before, or --out another name"
                )
        else:
            _take(rows, path, run, text, number)
        end += len(record)
        record = b""
    begin = (form.head or '{"file": ').encode()
    if end == 0 and not record.startswith(begin[: len(record)]):
        raise WrongFiles(f"{path} holds no rows of this command; give --out another name")
    return end


def _take(rows: Rows, path: Path, run: Run, text: str, number: int) -> None:
    try:
        name, task, version = rows.form.read(text)
    except (ValueError, csv.Error) as error:
        raise WrongFiles(f"row {number} of {path} is none of this command: {text[:80].strip()}") from error
    if (task, version) != (run.task, run.version):
        hint = f"--version {version}" if task == run.task else f"--task {task}"
        raise WrongFiles(
            f"row {number} of {path} is of {task} version {version}, and {run.task} version {run.version} would go on "
            f"with it; add {hint}, or give --out another name"
        )
    rows.there.add(name)
