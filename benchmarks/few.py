"""Few examples: one to fifty pictures of each class, the best linear head against AdaptFormer, on a real ViT-S.

``python -m benchmarks.few --data FOLDER`` trains, draws docs/few.svg and puts the table into docs/RESULTS.md.
Interrupted, it goes on where it was. Every seed draws other examples; the held-out part is always the same.
"""

from __future__ import annotations

from benchmarks.figure import Panel, figure
from benchmarks.page import PAGE, Table
from benchmarks.tables import Bench, Row, mean, over_seeds, spread
from benchmarks.trial import Trial

SETS = ("signs", "digits")
EXAMPLES = (1, 5, 10, 50)
STEPS = 300
FIGURE = PAGE.with_name("few.svg")
LABEL = "Held-out accuracy of the best linear head and of AdaptFormer by pictures of each class"


def rows_of(data: str, examples: int) -> tuple[Row, Row]:
    return (
        Row("linear", Trial(data, "linear", examples=examples)),
        Row("AdaptFormer", Trial(data, "adaptformer", examples=examples, steps=STEPS, batch=8)),
    )


def worth(gains: dict[int, float], data: str) -> str:
    """From how many examples of each class on the adapter is ahead, and stays so."""
    counts = sorted(gains)
    ahead = [count for i, count in enumerate(counts) if all(gains[c] > 0 for c in counts[i:])]
    return f"{data}: AdaptFormer is ahead from {ahead[0]} of each class on" if ahead else f"{data}: linear is ahead"


def main() -> None:
    bench = Bench("few", __doc__)
    for data in SETS:
        bench.run(f"few {data}", over_seeds([row for n in EXAMPLES for row in rows_of(data, n)], bench.seeds))
    lines, panels, told = [], [], []
    for data in SETS:
        gains, points = {}, []
        for count in EXAMPLES:
            linear, adapted = (bench.results(row.trial) for row in rows_of(data, count))
            if not linear or not adapted:
                continue
            gains[count] = mean(adapted) - mean(linear)
            lines.append((data, str(count), spread(linear), spread(adapted), f"{100 * gains[count]:+.1f}"))
            points += [(f"linear, {count}", mean(linear), False), (f"adapter, {count}", mean(adapted), True)]
        if gains:
            told.append(worth(gains, data))
            panels.append(Panel(f"{data}: examples of each class", tuple(points)))
    if not bench.options.quick:
        FIGURE.write_text(figure(panels, LABEL, 560))
    bench.put(
        "few",
        f"![{LABEL}]({FIGURE.name})\n\n{bench.place()}; {STEPS} steps of 8 pictures, {bench.counted}. "
        f"{'; '.join(told)}.",
        Table(("set", "examples of each class", "linear", "AdaptFormer", "points more"), tuple(lines)),
    )


if __name__ == "__main__":
    main()
