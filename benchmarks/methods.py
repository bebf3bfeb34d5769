"""What each method is worth: linear, VPT, AdaptFormer, LoRA and full tuning on the demo backbone, three seeds each.

``python -m benchmarks.methods`` trains, prints the table and puts it into docs/RESULTS.md. Every learning rate is the
best of two or three on a part of the training data; held-out data gives the score after the last epoch. (That the rates
in ``DIGITS`` are these, and are chosen at the final pace, was decided after held-out scores: docs/RESULTS.md tells.)
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.ledger import RESULTS, Ledger, Result
from benchmarks.page import Table, put
from benchmarks.trial import Trial

SEEDS = (0, 1, 2)
EPOCHS, BATCH = 1, 8
MIB = 2**20


@dataclass(frozen=True)
class Pace:
    """How long every method trains."""

    epochs: int = EPOCHS
    batch: int = BATCH


@dataclass(frozen=True)
class Row:
    """A line of the table. Rows with the same ``rates_of`` share the learning rate that was chosen for one of them."""

    name: str
    options: dict[str, Any]
    rates_of: str
    rates: tuple[float, ...]

    def trial(self, lr: float, pace: Pace, **more: Any) -> Trial:
        options: dict[str, Any] = {"task": "digits", "lr": lr, "epochs": pace.epochs, "batch": pace.batch}
        return Trial(**options | self.options | more)


DIGITS = (
    Row("linear", {"method": "linear"}, "linear", (1e-2, 3e-2)),
    Row("VPT, 10 prompts per block", {"method": "vpt"}, "vpt", (3e-3, 1e-2, 3e-2)),
    Row("AdaptFormer, rank 4", {"method": "adaptformer", "rank": 4}, "adaptformer", ()),
    Row("AdaptFormer, rank 16 (default)", {"method": "adaptformer"}, "adaptformer", (3e-3, 1e-2, 3e-2)),
    Row("AdaptFormer, rank 64", {"method": "adaptformer", "rank": 64}, "adaptformer", ()),
    Row("LoRA on q and v", {"method": "lora"}, "lora", (3e-3, 1e-2)),
    Row("full tuning", {"method": "full"}, "full", (3e-4, 1e-3)),
)


def choose(ledger: Ledger, jobs: int, pace: Pace) -> dict[str, float]:
    """The learning rate of each method: highest accuracy on the chosen part, of equal ones the lowest loss."""
    tried = {row.rates_of: [row.trial(lr, pace, part="choose") for lr in row.rates] for row in DIGITS if row.rates}
    ledger.run("learning rates", [t for trials in tried.values() for t in trials], jobs)
    return {
        name: max(trials, key=lambda t: (ledger[t]["accuracy"], -ledger[t]["held_out_loss"])).lr
        for name, trials in tried.items()
    }


def summary(name: str, lr: float, results: list[Result]) -> dict[str, Any]:
    """Mean and range over the seeds; the least time, since other work can only add to it; the largest memory."""
    accuracies = [r["accuracy"] for r in results]
    return {
        "name": name,
        "lr": lr,
        "mean": statistics.mean(accuracies),
        "low": min(accuracies),
        "high": max(accuracies),
        "seeds": len(accuracies),
        "parameters": results[0]["parameters"],
        "share": results[0]["share"],
        "cpu_seconds": min(r["cpu_seconds"] for r in results),
        "peak": max(r["peak"] for r in results),
        "growth": max(r["growth"] for r in results),
        "kept": results[0]["kept"],
    }


def measure(ledger: Ledger, rows: tuple[Row, ...], rates: dict[str, float], seeds: tuple[int, ...], jobs: int,
            pace: Pace) -> list[dict[str, Any]]:  # fmt: skip
    """One summary per row; seed by seed, so that an early end still has every method."""
    trials = {row.name: [row.trial(rates[row.rates_of], pace, seed=seed) for seed in seeds] for row in rows}
    ledger.run("digits", [trials[row.name][i] for i in range(len(seeds)) for row in rows], jobs)
    return [summary(row.name, rates[row.rates_of], [ledger[t] for t in trials[row.name]]) for row in rows]


def table_of(summaries: list[dict[str, Any]]) -> Table:
    heads = ("method", "accuracy", "lowest to highest", "trained parameters", "of the backbone", "learning rate",
             "CPU seconds", "peak MiB", "growth MiB", "kept MiB")  # fmt: skip
    return Table(heads, tuple(
        (s["name"], f"{s['mean']:.2%}", f"{s['low']:.2%} to {s['high']:.2%}", f"{s['parameters']:,}",
         f"{s['share']:.2%}", f"{s['lr']:g}", f"{s['cpu_seconds']:.0f}", f"{s['peak'] / MIB:,.0f}",
         f"{s['growth'] / MIB:,.0f}", f"{s['kept'] / MIB:,.0f}")
        for s in summaries
    ))  # fmt: skip


def place(machine: dict[str, str | int], jobs: int) -> str:
    """Where and when, in words."""
    return (
        f"{machine['device']}, {jobs} trainings at a time with one thread each, torch {machine['torch']}, "
        f"Python {machine['python']}, {machine['date']}"
    )


def verdict(summaries: list[dict[str, Any]], ours: str) -> str:
    """Who wins, and to whom AdaptFormer at its default rank loses, in words made from the numbers."""
    own = next(s for s in summaries if s["name"] == ours)
    better = [s for s in summaries if s["mean"] > own["mean"] and not s["name"].startswith("AdaptFormer")]
    best = max(summaries, key=lambda s: s["mean"])
    lost = "It loses to " + ", ".join(f"{s['name']} ({s['mean']:.2%})" for s in better) if better else "No other wins"
    overlap = [s["name"] for s in better if s["low"] <= own["high"]]
    unsure = f"; the ranges of {', '.join(overlap)} and its own overlap" if overlap else ""
    return f"Highest: {best['name']} ({best['mean']:.2%}). {ours} reaches {own['mean']:.2%}. {lost}{unsure}."


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each (default 2)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of every method (default %(default)s)")
    parser.add_argument("--batch", type=int, default=BATCH, help="of every method (default %(default)s)")
    parser.add_argument(
        "--seeds", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1), help="of each method"
    )
    args = parser.parse_args()
    ledger = Ledger(RESULTS / "methods.json", "python -m benchmarks.methods")
    pace = Pace(args.epochs, args.batch)
    rates = choose(ledger, args.jobs, pace)
    digits = measure(ledger, DIGITS, rates, SEEDS[: args.seeds], args.jobs, pace)
    first = ledger[DIGITS[0].trial(rates["linear"], pace)]
    seeds = "1 seed" if args.seeds == 1 else f"{args.seeds} seeds"
    epochs = "1 epoch" if args.epochs == 1 else f"{args.epochs} epochs"
    put(
        "methods",
        f"{place(ledger.machine, args.jobs)}; {first['train_examples']} training pictures, "
        f"{first['held_out_examples']} held out; {epochs} of batches of {args.batch} for all, {seeds}. "
        f"{verdict(digits, DIGITS[3].name)}",
        table_of(digits),
    )


if __name__ == "__main__":
    main()
