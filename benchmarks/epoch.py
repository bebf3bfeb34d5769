"""One epoch of adapter training against full tuning: the same pictures and batches, step by step in turns.

``python -m benchmarks.epoch`` prints the ratio of time and of memory and puts them into docs/RESULTS.md. Each step of
one is timed next to the same step of the other, so a busy machine slows both; memory is measured in a child for each.
"""

from __future__ import annotations

import argparse
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
from adapters.training.fit import images_of, loss_of
from adapters.training.model import HeadedModel
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
        backbone = load_backbone("demo", device="cpu")
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
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sides = Side.of(Recipe("digits")), Side.of(Recipe("digits", "full"))
    measured: dict[str, Any] = times(*sides, args.batch)
    memory = {}
    for method in ("adaptformer", "full"):
        found = run(Trial("digits", method, lr=1e-4, epochs=1, batch=args.batch, threads=args.threads))
        memory[method] = {k: found[k] for k in ("peak", "growth", "kept")}
    bound = expected(sides[0].model.backbone.layout.blocks)
    place = machine(torch.device("cpu")) | {"threads": args.threads}
    command = "python -m benchmarks.epoch"
    document = {"command": command, "machine": place, "batch": args.batch, "expected": bound, "time": measured}
    write_json(RESULTS / "epoch.json", document | {"memory": memory})
    put("epoch", words(place, args.batch, bound, measured, memory), table_of(measured, memory))


def words(
    place: dict[str, Any], batch: int, bound: float, measured: dict[str, float], memory: dict[str, dict[str, int]]
) -> str:
    """Where it ran, what counting leads one to expect, and what came."""
    less = memory["full"]["growth"] / memory["adaptformer"]["growth"]
    return (
        f"{place['device']}, threads {place['threads']}, torch {place['torch']}, Python {place['python']}, "
        f"{place['date']}, batches of {batch}. An adapter saves the gradients of the weights, a third of the matrix "
        f"products, and the backward pass of the first block's frozen layers: counting gives {bound:.2f} of full "
        f"tuning's time. It took {measured['ratio_cpu']:.2f} (CPU time; half of the steps between "
        f"{measured['low']:.2f} and {measured['high']:.2f}), and full tuning grew {less:.1f} times as much in memory."
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
