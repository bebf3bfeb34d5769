"""`top`: the busiest tasks of a running server, live, from what it tells everybody: /metrics and /v1/tasks.

It knows HTTP and Prometheus' text format; no torch is imported for it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated

import typer
from prometheus_client.parser import text_string_to_metric_families
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


@dataclass
class Sample:
    """What the server had counted at one moment; ``buckets`` are cumulative counts by upper bound in seconds."""

    time: float
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    buckets: dict[str, dict[float, float]] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)


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
        before = look(client)
        if once:
            time.sleep(interval)
            out().print(picture(client, before, look(client), url, rows))
            return
        with suppress(KeyboardInterrupt), Live(console=out(), auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                now = look(client)
                live.update(picture(client, before, now, url, rows), refresh=True)
                before = now


def look(client: Client) -> Sample:
    """Ask once. Raises AdaptServeError."""
    found = Sample(time.monotonic())
    for family in text_string_to_metric_families(client.metrics()):
        for name, labels, value, *_ in family.samples:
            if name == "adaptserve_requests_total":
                found.requests[labels["task"], labels["code"]] += int(value)
            elif name == "adaptserve_request_seconds_bucket":
                found.buckets.setdefault(labels["stage"], {})[float(labels["le"])] = value
            elif not labels or name == "adaptserve_bank_slots":
                found.gauges[":".join((name, *labels.values()))] = value
    return found


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


def picture(client: Client, before: Sample, now: Sample, url: str, rows: int) -> Group:
    """The lines about the server and the table of its tasks, the busiest first."""
    seconds = max(now.time - before.time, 1e-3)
    rates: dict[str, Counter[str]] = {}
    for (task, code), count in now.requests.items():
        rate = (count - before.requests[task, code]) / seconds
        rates.setdefault(task, Counter())[code[0]] += rate  # type: ignore[assignment]
    shown = busiest(client, {task: rate.total() for task, rate in rates.items()}, rows)
    return Group(_server(before, now, rates, url), _stages(before, now), _tasks(shown, rates))


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


def _server(before: Sample, now: Sample, rates: Mapping[str, Counter[str]], url: str) -> str:
    def gauge(name: str) -> float:
        return now.gauges.get(f"adaptserve_{name}", 0.0)

    def grown(name: str) -> float:
        return gauge(name) - before.gauges.get(f"adaptserve_{name}", 0.0)

    slots = {state: gauge(f"bank_slots:{state}") for state in ("used", "pinned", "free")}
    return (
        f"{url} {'ready' if gauge('ready') else 'NOT READY'}: {sum(rate.total() for rate in rates.values()):.1f} "
        f"requests/s, {gauge('queue_rows'):.0f} rows in the queue, "
        f"{grown('batch_rows_sum') / max(grown('batch_rows_count'), 1):.1f} rows a batch\n"
        f"slots: {slots['used'] + slots['pinned']:.0f} used, {slots['free']:.0f} free; "
        f"device memory {gauge('device_memory_bytes') / 2**20:.0f} MiB"
    )


def _stages(before: Sample, now: Sample) -> str:
    told = []
    for stage in STAGES:
        found = [quantile(q, before.buckets.get(stage, {}), now.buckets.get(stage, {})) for q in QUANTILES]
        told.append(f"{stage} " + "/".join("-" if math.isnan(value) else f"{1000 * value:.1f}" for value in found))
    return f"p50/p99 ms: {', '.join(told)}"


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
