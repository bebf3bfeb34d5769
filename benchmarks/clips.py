"""Clips: linear with each head, AdaptFormer without and with time, ST-Adapter and full tuning, by person.

``python -m benchmarks.clips --data FOLDER`` trains on the demo backbone, and two rows on the ViT-S; prints the table
and puts it into docs/RESULTS.md. Interrupted, it goes on where it was. Rates are the methods' own, which were chosen on
other sets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.page import Table
from benchmarks.tables import Bench, Row, costs, mean, over_seeds, spread
from benchmarks.trial import BACKBONES, Trial

SETS = ("down or up", "seven actions")
BATCH = 8
STEPS = {"down or up": 300, "seven actions": 1050}
"""So that each has five epochs."""
LONGER = {"seven actions": 3000}
"""Where five epochs are too few, the one that is best after them once more."""
LARGER = ("seven actions",)
"""Where the demo backbone may be too weak, what a ViT-S makes of the frames in their order."""
HEADS = ("mean", "frames", "attention")


def rows_of(data: str) -> list[Row]:
    def trial(method: str, **options: Any) -> Trial:
        return Trial(data, method, "demo", **options)  # type: ignore[arg-type]

    def adapted(method: str, **options: Any) -> Trial:
        return trial(method, steps=STEPS[data], batch=BATCH, **options)

    attention = {"steps": STEPS[data], "batch": BATCH}
    return [
        *(Row(f"linear, head {head}", trial("linear", head=head, **(attention if head == "attention" else {})))
          for head in HEADS),
        Row("AdaptFormer without time, head mean", adapted("adaptformer", head="mean", temporal=False)),
        *(Row(f"AdaptFormer, head {head}", adapted("adaptformer", head=head)) for head in HEADS),
        *(Row(f"AdaptFormer, head frames, {steps:,} steps",
              trial("adaptformer", steps=steps, batch=BATCH, head="frames"))
          for name, steps in LONGER.items() if name == data),
        Row("ST-Adapter, head mean", adapted("st-adapter", head="mean")),
        Row("ST-Adapter, head frames", adapted("st-adapter", head="frames")),
        Row("full tuning, head frames", adapted("full", head="frames")),
        *((Row("ViT-S: linear, head frames", Trial(data, "linear", head="frames")),
           Row("ViT-S: AdaptFormer, head frames", replace(adapted("adaptformer", head="frames"), backbone="vit-s")))
          if data in LARGER else ()),
    ]  # fmt: skip


def verdict(bench: Bench, data: str, backbone: str) -> str:
    """The best adapter against the best linear head on the same backbone."""
    rows = [row for row in rows_of(data) if row.trial.backbone == backbone and bench.results(row.trial)]
    means = {row: mean(bench.results(row.trial)) for row in rows}
    linear = [row for row in rows if row.trial.method == "linear"]
    adapted = [row for row in rows if row.trial.method in ("adaptformer", "st-adapter")]
    if not linear or not adapted:
        return ""
    best, base = max(adapted, key=means.__getitem__), max(linear, key=means.__getitem__)
    return (
        f"{data}: {best.name} reaches {means[best]:.1%}, {100 * (means[best] - means[base]):+.1f} points to {base.name}"
    )


def main() -> None:
    bench = Bench("clips", __doc__)
    for data in SETS:
        bench.run(data, over_seeds(rows_of(data), bench.seeds))
    lines = []
    for row in [row for data in SETS for row in rows_of(data)]:
        found = bench.results(row.trial)
        if found:
            cost = costs(found)
            lines.append(
                (row.trial.data, row.name, spread(found), f"{mean(found, 'balanced_accuracy'):.1%}", cost["share"],
                 cost["file"], cost["seconds"], cost["peak"])
            )  # fmt: skip
    told = "; ".join(filter(None, (verdict(bench, data, backbone) for data in SETS for backbone in BACKBONES)))
    bench.put(
        "clips",
        f"{bench.place()}; demo backbone where none is named, 8 frames, five epochs in steps of {BATCH} clips, "
        f"{bench.counted} where there is a range. {told}.",
        Table(
            ("set", "method", "accuracy", "balanced", "of the backbone", "file, MB", "CPU seconds", "peak MiB"),
            tuple(lines),
        ),
    )


if __name__ == "__main__":
    main()
