"""How long a picture takes in training: float32 and bfloat16, all blocks and the last half, and its prefix kept.

``python -m benchmarks.pace --data FOLDER`` times steps of AdaptFormer on a ViT-S of 98 pixels, in turns so that a busy
machine slows all of them; then one process with two threads against two with one, which needs two cores that nobody
else uses. It puts the table into docs/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from adapters.backbone import load_backbone
from adapters.training.baselines import model_of
from adapters.training.fit import loss_of
from adapters.training.model import HeadedModel, images_of, prefix_of, written_out_attention
from adapters.training.recipe import Recipe, config_of
from benchmarks.common import machine
from benchmarks.ledger import RESULTS, write_json
from benchmarks.page import Table, put
from benchmarks.trial import BACKBONES

LABELS = tuple(str(d) for d in range(10))
BATCH, STEPS, EXAMPLES, EPOCHS = 32, 12, 1650, 5
ROUNDS = 3
FILE = RESULTS / "pace.json"


@dataclass(frozen=True)
class Way:
    """``kept``: the tokens before the first adapted block were computed before."""

    name: str
    dtype: str
    method: str = "adaptformer"
    blocks: str = "all"
    kept: bool = False


WAYS = (
    Way("float32, all blocks", "float32"),
    Way("bfloat16, all blocks", "bfloat16"),
    Way("bfloat16, last half", "bfloat16", blocks="6-11"),
    Way("bfloat16, last half, prefixes kept (no crop)", "bfloat16", blocks="6-11", kept=True),
    Way("bfloat16, full tuning", "bfloat16", "full"),
)


def stepper(way: Way, data: Path) -> Callable[[], float]:
    """One training step; returns its CPU seconds."""
    name, weights, size = BACKBONES["vit-s"]
    backbone = load_backbone(name, str(data / weights), "cpu", way.dtype, size)
    recipe: Any = Recipe("t", way.method, blocks=way.blocks)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model: HeadedModel = model_of(recipe, backbone, config_of(recipe, backbone, "image", LABELS)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    pixels = torch.randint(0, 256, (BATCH, 1, 3, *backbone.input.size), dtype=torch.uint8)
    labels = torch.arange(BATCH) % len(LABELS)
    if way.kept:
        tokens = prefix_of(model, images_of(model, pixels))
        pixels = tokens.view(BATCH, 1, *tokens.shape[1:])

    def step() -> float:
        began = time.process_time()
        with written_out_attention(backbone):
            loss = loss_of(model(images_of(model, pixels)), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return time.process_time() - began

    return step


def _rate(data: Path, threads: int, start: float) -> float:
    """Pictures a second of wall time by this process, whose steps begin together with those of others."""
    torch.set_num_threads(threads)
    step = stepper(WAYS[1], data)
    step()
    time.sleep(max(0.0, start - time.time()))
    began = time.monotonic()
    for _ in range(STEPS):
        step()
    return BATCH * STEPS / (time.monotonic() - began)


def side_by_side(data: Path, processes: int, threads: int) -> float:
    """Pictures a second by all of them: two that halve each batch between them can be no faster."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        start = time.time() + 20  # by then each is ready
        return sum(pool.map(_rate, [data] * processes, [threads] * processes, [start] * processes))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pace", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, help="folder of the ViT-S")
    parser.add_argument("--show", action="store_true", help="measure nothing; write what was measured last")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.show:
        steps = [stepper(way, args.data) for way in WAYS]
        for step in steps:
            step()  # warms up
        times = [[step() for step in steps] for _ in track(range(STEPS), "steps in turns", transient=True)]
        found = [statistics.median(column) / BATCH for column in zip(*times, strict=True)]
        rounds = [
            (side_by_side(args.data, 1, 2), side_by_side(args.data, 2, 1))
            for _ in track(range(ROUNDS), "both cores", transient=True)
        ]
        write_json(FILE, {"machine": machine(torch.device("cpu")), "seconds": found, "both_cores": rounds})
    held = json.loads(FILE.read_text())
    place, seconds = held["machine"], held["seconds"]
    threads, workers = (statistics.median(column) for column in zip(*held["both_cores"], strict=True))
    put(
        "pace",
        f"{place['device']}, one thread, torch {place['torch']}, {place['date']}; ViT-S at 98 pixels, batches "
        f"of {BATCH}, the median of {STEPS} steps each, in turns. On both cores ({WAYS[1].name}) one process of two "
        f"threads trains {threads:.0f} pictures a second, two side by side of one thread {workers:.0f} together.",
        Table(
            ("AdaptFormer", "CPU ms a picture", "of float32", f"{EXAMPLES:,} pictures, {EPOCHS} epochs: minutes"),
            tuple(
                (way.name, f"{1e3 * one:.1f}", f"{one / seconds[0]:.2f}", f"{one * EXAMPLES * EPOCHS / 60:.1f}")
                for way, one in zip(WAYS, seconds, strict=True)
            ),
        ),
    )


if __name__ == "__main__":
    main()
