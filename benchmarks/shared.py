"""Many tasks on one picture: one call that shares what they have in common, against a call for each task.

`python -m benchmarks.shared` alternates the two in one process, on the forward alone: tasks whose adapters begin at the
first block, at the middle one, and tasks that adapt no block. With `--cache` a call for each task is made in both, once
without and once with the prefix cache, to which the picture is new in every round.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from itertools import count

import torch
from rich.console import Console
from rich.table import Table

from adapters.backbone import Backbone, load_backbone
from adapters.forward.banked import BankedForward, Job
from benchmarks.common import fill, machine
from benchmarks.run import alternate

CACHE_BYTES = 256 * 2**20


def measure(backbone: Backbone, tasks: int, first: int, rounds: int) -> list[tuple[float, float]]:
    """Seconds of a call for each task and of one call for all, in turns."""
    slabs, held = fill(backbone, tasks, first)
    forward, size = BankedForward(backbone, slabs), backbone.input.size
    pixels = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8).numpy()
    jobs = [Job(pixels, *slot) for slot in held]
    shared = [replace(job, picture="one") for job in jobs]
    return alternate(lambda: [forward([job]) for job in jobs], lambda: forward(shared), rounds, backbone.device)


def measure_cached(backbone: Backbone, tasks: int, first: int, rounds: int) -> list[tuple[float, float]]:
    """Seconds of a call for each task without the prefix cache and with it, in turns."""
    slabs, held = fill(backbone, tasks, first)
    size, pictures = backbone.input.size, count()
    plain, cached = (BankedForward(backbone, slabs, prefix_cache_bytes=n) for n in (0, CACHE_BYTES))
    pixels = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8).numpy()

    def ask(forward: BankedForward) -> None:
        picture = next(pictures)
        for slot in held:
            forward([Job(pixels, *slot, picture=picture)])

    return alternate(lambda: ask(plain), lambda: ask(cached), rounds, backbone.device)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared", description=__doc__)
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="a timm name; its weights are random")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--cache", action="store_true", help="the prefix cache instead of one call")
    given = parser.parse_args()
    how, other = (measure_cached, "with the cache, ms") if given.cache else (measure, "one call, ms")
    table = Table("dtype", "adapted from block", "a call each, ms", other, "ratio", "range")
    where: object = None
    for dtype in given.dtype:
        backbone = load_backbone(given.backbone, "random:0", given.device, dtype)
        where, depth = machine(backbone.device), backbone.layout.blocks
        for first in (0, depth // 2, depth):
            pairs = how(backbone, given.tasks, first, given.rounds)
            ratios = sorted(each / one for each, one in pairs)
            each, one = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
            table.add_row(
                dtype, str(first) if first < depth else "none", f"{each:.0f}", f"{one:.0f}",
                f"{statistics.median(ratios):.2f}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
            )  # fmt: skip
    table.title = f"{given.tasks} tasks on one picture, {given.backbone}; {where}"
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
