"""What the tables of docs/RESULTS.md share: their options, rows of trials over seeds, and words for both.

It knows trials and results; it knows no set and no method.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.ledger import RESULTS, Ledger, Result
from benchmarks.page import Table, put
from benchmarks.sets import unpack, written
from benchmarks.trial import WORK, Trial, run

SEEDS = (0, 1, 2)
QUICK_STEPS = 20
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """A line of a table: its name, and what is trained, with seed 0."""

    name: str
    trial: Trial


class Bench:
    """One command: its options, its ledger, and what it writes."""

    def __init__(self, name: str, about: str | None, arguments: Sequence[str] | None = None) -> None:
        self._name = name
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about,
                                         formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        parser.add_argument("--data", type=Path, required=True, help="folder of the archives and of the ViT-S")
        parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each (default 2)")
        parser.add_argument("--seeds", type=int, default=len(SEEDS), help="of each row (default %(default)s)")
        parser.add_argument("--quick", action="store_true",
                            help=f"one seed of {QUICK_STEPS} steps, into no file: does it run at all?")  # fmt: skip
        parser.add_argument("--show", action="store_true", help="train nothing; write what is there")
        self.options = parser.parse_args(arguments)
        self.seeds = SEEDS[:1] if self.options.quick else tuple(range(self.options.seeds))
        self.ledger = self.ledger_of(name)

    def ledger_of(self, name: str, also: Ledger | None = None) -> Ledger:
        """Results of a command; of a quick run they are kept apart."""
        folder = WORK / "quick" if self.options.quick else RESULTS
        return Ledger(folder / f"{name}.json", f"python -m benchmarks.{name} --data FOLDER", also)

    def paced(self, trial: Trial) -> Trial:
        return replace(trial, steps=QUICK_STEPS) if self.options.quick and trial.method != "linear" else trial

    def run(self, title: str, trials: Iterable[Trial]) -> None:
        """All of them, each once; the order is kept, so that an early end has every row of the first seed."""
        wanted = [self.paced(trial) for trial in trials]
        if self.options.show:
            return
        WORK.mkdir(exist_ok=True)
        unpack(self.options.data, WORK)
        for name in dict.fromkeys(trial.data for trial in wanted):
            written(name, WORK)
        self.ledger.run(title, wanted, self.options.jobs, partial(run, data=self.options.data))

    def results(self, trial: Trial) -> list[Result]:
        """Of the seeds that have run."""
        seeded = [self.paced(replace(trial, seed=seed)) for seed in self.seeds]
        return [self.ledger[one] for one in seeded if one in self.ledger]

    def put(self, section: str, text: str, table: Table) -> None:
        """Into the page, or of a quick run on the terminal alone."""
        if self.options.quick:
            Console(soft_wrap=True, highlight=False).print(f"{text}\n\n{table.markdown()}\n", markup=False)
        else:
            put(section, text, table)

    @property
    def counted(self) -> str:
        """The seeds, in words."""
        return "one seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"

    def place(self) -> str:
        """Where and when, in words."""
        at, jobs = self.ledger.machine, self.options.jobs
        side_by_side = "one training" if jobs == 1 else f"{jobs} trainings"
        return (
            f"{at['device']}, {side_by_side} at a time with one thread each, torch {at['torch']}, "
            f"Python {at['python']}, {at['date']}"
        )


def over_seeds(rows: Sequence[Row], seeds: Sequence[int]) -> list[Trial]:
    """Seed by seed."""
    return [replace(row.trial, seed=seed) for seed in seeds for row in rows]


def mean(results: Sequence[Result], key: str = "accuracy") -> float:
    return float(statistics.mean(result[key] for result in results))


def spread(results: Sequence[Result], key: str = "accuracy") -> str:
    """``95.1% (94.8 to 95.6)``, of three seeds; of one the number alone."""
    values = [100 * result[key] for result in results]
    ends = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}%{ends}"


def costs(results: Sequence[Result]) -> dict[str, Any]:
    """The least time, since other work can only add to it, and the largest memory; as text."""
    first = results[0]
    return {
        "share": f"{first['share']:.2%}",
        "file": f"{first['file_bytes'] / 1e6:.2f}" if "file_bytes" in first else "none",
        "seconds": f"{min(r['cpu_seconds'] for r in results):,.0f}",
        "peak": f"{max(r['peak'] for r in results) / MIB:,.0f}",
        "growth": f"{max(r['growth'] for r in results) / MIB:,.0f}",
        "kept": f"{first['kept'] / MIB:,.0f}" if "kept" in first else "0",
    }
