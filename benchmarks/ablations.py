"""What AdaptFormer's choices are worth: rank, blocks, scale, and where the residual is added; one seed.

``python -m benchmarks.ablations`` changes one choice at a time, draws docs/ablations.svg and puts the numbers into
docs/RESULTS.md. The learning rate is AdaptFormer's of ``benchmarks.methods``, which must have run before.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from benchmarks.figure import Panel, figure
from benchmarks.ledger import RESULTS, Ledger
from benchmarks.methods import DIGITS, Pace, choose, place
from benchmarks.page import PAGE, Table, put
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
    Choice("rank", (("1", {"rank": 1}), ("4", {"rank": 4}), ("16", DEFAULTS), ("64", {"rank": 64}))),
    Choice("blocks", (("first half", {"blocks": "0-2"}), ("last half", {"blocks": "3-5"}), ("all", DEFAULTS))),
    Choice("scale", (("0.1", DEFAULTS), ("0.5", {"scale": 0.5}), ("1", {"scale": 1.0}),
                     ("learnt", {"learn_scale": True}))),
    Choice("where", (("parallel", DEFAULTS), ("after MLP", {"site": "sequential"}), ("block end", {"site": "output"}))),
)  # fmt: skip


def trial(options: dict[str, Any], lr: float, pace: Pace) -> Trial:
    # The scale's default is written out in no key, so that the trials of ``benchmarks.methods`` serve here too.
    return Trial("digits", "adaptformer", lr=lr, epochs=pace.epochs, batch=pace.batch, **options)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each (default 2)")
    args = parser.parse_args()
    methods = Ledger(RESULTS / "methods.json", "python -m benchmarks.methods")
    pace = Pace()
    lr = choose(methods, args.jobs, pace)[DIGITS[3].rates_of]
    ledger = Ledger(RESULTS / "ablations.json", "python -m benchmarks.ablations", also=methods)
    ledger.run("ablations", [trial(options, lr, pace) for c in CHOICES for _, options in c.alternatives], args.jobs)
    rows, panels = [], []
    for choice in CHOICES:
        found = [(name, ledger[trial(options, lr, pace)], options is DEFAULTS) for name, options in choice.alternatives]
        panels.append(Panel(choice.name, tuple((name, r["accuracy"], default) for name, r, default in found)))
        rows += [
            (f"{choice.name}: {name}{' (default)' if default else ''}", f"{r['accuracy']:.2%}", f"{r['parameters']:,}",
             f"{r['share']:.2%}")
            for name, r, default in found
        ]  # fmt: skip
    FIGURE.write_text(figure(panels, LABEL))
    learnt = ", ".join(f"{scale:g}" for scale in ledger[trial({"learn_scale": True}, lr, pace)]["scales"])
    put(
        "ablations",
        f"![{LABEL}]({FIGURE.name})\n\n"
        f"{place(ledger.machine, args.jobs)}; AdaptFormer on digits, one seed, {pace.epochs} epoch of batches of "
        f"{pace.batch}, learning rate {lr:g}. The learnt scales, block by block, ended at {learnt}.",
        Table(("choice", "accuracy", "trained parameters", "of the backbone"), tuple(rows)),
    )


if __name__ == "__main__":
    main()
