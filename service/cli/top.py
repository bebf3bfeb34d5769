"""`top`: the busiest tasks of a running server, live, from what it tells: /v1/stats and /v1/tasks.

It knows no torch.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table

from adaptserve_client import Client, Task
from adaptserve_client.calls import DEFAULT_URL
from service.cli.client import Key, Url
from service.cli.console import one_line_errors, out

TIMEOUT_S = 10.0
STAGES = ("decode", "queue", "compute", "total")
QUANTILES = (0.5, 0.99)
LIMIT = 1000
"""Tasks that the server is asked about: as many as it counts apart."""
Stats: TypeAlias = Mapping[str, Any]
"""What the server had counted at one moment."""


@dataclass(frozen=True)
class Busiest:
    """The tasks of a table as /v1/tasks tells of them, the busiest first, and how many there are in all."""

    tasks: list[Task]
    count: int


def top(
    url: Url = DEFAULT_URL,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    rows: Annotated[int, typer.Option(min=1, help="How many tasks to show.")] = 20,
    once: Annotated[bool, typer.Option("--once", help="Print one table after one interval, and end.")] = False,
    key: Key = None,
) -> None:
    """Show a server's busiest tasks: requests a second, where the time goes, what waits, who is resident.

    Rates and percentiles are of the last interval. The key needs the scope admin, since it sees all tasks.

    Example:  adaptserve top --url http://127.0.0.1:8000
    """
    with one_line_errors(), Client(url, key, timeout=TIMEOUT_S, retries=0) as client:
        before = client.stats(LIMIT)
        if once:
            time.sleep(interval)
            out().print(picture(client, before, client.stats(LIMIT), url, rows))
            return
        with suppress(KeyboardInterrupt), Live(console=out(), auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                now = client.stats(LIMIT)
                live.update(picture(client, before, now, url, rows), refresh=True)
                before = now


def quantile(q: float, before: Mapping[float, float], after: Mapping[float, float]) -> float:
    """Seconds within which the share ``q`` of the observations between two looks lay; NaN if there were none.

    Linear within a bucket, as Prometheus' histogram_quantile; the last finite bound for what lies beyond it.
    """
    bounds = sorted(after)
    counts = [after[bound] - before.get(bound, 0.0) for bound in bounds]
    if not counts or counts[-1] <= 0:
        return math.nan
    wanted, low, below = q * counts[-1], 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= wanted:
            return low if math.isinf(bound) else low + (bound - low) * (wanted - below) / max(count - below, 1e-9)
        low, below = bound, count
    return low


def picture(client: Client, before: Stats, now: Stats, url: str, rows: int) -> Group:
    """The lines about the server and the table of its tasks, the busiest first."""
    rates = _rates(before, now)
    shown = busiest(client, {task: rate.total() for task, rate in rates.items()}, rows)
    return Group(_server(before, now, url), _stages(before, now), _tasks(shown, rates))


def busiest(client: Client, rates: Mapping[str, float], rows: int) -> Busiest:
    """The tasks that were asked most, then others by name. Of ten thousand tasks only those shown are asked about.

    Through the list alone: a call that names a task would count as one more of its requests.
    """

    named = (task for task in rates if rates[task] > 0 and not task.startswith("_"))  # _unknown, _other
    asked = sorted(named, key=lambda task: (-rates[task], task))
    found: dict[str, Task] = {}
    for name in asked[:rows]:
        first = next(client.tasks(name, limit=1), None)  # a name comes before those that it begins
        if first and first.task == name:
            found[name] = first
    for task in client.tasks():
        if len(found) >= rows:
            break
        found.setdefault(task.task, task)
    return Busiest(list(found.values())[:rows], client.server().count)


def _seconds(before: Stats, now: Stats) -> float:
    return max(float(now["time"] - before["time"]), 1e-3)


def _rates(before: Stats, now: Stats) -> dict[str, Counter[str]]:
    """Of each task: requests a second by the first digit of their status."""
    was = {task["task"]: task["by_code"] for task in before["tasks"]}
    rates: dict[str, Counter[str]] = {}
    for task in now["tasks"]:
        rate = rates.setdefault(task["task"], Counter())
        for code, count in task["by_code"].items():
            grown = (count - was.get(task["task"], {}).get(code, 0)) / _seconds(before, now)
            rate[code[0]] += grown
    return rates


def _server(before: Stats, now: Stats, url: str) -> str:
    rate = (now["requests"]["total"] - before["requests"]["total"]) / _seconds(before, now)
    rows, earlier = (stats["batch"]["rows"] for stats in (now, before))
    batches = (rows["counts"] or [0])[-1] - (earlier["counts"] or [0])[-1]
    slots = now["slots"]
    return (
        f"{url} {'ready' if now['ready'] else 'NOT READY'}: {rate:.1f} requests/s, {now['queue_rows']} rows in the "
        f"queue, {(rows['total'] - earlier['total']) / max(batches, 1):.1f} rows a batch\n"
        f"slots: {slots.get('used', 0) + slots.get('pinned', 0)} used, {slots.get('free', 0)} free; "
        f"device memory {now['device_memory_bytes'] / 2**20:.0f} MiB{_store(now.get('store'))}"
    )


def _store(told: Mapping[str, Any] | None) -> str:
    """How old the view of the shared store is; nothing where the server has a folder of its own."""
    if told is None:
        return ""
    heard = "has not answered yet" if told["age_s"] is None else f"answered {told['age_s']:.1f} s ago"
    return f"\nstore: {heard}, known up to change {told['generation']}"


def _stages(before: Stats, now: Stats) -> str:
    told = []
    for stage in STAGES:
        earlier, later = (_cumulative(stats["stages"].get(stage)) for stats in (before, now))
        found = [quantile(q, earlier, later) for q in QUANTILES]
        told.append(f"{stage} " + "/".join("-" if math.isnan(value) else f"{1000 * value:.1f}" for value in found))
    return f"p50/p99 ms: {', '.join(told)}"


def _cumulative(buckets: Mapping[str, Any] | None) -> dict[float, float]:
    """Counts by upper bound."""
    if buckets is None:
        return {}
    bounds = (math.inf if bound is None else bound for bound in buckets["bounds"])
    return dict(zip(bounds, buckets["counts"], strict=True))


def _tasks(shown: Busiest, rates: Mapping[str, Counter[str]]) -> Table:
    table = Table("task", "version", "residency")
    for name in ("requests/s", "4xx/s", "5xx/s", "answered"):
        table.add_column(name, justify="right")
    for task in shown.tasks:
        rate = rates.get(task.task, Counter())
        numbers = (f"{value:.1f}" for value in (rate.total(), rate["4"], rate["5"]))
        version = "none" if task.version is None else str(task.version)
        table.add_row(task.task, version, task.residency, *numbers, str(task.requests.get("answered", 0)))
    if shown.count > len(shown.tasks):
        table.caption = f"and {shown.count - len(shown.tasks)} more"
    return table
