"""What traffic rules, comparisons and shadows cost: the table of docs/SAFE_CHANGE.md.

`python -m benchmarks.safe_change` asks a real server, with the demo's backbone and two versions of its digits, one
picture at a time from some clients, in turns: without a rule, with half of the traffic for each version and no
comparisons, with all answers of the new version compared, and with a shadow that sees everything. Told are the
answers' times, the processor time that front ends took for each, and how many comparisons were made or left out.
Before that, what a task without a rule pays.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import psutil
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from adapters.file import Adapter, write_adapter
from benchmarks.common import machine
from benchmarks.family import WAIT_S, served
from benchmarks.load import Clients, percentile
from service.settings import Settings
from service.watch.version_metrics import VersionMetrics
from service.web.comparisons import Comparisons

ROOT = Path(__file__).parent.parent
TASK, PICTURES, CALLS = "digits", 200, 20_000
PLANS: Mapping[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "no rule": (),
    "half of the traffic each, nothing compared": (
        ("traffic", {"weights": {"1": 1, "2": 1}, "guard": {"compare": 0, "max_latency_ratio": None}}),
    ),
    "the same, all of the new version's compared": (("traffic", {"weights": {"1": 1, "2": 1}, "guard": None}),),
    "a shadow that sees everything": (("shadow", {"version": 2, "share": 1}),),
}


def requests() -> list[bytes]:
    """Noisy digits, each another picture."""
    shown = np.asarray(Image.open(ROOT / "adapters/demo/samples/digits-2.png").convert("L"))
    dice, made = np.random.default_rng(0), []
    for _ in range(PICTURES):
        file = io.BytesIO()
        noisy = np.clip(shown + dice.normal(0, 40, shown.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(file, "PNG")
        head = f"POST /v1/tasks/{TASK}/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {file.tell()}\r\n\r\n"
        made.append(head.encode() + file.getvalue())
    return made


async def ask(port: int, asked: Sequence[bytes], clients: int, pause_s: float, seconds: float) -> list[float]:
    """The seconds of each answer; each client rests after one, so that the machine has time for what is beside them."""
    pool, times, following = Clients(port), list[float](), itertools.cycle(asked)
    end = time.perf_counter() + seconds

    async def client() -> None:
        while (now := time.perf_counter()) < end:
            times.append(await pool.timed(next(following), now))
            await asyncio.sleep(pause_s)

    await asyncio.gather(*(client() for _ in range(clients)))
    pool.close()
    return times


def front_end_seconds(supervisor: int) -> float:
    """Processor time of all front ends so far."""
    children = psutil.Process(supervisor).children()
    fronts = [child for child in children if "service.web.process" in child.cmdline()]
    return sum(sum(child.cpu_times()[:2]) for child in fronts)


def comparisons(url: str) -> tuple[int, int]:
    """Made and left out, so far."""
    found = {"adaptserve_version_compared_total": 0.0, "adaptserve_comparisons_dropped_total": 0.0}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=WAIT_S).text):
        for sample in family.samples:
            if sample.name in found:
                found[sample.name] += sample.value
    made, dropped = found.values()
    return int(made), int(dropped)


def without_a_rule() -> tuple[float, float]:
    """Microseconds that finding the version of a task without a rule takes, as before there were rules and as now."""
    served = object()

    async def resolve(*_: object) -> object:
        return served

    ruled = SimpleNamespace(ruled={"another": object()})
    catalogue = cast(Any, SimpleNamespace(resolve=resolve, repository=ruled))
    nothing = cast(Any, None)
    made = Comparisons(Settings(), catalogue, nothing, nothing, cast(VersionMetrics, None), nothing)

    async def timed() -> tuple[float, float]:
        start = time.perf_counter()
        for _ in range(CALLS):
            await resolve(TASK, None)
        between = time.perf_counter()
        for _ in range(CALLS):
            found = [await made.version_for(TASK, None, nothing)]
            [one for one in found if one is None]
        end = time.perf_counter()
        return 1e6 * (between - start) / CALLS, 1e6 * (end - between) / CALLS

    rounds = [asyncio.run(timed()) for _ in range(5)]
    return min(before for before, _ in rounds), min(now for _, now in rounds)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each plan in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds that a client rests after an answer")
    given = parser.parse_args()
    before, now = without_a_rule()
    console = Console(width=140)
    console.print(
        f"finding the version of a task without a rule: {before:.2f} µs without rules, {now:.2f} µs with them"
    )
    asked, times = requests(), {name: list[float]() for name in PLANS}
    spent, compared = dict.fromkeys(PLANS, 0.0), dict.fromkeys(PLANS, (0, 0))
    with tempfile.TemporaryDirectory() as name, served([], Path(name)) as (pid, url, _):
        digits = Adapter.load(ROOT / "adapters/demo/tasks/digits.safetensors")
        other = {key: tensor * 1.01 if key == "head.weight" else tensor for key, tensor in digits.tensors.items()}
        write_adapter(Path(name) / "other.safetensors", digits.config, other)
        client = httpx.Client(base_url=f"{url}/v1/tasks/{TASK}", timeout=WAIT_S)
        content = (Path(name) / "other.safetensors").read_bytes()
        client.put("/adapter", content=content, params={"activate": False}).raise_for_status()
        port = int(url.rpartition(":")[2])
        asyncio.run(ask(port, asked, given.clients, 0.0, 2.0))
        for _ in range(given.rounds):
            for plan, calls in PLANS.items():
                for path, body in calls:
                    client.put(f"/{path}", json=body).raise_for_status()
                start, first = front_end_seconds(pid), comparisons(url)
                times[plan] += asyncio.run(ask(port, asked, given.clients, given.pause, given.seconds))
                time.sleep(1)  # what is beside the last ones
                spent[plan] += front_end_seconds(pid) - start
                last = comparisons(url)
                done, left = compared[plan]
                compared[plan] = done + last[0] - first[0], left + last[1] - first[1]
                for path, _ in calls:
                    client.delete(f"/{path}").raise_for_status()
    table = Table()
    for column in ("plan", "answers", "p50", "p99", "front ends' ms of processor for each", "compared", "left out"):
        table.add_column(column)
    for plan, seen in times.items():
        table.add_row(
            plan, str(len(seen)), f"{1000 * statistics.median(seen):.2f} ms", f"{1000 * percentile(seen, 0.99):.1f} ms",
            f"{1000 * spent[plan] / len(seen):.2f}", *map(str, compared[plan]),
        )  # fmt: skip
    console.print(table)
    console.print(machine(torch.device("cpu")))


if __name__ == "__main__":
    main()
