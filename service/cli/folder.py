"""`predict` on many: folders and patterns -> files, and the answers of a running server into rows, as they come.

It does not know what a row looks like.
"""

from __future__ import annotations

import glob
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import typer

from adapters.training.folders import files_in
from adapters.training.progress import Teller, telling
from adaptserve_client import AdaptServeError, BatchOptions, Client
from service.cli.console import complain, one_line_errors, out
from service.cli.rows import CsvRows, Form, JsonRows, Rows, Run, WrongFiles, reason, rows_in
from service.exits import FAILED, INTERRUPTED, USAGE

PICTURES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif",
    ".avifs", ".heic", ".heif", ".hif",
}  # fmt: skip
CLIPS = {
    ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".webm", ".mkv", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg",
    ".mpe", ".vob",
}  # fmt: skip
RETRIES = 20
"""A server that is busy or starts again is waited for: some minutes."""
SHOWN = 5
JSON_SUFFIXES = (".jsonl", ".ndjson")


def many(paths: Sequence[str]) -> bool:
    """Whether this asks for rows: more than one file, or something that may be more."""
    return len(paths) > 1 or Path(paths[0]).is_dir() or _is_pattern(paths[0])


def predict_all(
    paths: Sequence[str],
    task: str,
    url: str,
    key: str | None,
    file: Path | None,
    form: Form | None,
    *,
    top_k: int,
    version: int | None,
    resume: bool,
    priority: int | None = None,
) -> None:
    """Ask about all of them, and write rows to ``file`` or stdout. Ends the command with its exit code."""
    if resume and file is None:
        complain("--resume goes on with a file of rows; name it by --out")
        raise typer.Exit(USAGE)
    with one_line_errors():
        files, others = files_of(paths)
        with Client(url, key, retries=0) as client:
            run = _run(client, task, version, top_k)
        how = form or ("jsonl" if file and file.suffix.lower() in JSON_SUFFIXES else "csv")
        rows_as = JsonRows(run) if how == "jsonl" else CsvRows(run)
        with _rows(file, rows_as, run, resume) as rows, Client(url, key, retries=RETRIES) as client:
            todo = [name for name in files if name not in rows.there]
            if rows.there and len(todo) == len(files):
                raise WrongFiles(f"{file} has rows of other files alone; name the files as they were named for it")
            if others:
                complain(_left_out(others), "note")
            options: BatchOptions = {"top_k": top_k, "version": run.version}
            if priority is not None:
                options["priority"] = priority
            labelling = _Labelling(client, run, rows, options, file, len(files) - len(todo))
            labelling.work(todo)
    if labelling.failed:
        raise typer.Exit(FAILED)


def files_of(paths: Sequence[str]) -> tuple[list[str], int]:
    """The files that are meant, each once, in order; and how many in folders have no suffix of a picture or clip.

    A path that exists is that file or folder, whatever is in its name; else it is a pattern, with ``**`` for any
    folders. A file that is named is taken whatever its suffix. Raises WrongFiles where there is nothing, and
    TrainingError for a folder that cannot be read.
    """
    found: dict[str, None] = {}
    others = 0
    for given in paths:
        meant = [given]
        if _is_pattern(given):
            meant = sorted(glob.glob(given, recursive=True))  # noqa: PTH207  pathlib's has other rules for what is hidden
            if not meant:
                raise WrongFiles(f"nothing matches {given}")
        for path in map(Path, meant):
            if not path.is_dir():
                found[str(path)] = None
                continue
            for inner in files_in(path):
                if inner.exists() and not inner.is_file():
                    continue  # a pipe or a socket would be waited for
                if inner.suffix.lower() in PICTURES | CLIPS:
                    found[str(inner)] = None
                else:
                    others += 1
    if not found:
        raise WrongFiles(f"there is no picture or clip in {', '.join(paths)}")
    return list(found), others


def _left_out(count: int) -> str:
    if count == 1:
        return "1 file in folders is no picture or clip by its name, and is left out"
    return f"{count} files in folders are no pictures or clips by their names, and are left out"


def _is_pattern(path: str) -> bool:
    return glob.has_magic(path) and not Path(path).exists()


def _run(client: Client, task: str, version: int | None, top_k: int) -> Run:
    """What answers, fixed now, so that a version that is activated meanwhile does not answer for the rest."""
    shown = client.task(task)
    number = version or shown.version
    if number is None:
        raise WrongFiles(f"no version of '{task}' is active; name one by --version, or activate one")
    if version is not None:
        client.version(task, version)
    return Run(task, number, min(top_k, shown.classes or top_k))


@contextmanager
def _rows(file: Path | None, form: CsvRows | JsonRows, run: Run, resume: bool) -> Iterator[Rows]:
    if file is not None:
        with rows_in(file, form, run, resume=resume) as rows:
            yield rows
        return
    rows = Rows(form, cast("IO[bytes]", sys.stdout.buffer))
    rows.text(form.head)
    yield rows


@dataclass
class _Labelling:
    """The work itself, what came of it, and what is said of it. ``there``: files that had a row before."""

    client: Client
    run: Run
    rows: Rows
    options: BatchOptions
    file: Path | None
    there: int
    labelled: int = 0
    failed: int = 0

    def work(self, todo: Sequence[str]) -> None:
        """Ask about all, and say how it ended, however it does."""
        began = time.monotonic()
        try:
            # Beside rows on stdout nothing else may be said there.
            with telling() if self.file else nullcontext(Teller()) as teller:
                self._ask(todo, teller, began)
        except KeyboardInterrupt:
            complain(f"interrupted{self._left(todo)}", "stopped")
            raise typer.Exit(INTERRUPTED) from None
        except AdaptServeError:
            complain(f"the server answers no more{self._left(todo)}", "stopped")
            raise
        finally:
            self._tell(time.monotonic() - began)

    def _ask(self, todo: Sequence[str], teller: Teller, began: float) -> None:
        run, total = self.run, self.there + len(todo)
        for outcome in self.client.batch(todo, task=run.task, **self.options):
            self.rows.write(outcome)
            if outcome.error is None:
                self.labelled += 1
            else:
                self.failed += 1
                if self.failed <= SHOWN:
                    teller.warn(f"{outcome.name}: {reason(outcome.error)}")
            done = self.labelled + self.failed
            rate = done / max(time.monotonic() - began, 1e-3)
            teller.at(f"labelling {total} files", (self.there + done) / total, f"{rate:.1f} a second")

    def _left(self, todo: Sequence[str]) -> str:
        left = len(todo) - self.labelled - self.failed
        if self.file is None:
            return f"; {left} files have no row"
        return f"; {left} files have no row in {self.file}, go on with --resume"

    def _tell(self, seconds: float) -> None:
        done = self.labelled + self.failed
        had = f", {self.there} were there before" if self.there else ""
        line = (
            f"{self.labelled} labelled, {self.failed} failed{had}: {done / max(seconds, 1e-3):.1f} a second by "
            f"{self.run.task} version {self.run.version}"
        )
        if self.file is None:
            complain(line, "done")
        else:
            out().print(f"{line}, rows in {self.file}", markup=False)
