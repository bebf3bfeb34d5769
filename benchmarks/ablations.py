"""What AdaptFormer's choices are worth: rank, blocks, scale, and where the residual is added.

``python -m benchmarks.ablations --data FOLDER`` changes one choice at a time on photographs of hands and a real ViT-S,
draws docs/ablations.svg and puts the numbers into docs/RESULTS.md. Learning rate and steps are AdaptFormer's of
``benchmarks.pictures``, which must have run before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.figure import Panel, figure
from benchmarks.page import PAGE, Table
from benchmarks.pictures import BATCH, RANKS, SETS, STEPS, chosen
from benchmarks.tables import Bench, spread
from benchmarks.trial import Trial

FIGURE = PAGE.with_name("ablations.svg")
LABEL = "Held-out accuracy of AdaptFormer by rank, blocks, scale and place"
DEFAULTS: dict[str, Any] = {}


@dataclass(frozen=True)
class Choice:
    """One thing to choose: its name and each alternative's options; the empty ones are the default."""

    name: str
    alternatives: tuple[tuple[str, dict[str, Any]], ...]


CHOICES = (
    Choice("rank", (("2", {"rank": 2}), ("8", {"rank": 8}), ("32", DEFAULTS), ("64", {"rank": 64}))),
    Choice("blocks", (("first half", {"blocks": "0-5"}), ("last half", {"blocks": "6-11"}), ("all", DEFAULTS))),
    Choice("scale", (("0.1", {"scale": 0.1}), ("0.5", {"scale": 0.5}), ("1", DEFAULTS),
                     ("learnt", {"learn_scale": True}))),
    Choice("where", (("parallel", DEFAULTS), ("after MLP", {"site": "sequential"}), ("block end", {"site": "output"}))),
)  # fmt: skip


def main() -> None:
    bench = Bench("ablations", __doc__)
    default = chosen(bench, "ablations")

    def trial(options: dict[str, Any]) -> Trial:
        # Fewer blocks get a higher rank, for the same number of parameters.
        return replace(default, **({"rank": 2 * RANKS[1]} if "blocks" in options else {}) | options)

    alternatives = [(choice, name, options) for choice in CHOICES for name, options in choice.alternatives]
    for seed in bench.seeds:
        bench.run(f"ablations, seed {seed}", [replace(trial(options), seed=seed) for _, _, options in alternatives])
    rows: list[tuple[str, ...]] = []
    points: dict[str, list[tuple[str, float, bool]]] = {}
    for choice, name, options in alternatives:
        found = bench.results(trial(options))
        if not found:
            continue
        points.setdefault(choice.name, []).append(
            (name, sum(one["accuracy"] for one in found) / len(found), options is DEFAULTS)
        )
        rows.append((
            f"{choice.name}: {name}{' (default)' if options is DEFAULTS else ''}", spread(found),
            f"{found[0]['parameters']:,}", f"{found[0]['share']:.2%}", f"{min(r['cpu_seconds'] for r in found):,.0f}",
        ))  # fmt: skip
    if not bench.options.quick:
        FIGURE.write_text(figure([Panel(name, tuple(found)) for name, found in points.items()], LABEL))
    bench.put(
        "ablations",
        f"![{LABEL}]({FIGURE.name})\n\n"
        f"{bench.place()}; AdaptFormer on {SETS[0]}, {STEPS} steps of {BATCH}, highest learning rate {default.lr:g}, "
        f"{bench.counted}.{_scales(bench, trial({'learn_scale': True}))}",
        Table(("choice", "accuracy", "trained parameters", "of the backbone", "CPU seconds"), tuple(rows)),
    )


def _scales(bench: Bench, learnt: Trial) -> str:
    found = bench.results(learnt)
    if not found:
        return ""
    return f" The learnt scales, block by block, ended at {', '.join(f'{scale:g}' for scale in found[0]['scales'])}."


if __name__ == "__main__":
    main()
