"""Run many trials, each once: results lie in one JSON file, which an interrupted command goes on from.

It knows trials as keys and results as JSON; it knows no table and no figure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.common import machine
from benchmarks.trial import ROOT, Trial

RESULTS = ROOT / "benchmarks" / "results"
Result = dict[str, Any]


class Ledger:
    """Results by trial, kept in ``path``: replaced whole after each trial. Those of ``also`` need not run again."""

    def __init__(self, path: Path, command: str, also: Ledger | None = None) -> None:
        self.path, self._also = path, also
        self._held: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"trials": {}}
        self._held |= {"command": command, "machine": self._held.get("machine") or machine(torch.device("cpu"))}

    @property
    def machine(self) -> dict[str, str | int]:
        """Where and when the first of the trials ran."""
        found: dict[str, str | int] = self._held["machine"]
        return found

    def __contains__(self, trial: Trial) -> bool:
        return trial.key in self._held["trials"] or (self._also is not None and trial in self._also)

    def __getitem__(self, trial: Trial) -> Result:
        if self._also is not None and trial in self._also:
            return self._also[trial]
        found: Result = self._held["trials"][trial.key]
        return found

    def run(self, title: str, trials: Iterable[Trial], jobs: int, runner: Callable[[Trial], Result]) -> None:
        """Run what is not there yet, ``jobs`` at a time. Raises RuntimeError at the first that fails."""
        wanted = list(dict.fromkeys(trials))
        missing = [t for t in wanted if t not in self]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar, ThreadPoolExecutor(jobs) as pool:
            line = bar.add_task(title, total=len(wanted), completed=len(wanted) - len(missing))
            running = {pool.submit(runner, trial): trial for trial in missing}
            try:
                for done in as_completed(running):
                    self._add(running[done], done.result())
                    bar.advance(line)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _add(self, trial: Trial, result: Result) -> None:
        fingerprint, held = result.pop("fingerprint"), self._held.setdefault("fingerprints", {})
        if held.setdefault(trial.backbone, fingerprint) != fingerprint:
            raise RuntimeError(f"{self.path} holds results of another backbone; delete it to begin anew")
        self._held["trials"][trial.key] = result
        write_json(self.path, self._held)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n")
    part.replace(path)
