"""One epoch of adapter training against full tuning: the same pictures and batches, step by step in turns.

``python -m benchmarks.epoch`` prints the ratio of time and of memory and puts them into docs/RESULTS.md. Each step of
one is timed next to the same step of the other, so a busy machine slows both; memory is measured in a child for each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from adapters.backbone import load_backbone
from adapters.training.baselines import model_of
from adapters.training.demo import digits
from adapters.training.fit import loss_of
from adapters.training.model import HeadedModel, images_of
from adapters.training.recipe import Recipe, config_of
from benchmarks.common import machine
from benchmarks.ledger import RESULTS, write_json
from benchmarks.page import Table, put
from benchmarks.trial import Trial, run

LABELS = tuple(str(d) for d in range(10))
BATCH = 8
MIB = 2**20


@dataclass
class Side:
    """One of the two: its model, its optimiser, and the seconds that its steps took."""

    model: HeadedModel
    optimizer: torch.optim.Optimizer
    wall: list[float]
    cpu: list[float]

    @classmethod
    def of(cls, recipe: Recipe) -> Side:
        backbone = load_backbone("demo", device="cpu", dtype="float32")
        torch.manual_seed(0)
        model = model_of(recipe, backbone, config_of(recipe, backbone, "image", LABELS)).train()
        return cls(model, torch.optim.AdamW(model.parameters(), lr=1e-4), [], [])

    def step(self, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        loss = loss_of(self.model(images_of(self.model, pixels)), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def times(adapter: Side, full: Side, batch: int) -> dict[str, float]:
    """Seconds of one epoch of each, and the ratio: over all, and step by step (quartiles)."""
    pixels, labels = digits.pictures(digits.split()[0])
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = [shuffled[start : start + batch] for start in range(0, len(shuffled), batch)]
    for side in (adapter, full):
        side.step(pixels[order[0]], labels[order[0]])  # warms up, and is not counted
        side.wall.clear()
        side.cpu.clear()
    with Progress(console=Console(stderr=True)) as bar:
        line = bar.add_task("steps in turns", total=len(order))
        for i, chosen in enumerate(order):
            for side in (adapter, full) if i % 2 else (full, adapter):
                side.step(pixels[chosen], labels[chosen])
            bar.advance(line)
    quartiles = statistics.quantiles([a / f for a, f in zip(adapter.cpu, full.cpu, strict=True)], n=4)
    return {
        "adapter_wall": sum(adapter.wall), "full_wall": sum(full.wall), "adapter_cpu": sum(adapter.cpu),
        "full_cpu": sum(full.cpu), "ratio_wall": sum(adapter.wall) / sum(full.wall),
        "ratio_cpu": sum(adapter.cpu) / sum(full.cpu), "low": quartiles[0], "median": quartiles[1],
        "high": quartiles[2],
    }  # fmt: skip


def expected(blocks: int) -> float:
    """The ratio that counting matrix products gives.

    Full tuning takes three passes of each block: forward, gradients of its input, gradients of its weights. An adapter
    takes the first two, and in the first block the forward pass alone, since nothing before it is trained.
    """
    return (2 * blocks - 1) / (3 * blocks)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epoch", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="measure nothing; write what was measured last")
    args = parser.parse_args()
    path = RESULTS / "epoch.json"
    if not args.show:
        write_json(path, measure(args.batch, args.threads))
    found = json.loads(path.read_text())
    put("epoch", words(found), table_of(found["time"], found["memory"]))


def measure(batch: int, threads: int) -> dict[str, Any]:
    """Times in this process, memory in a child for each."""
    torch.set_num_threads(threads)
    sides = Side.of(Recipe("digits")), Side.of(Recipe("digits", "full"))
    measured, memory = times(*sides, batch), {}
    for method in ("adaptformer", "full"):
        found = run(Trial("digits", method, lr=1e-4, epochs=1, batch=batch, threads=threads))
        memory[method] = {k: found[k] for k in ("peak", "growth", "kept")}
    return {
        "command": "python -m benchmarks.epoch",
        "machine": machine(torch.device("cpu")) | {"threads": threads},
        "batch": batch,
        "expected": expected(sides[0].model.backbone.layout.blocks),
        "time": measured,
        "memory": memory,
    }


def words(found: dict[str, Any]) -> str:
    """Where it ran, what counting leads one to expect, and what came."""
    place, measured, memory = found["machine"], found["time"], found["memory"]
    less = memory["full"]["growth"] / memory["adaptformer"]["growth"]
    return (
        f"{place['device']}, threads {place['threads']}, torch {place['torch']}, Python {place['python']}, "
        f"{place['date']}, batches of {found['batch']}. An adapter saves the gradients of the weights, a third of the "
        f"matrix products, and the backward pass of the first block's frozen layers: counting gives "
        f"{found['expected']:.2f} of full tuning's time. It took {measured['ratio_cpu']:.2f} (CPU time; half of the "
        f"steps between {measured['low']:.2f} and {measured['high']:.2f}), and full tuning grew {less:.1f} times as "
        "much in memory."
    )


def table_of(measured: dict[str, float], memory: dict[str, dict[str, int]]) -> Table:
    a, f = memory["adaptformer"], memory["full"]
    rows = [
        ("wall seconds", measured["adapter_wall"], measured["full_wall"]),
        ("CPU seconds", measured["adapter_cpu"], measured["full_cpu"]),
        ("peak memory of the process, MiB", a["peak"] / MIB, f["peak"] / MIB),
        ("its growth from the first step on, MiB", a["growth"] / MIB, f["growth"] / MIB),
        ("kept by a step for its backward pass, MiB", a["kept"] / MIB, f["kept"] / MIB),
    ]
    return Table(
        ("one epoch", "AdaptFormer", "full tuning", "ratio"),
        tuple((name, f"{x:,.0f}", f"{y:,.0f}", f"{x / y:.2f}") for name, x, y in rows),
    )


if __name__ == "__main__":
    main()
