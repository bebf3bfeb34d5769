"""Is the training of a temporal adapter steady? Its held-out loss epoch by epoch, with and without what steadies it.

``python -m benchmarks.stability --data FOLDER`` trains AdaptFormer with time mixing on thermal clips at the rate at
which it used to be unsteady, draws docs/stability.svg and puts the numbers into docs/RESULTS.md.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace

from benchmarks.figure import curves
from benchmarks.page import PAGE, Table
from benchmarks.tables import Bench
from benchmarks.trial import Trial

FIGURE = PAGE.with_name("stability.svg")
LABEL = "Held-out loss of a temporal adapter by epoch, with and without warm-up and clipped gradients"
STEADY = Trial("four actions", "adaptformer", "demo", steps=1200, batch=8, head="mean", lr=3e-3, curve=True)
LOOSE = replace(STEADY, warmup=1e-9, clip=1e9)
NAMES = {"as it trains": STEADY, "without warm-up, gradients not clipped": LOOSE}


def jump(losses: list[float]) -> float:
    """The largest rise from one epoch to the next."""
    return max((after - before for before, after in itertools.pairwise(losses)), default=0.0)


def main() -> None:
    bench = Bench("stability", __doc__)
    bench.run("trainings", [replace(trial, seed=seed) for seed in bench.seeds for trial in NAMES.values()])
    lines, rows = [], []
    for name, trial in NAMES.items():
        found = [one["losses"] for one in bench.results(trial)]
        lines += [(name, losses, trial is STEADY) for losses in found]
        rows.append((
            name, f"{statistics.mean(losses[-1] for losses in found):.2f}", f"{max(map(max, found)):.2f}",
            f"{max(map(jump, found)):.2f}",
        ))  # fmt: skip
    if not bench.options.quick:
        FIGURE.write_text(curves(lines, LABEL, "epochs"))
    bench.put(
        "stability",
        f"![{LABEL}]({FIGURE.name})\n\n{bench.place()}; AdaptFormer with time mixing on {STEADY.data}, rate "
        f"{STEADY.lr:g}, {STEADY.steps} steps of {STEADY.batch} clips, {bench.counted}.",
        Table(("training", "held-out loss at the end", "at its highest", "largest rise in an epoch"), tuple(rows)),
    )


if __name__ == "__main__":
    main()
