"""Should a batch wait for more rows? The engine, which never waits, against one that waits a few milliseconds.

`python -m benchmarks.waiting`: Poisson arrivals at shares of what a closed loop reaches, the same for each way, in
turns; JPEGs of 335x500 pixels for 16 tasks, decoded on the same cores. Decoding counts as part of the wait.

`--batch-ms 18 9.2` needs no device and no quiet machine: the server's scheduler on a clock of its own, where a batch
takes 18 ms and 9.2 more for each row, and decoding nothing.
"""

from __future__ import annotations

import argparse
import math
import statistics
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from adapters.backbone import load_backbone
from adapters.forward.banked import BankedForward
from benchmarks.common import machine
from benchmarks.front import pictures
from benchmarks.serving import Load, served
from service.engine.engine import Engine
from service.engine.heap import keep_freed_memory
from service.engine.scheduler import Scheduler, Ticket

CLIENTS = 16
TASKS = 16
BATCH_ROWS = 32


class Waiting(Scheduler[Any]):
    """Whoever takes a batch sleeps until it is full, or ``wait_s`` after the first of its rows came."""

    def __init__(self, max_batch_rows: int, wait_s: float, wake: threading.Condition) -> None:
        super().__init__(max_batch_rows)
        self._wait_s, self._wake, self._since = wait_s, wake, 0.0

    def add(self, ticket: Ticket[Any]) -> None:
        if not self.waiting_rows:
            self._since = time.monotonic()
        super().add(ticket)

    def take(self, now: float) -> tuple[list[Ticket[Any]], list[Ticket[Any]]]:
        while self.waiting_rows < self.max_batch_rows and (left := self._since + self._wait_s - now) > 0:
            self._wake.wait(left)
            now = time.monotonic()
        self._since = now  # for what is left over
        return super().take(now)


class WaitingEngine(Engine):
    """The engine with that scheduler."""

    def __init__(self, *args: Any, wait_s: float, max_batch_rows: int, **kwargs: Any) -> None:
        super().__init__(*args, max_batch_rows=max_batch_rows, **kwargs)
        self._scheduler = Waiting(max_batch_rows, wait_s, self._wake)


def simulated(rate: float, wait_s: float, batch_s: tuple[float, float], arrivals: int = 50_000) -> Load:
    """Poisson arrivals into the scheduler and one device, whose batch takes ``batch_s``: at all, and for each row."""
    generator = np.random.default_rng(0)
    times = np.cumsum(generator.exponential(1 / rate, arrivals))
    tasks = generator.integers(TASKS, size=arrivals).astype(str)
    scheduler: Scheduler[float] = Scheduler(BATCH_ROWS)
    taken, now, since, coming = list[float](), 0.0, 0.0, 0

    def arrive(until: float) -> None:
        nonlocal coming, since
        while coming < arrivals and times[coming] <= until:
            if not scheduler.waiting_rows:
                since = float(times[coming])
            scheduler.add(Ticket(tasks[coming], 1, math.inf, float(times[coming])))
            coming += 1

    while coming < arrivals or scheduler.waiting_rows:
        if not scheduler.waiting_rows:
            now = max(now, float(times[coming]))
            arrive(now)
        end = since + wait_s
        while scheduler.waiting_rows < BATCH_ROWS and coming < arrivals and times[coming] <= end:
            now = float(times[coming])
            arrive(now)
        if scheduler.waiting_rows < BATCH_ROWS:
            now = max(now, end)
        since = now  # for what is left over
        batch, _ = scheduler.take(now)
        now += batch_s[0] + batch_s[1] * len(batch)
        taken += [now - ticket.payload for ticket in batch]
        arrive(now)
    return Load(len(taken) / now, np.array(taken))


def show_simulated(given: argparse.Namespace) -> None:
    fixed, each = (ms / 1e3 for ms in given.batch_ms)
    capacity = BATCH_ROWS / (fixed + each * BATCH_ROWS)
    table = Table("share of capacity", "wait, ms", "p50 ms", "p99 ms", "answers a second")
    for share in given.shares:
        for wait in given.waits:
            load = simulated(share * capacity, wait / 1e3, (fixed, each))
            table.add_row(f"{share:g}", f"{wait:g}", f"{load.milliseconds(50):.0f}", f"{load.milliseconds(99):.0f}",
                          f"{load.rate:.1f}")  # fmt: skip
    table.title = (
        f"simulated: {given.batch_ms[0]:g} ms a batch and {given.batch_ms[1]:g} a row, {capacity:.0f} a second"
    )
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.waiting", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="vit_tiny_patch16_224", help="a timm name; its weights are random")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--waits", type=float, nargs="+", default=[0, 2, 5, 10], help="milliseconds; 0 is the engine's way"
    )
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.6, 0.8, 0.95], help="of the capacity")
    parser.add_argument("--seconds", type=float, default=5.0, help="of arrivals in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-ms", type=float, nargs=2, help="simulate: milliseconds a batch, and a row")
    given = parser.parse_args()
    if given.batch_ms:
        show_simulated(given)
        return
    keep_freed_memory()
    backbone, jpeg = load_backbone(given.backbone, "random:0", "cpu", given.dtype), pictures()["335x500 JPEG"]
    with ExitStack() as stack:
        houses = [
            stack.enter_context(served(backbone, partial(BankedForward, backbone), TASKS, jpeg,
                                       partial(WaitingEngine, wait_s=wait / 1e3) if wait else Engine))
            for wait in given.waits
        ]  # fmt: skip
        found: dict[tuple[float, float], list[Load]] = defaultdict(list)
        capacities = []
        for number in range(given.rounds):
            # Known anew in each round, for neighbours come and go.
            capacities.append(houses[0].closed_loop(CLIENTS, given.seconds).rate)
            for share in given.shares:
                for turn in range(len(houses)):
                    which = (turn + number) % len(houses)
                    load = houses[which].poisson(share * capacities[-1], given.seconds, number)
                    found[share, given.waits[which]].append(load)
    table = Table("share of capacity", "wait, ms", "p50 ms", "p99 ms", "answers a second", "p99 to the engine's own")
    for share in given.shares:
        for wait in given.waits:
            loads = found[share, wait]
            middle = [statistics.median(load.milliseconds(p) for load in loads) for p in (50, 99)]
            ratio = statistics.median(
                a.milliseconds(99) / b.milliseconds(99)
                for a, b in zip(loads, found[share, given.waits[0]], strict=True)
            )
            rate = statistics.median(load.rate for load in loads)
            table.add_row(f"{share:g}", f"{wait:g}", *(f"{m:.0f}" for m in middle), f"{rate:.1f}", f"{ratio:.2f}")
    reached = ", ".join(f"{rate:.0f}" for rate in capacities)
    table.title = f"{given.backbone}, {backbone.dtype}; capacity a second {reached}; {machine(backbone.device)}"
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
