"""What heads cost: all jobs of a batch against the pages of the bank, beside one plain product for each task.

And what clips' heads over frames cost, beside those of the frames' mean. `python -m benchmarks.heads` alternates the
two in one process, in processor time of one thread, so that neighbours on the machine count for little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table as Printed
from torch import Tensor

from adapters.bank import PAGE, Slabs
from adapters.config import HeadKind
from adapters.forward.heads import scores_of, vectors_of
from adapters.forward.plan import BatchKey, Table, plan_of
from adapters.forward.streams import Job
from adapters.layout import Layout
from adapters.meta import AdapterMeta
from benchmarks.common import machine

MIXES = ((32, 1, 10), (32, 32, 10), (32, 8, 1000), (32, 1, 4096), (32, 32, 1000))
"""(jobs, tasks, classes of each)."""
FRAMES = 8
HEADS: tuple[HeadKind, ...] = ("frames", "attention")
CLIPS = ((4, 1, 7, 1), (4, 4, 7, 1), (32, 4, 7, 1), (4, 4, 100, 8))
"""(clips, tasks, classes of each, groups of each: 16 features or 15 values)."""


def seconds(function: Callable[[], object]) -> float:
    start = time.thread_time()
    function()
    return time.thread_time() - start


def measure(width: int, jobs: int, tasks: int, classes: int, rounds: int) -> tuple[float, float]:
    """Median seconds of the bank's heads and of the plain products."""
    count = -(-classes // PAGE)
    layout = Layout("bench", "", 1, width, (8, 8), 1, {"parallel": ((8, 8),)})
    slabs = Slabs(layout, slots=1, rank=8, pages=tasks * count, dtype=torch.float32, device=torch.device("cpu"))
    slabs.pages.normal_()
    meta = AdapterMeta("", "image", 1, classes, "softmax", "backbone", "frozen", {}, frozenset(), 0)
    pixels = np.zeros((1, 3, 8, 8), np.uint8)
    pages = [tuple(range(1 + task * count, 1 + (task + 1) * count)) for task in range(tasks)]
    plan = plan_of([Job(pixels, 0, pages[job % tasks], meta) for job in range(jobs)])
    table, vectors = Table[Tensor].of(plan.key, torch.from_numpy(plan.packed)), torch.randn(jobs, width)
    weights = [slabs.pages[1 + task * count :][:count].reshape(-1, width) for task in range(tasks)]

    def ours() -> object:
        return scores_of(vectors, slabs, table.heads, table.places)

    def plain() -> object:
        return [F.linear(vectors[task::tasks], weight) for task, weight in enumerate(weights)]

    ours(), plain()
    pairs = [(seconds(ours), seconds(plain)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def clips(width: int, head: HeadKind, mix: tuple[int, int, int, int], rounds: int) -> tuple[float, float]:
    """Median seconds of heads over frames, and of heads of the mean, of as many classes and clips."""
    jobs, tasks, classes, groups = mix
    layout = Layout("bench", "", 1, width, (8, 8), 1, {"parallel": ((8, 8),)})
    plain = AdapterMeta("", "video", FRAMES, classes, "softmax", "avg", "trained", {}, frozenset(), 0)
    metas = replace(plain, head=head, groups=groups), plain
    count = metas[0].pages
    slabs = Slabs(layout, slots=1, rank=8, pages=tasks * count, dtype=torch.float32, device=torch.device("cpu"))
    slabs.pages.normal_(std=0.02)
    pixels, rows = np.zeros((FRAMES, 3, 8, 8), np.uint8), torch.randn(jobs * FRAMES, width)
    calls = []
    for meta in metas:
        pages = [tuple(range(1 + task * count, 1 + task * count + meta.pages)) for task in range(tasks)]
        plan = plan_of([Job(pixels, 0, pages[job % tasks], meta) for job in range(jobs)])
        table = Table[Tensor].of(plan.key, torch.from_numpy(plan.packed))
        calls.append(partial(_logits, rows, slabs, plan.key, table))
    pairs = [(seconds(calls[0]), seconds(calls[1])) for _ in range(rounds + 1)][1:]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def _logits(rows: Tensor, slabs: Slabs, key: BatchKey, table: Table[Tensor]) -> Tensor:
    return scores_of(vectors_of(rows, slabs, key, table, None), slabs, table.heads, table.places)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.heads", description=__doc__)
    parser.add_argument("--width", type=int, default=384, help="of the pooled vector; 384 is ViT-S")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    printed = Printed(
        "jobs", "tasks", "classes", "heads, ms", "plain products, ms", title=str(machine(torch.device("cpu")))
    )
    with torch.inference_mode():
        for mix in MIXES:
            ours, plain = measure(given.width, *mix, given.rounds)
            printed.add_row(*map(str, mix), f"{1e3 * ours:.2f}", f"{1e3 * plain:.2f}")
        over = Printed("clips", "tasks", "classes", "groups", "head", "ms", "of the mean, ms", title=f"{FRAMES} frames")
        for clip_mix in CLIPS:
            for head in HEADS:
                ours, plain = clips(given.width, head, clip_mix, given.rounds)
                over.add_row(*map(str, clip_mix), head, f"{1e3 * ours:.2f}", f"{1e3 * plain:.2f}")
    Console(width=120).print(printed, over)


if __name__ == "__main__":
    main()
