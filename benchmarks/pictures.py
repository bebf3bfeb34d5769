"""Pictures: linear, VPT, LoRA, AdaptFormer and full tuning on a real ViT-S, three sets, three seeds.

``python -m benchmarks.pictures --data FOLDER`` trains, prints the table and puts it into docs/RESULTS.md. Interrupted,
it goes on where it was. The rate of each method is the best of three on a part of the training pictures of one set.
"""

from __future__ import annotations

from benchmarks.page import Table
from benchmarks.tables import Bench, Row, costs, mean, over_seeds, spread
from benchmarks.trial import Trial

SETS = ("signs", "photographs", "digits")
STEPS, BATCH, CHOOSING = 300, 16, 72
RATES: dict[str, tuple[float, ...]] = {
    "vpt": (3e-3, 1e-2, 3e-2),
    "lora": (1e-3, 3e-3, 1e-2),
    "adaptformer": (2e-3, 5e-3, 1e-2),
    "full": (3e-5, 1e-4, 3e-4),
}
RANKS = (8, 32, 64)


def rows_of(data: str, rates: dict[str, float]) -> list[Row]:
    def adapted(method: str, **options: int) -> Trial:
        return Trial(data, method, steps=STEPS, batch=BATCH, lr=rates[method], **options)  # type: ignore[arg-type]

    return [
        Row("linear", Trial(data, "linear")),
        Row("VPT, 10 prompts per block", adapted("vpt")),
        Row("LoRA on q and v", adapted("lora")),
        *(Row(f"AdaptFormer, rank {rank}", adapted("adaptformer", rank=rank)) for rank in RANKS),
        Row("full tuning", adapted("full")),
    ]


def choose(bench: Bench) -> dict[str, float]:
    """The rate of each method: the least loss on what was left out."""
    tried = {
        method: [
            bench.paced(Trial(SETS[0], method, steps=CHOOSING, batch=BATCH, lr=lr, part="choose"))  # type: ignore[arg-type]
            for lr in rates
        ]
        for method, rates in RATES.items()
    }
    bench.run("learning rates", [trial for trials in tried.values() for trial in trials])
    return {
        m: float(min(trials, key=lambda t: bench.ledger[t]["held_out_loss"]).lr or 0) for m, trials in tried.items()
    }


def chosen(bench: Bench, name: str) -> Trial:
    """The table's AdaptFormer with its chosen rate, for a command whose own ledger ``name`` need not run it again."""
    bench.ledger = bench.ledger_of("pictures")
    lr = choose(bench)["adaptformer"]
    bench.ledger = bench.ledger_of(name, also=bench.ledger)
    return Trial(SETS[0], "adaptformer", steps=STEPS, batch=BATCH, lr=lr, rank=RANKS[1])


def line(bench: Bench, row: Row) -> tuple[str, ...] | None:
    found = bench.results(row.trial)
    if not found:
        return None
    cost = costs(found)
    return (
        row.trial.data, row.name, spread(found), f"{mean(found, 'balanced_accuracy'):.1%}", cost["share"], cost["file"],
        cost["seconds"], cost["peak"], cost["kept"],
    )  # fmt: skip


def verdict(bench: Bench, rates: dict[str, float]) -> str:
    """Of each set: what AdaptFormer at its default size adds to linear, and who is ahead of it in every seed."""
    told = []
    for data in SETS:
        found = {row.name: bench.results(row.trial) for row in rows_of(data, rates)}
        means = {name: mean(results) for name, results in found.items() if results}
        own = f"AdaptFormer, rank {RANKS[1]}"
        if own not in means or "linear" not in means:
            continue
        best = max(means, key=lambda name: means[name])
        least, most = min(one["accuracy"] for one in found[best]), max(one["accuracy"] for one in found[own])
        ahead = f"{best} is ahead ({means[best]:.1%})" if best != own and least > most else "no other is clearly ahead"
        gain = 100 * (means[own] - means["linear"])
        told.append(f"{data}: AdaptFormer of rank {RANKS[1]} {gain:+.1f} points over linear, {ahead}")
    return "; ".join(told)


def main() -> None:
    bench = Bench("pictures", __doc__)
    rates = choose(bench)
    for data in SETS:
        bench.run(data, over_seeds(rows_of(data, rates), bench.seeds))
    lines = [line(bench, row) for data in SETS for row in rows_of(data, rates)]
    highest = ", ".join(f"{method} {rate:g}" for method, rate in rates.items())
    sizes = bench.results(rows_of(SETS[0], rates)[0].trial)[0]
    bench.put(
        "pictures",
        f"{bench.place()}, {sizes['dtype']}; {STEPS} steps of {BATCH} pictures for every method but linear, "
        f"{bench.counted} where there is a range; highest learning rates {highest}. {verdict(bench, rates)}.",
        Table(
            ("set", "method", "accuracy", "balanced", "of the backbone", "file, MB", "CPU seconds", "peak MiB",
             "kept MiB"),
            tuple(one for one in lines if one),
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
