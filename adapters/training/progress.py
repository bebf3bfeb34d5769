"""Teller: how far a long command is, as a bar where a person looks and as lines in a file or a pipe.

It knows shares of stages; it does not know what is done in them.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

EVERY_S = 30.0
"""A stage that has nothing else to say gives a line so often."""


class Teller:
    """Takes what is to be told; without ``lines`` and ``bar`` it keeps it to itself, but for warnings.

    ``lines`` gets a line for everything reached and for a stage's share now and then; ``bar`` shows shares alone.
    """

    def __init__(
        self,
        lines: TextIO | None = None,
        bar: Progress | None = None,
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines, self._bar, self._every_s, self._clock = lines, bar, every_s, clock
        self._rows: dict[str, TaskID] = {}
        self._stage, self._from, self._began, self._told = "", 0.0, 0.0, 0.0

    def at(self, stage: str, share: float, note: str = "") -> None:
        """``share`` of a stage, 0 to 1, is done."""
        words = f"{stage}, {note}" if note else stage
        self._enter(stage, share)
        if self._bar:
            self._bar.update(self._rows[stage], completed=share, description=words)
        if self._clock() - self._told >= self._every_s:
            self._print(f"{stage} {share:.0%}{', ' + note if note else ''}", share)

    def reached(self, stage: str, share: float, line: str) -> None:
        """Something worth a line of its own, such as an epoch's score, after ``share`` of a stage."""
        self._enter(stage, share)
        self._print(line, share)

    def scored(self, history: Sequence[Mapping[str, float]], epochs: int) -> None:
        """Some of so many epochs are done, and were scored; ``history`` as of ``FitResult``."""
        last = history[-1]
        line = f"epoch {last['epoch']}/{epochs}: loss {last['loss']:.3f}, held-out accuracy {last['accuracy']:.2%}"
        self.reached("training", last["epoch"] / epochs, line)

    def note(self, message: str) -> None:
        """A line for everybody: how the data was understood, say."""
        line = " ".join(message.split())
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._print(line, 1.0)

    def warn(self, message: str) -> None:
        """A line on stderr that begins with ``warning``."""
        line = f"warning: {' '.join(message.split())}"
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(_plain(line, sys.stderr), file=sys.stderr, flush=True)  # noqa: T201

    def _enter(self, stage: str, share: float) -> None:
        if stage != self._stage:
            self._stage, self._from, self._began, self._told = stage, share, self._clock(), self._clock()
        if self._bar and stage not in self._rows:
            self._rows[stage] = self._bar.add_task(stage, total=1.0)

    def _print(self, line: str, share: float) -> None:
        self._told = self._clock()
        if self._lines is None:
            return
        done = share - self._from
        left = (self._told - self._began) * (1 - share) / done if done > 0 else 0.0
        told = f"{line}, {duration(left)} left" if left else line
        try:
            print(_plain(told, self._lines), file=self._lines, flush=True)
        except OSError:  # a pipe that nobody reads any more, a full disk: no reason to end a training
            self._lines = None


def _plain(line: str, stream: TextIO) -> str:
    """Without what a terminal would act on or the stream cannot write: a folder's name may hold any byte."""
    plain = "".join(c if c.isprintable() else "?" for c in line)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return plain.encode(encoding, "backslashreplace").decode(encoding)


def duration(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def telling() -> Iterator[Teller]:
    """A teller for this process: a bar if stderr is a terminal, lines if what is printed goes elsewhere.

    Lines go to stdout, or to stderr where only that is no terminal. A pipe may end in the same terminal (``| tee``),
    where a bar would be drawn over its lines, so beside a pipe there is none.
    """
    lines = next((stream for stream in (sys.stdout, sys.stderr) if not stream.isatty()), None)
    if not sys.stderr.isatty() or _is_pipe(sys.stdout):
        yield Teller(lines, every_s=EVERY_S)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Teller(lines, bar, every_s=EVERY_S)


def _is_pipe(stream: TextIO) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError, io.UnsupportedOperation):  # a stand-in, such as a test's
        return False
