"""Stats: what /metrics tells, as one bounded document that a page or a terminal takes differences of.

It knows metric families by their names in ``service.watch.metrics``, and no HTTP.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Self

from prometheus_client.core import Metric
from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Buckets(_Part):
    """A histogram since the server started."""

    bounds: list[float | None] = Field(description="upper bounds, growing; null: no bound", examples=[[0.01, None]])
    counts: list[int] = Field(description="how many were at most that, cumulative", examples=[[3, 5]])
    total: float = Field(description="the sum of all that was counted", examples=[0.07])

    @classmethod
    def of(cls, counts: dict[float, float], total: float) -> Self:
        bounds = sorted(counts)
        return cls(
            bounds=[None if bound == float("inf") else bound for bound in bounds],
            counts=[int(counts[bound]) for bound in bounds], total=total,
        )  # fmt: skip


class ForwardPasses(_Part):
    """Forward passes."""

    rows: Buckets = Field(description="rows in a batch")
    adapters: Buckets = Field(description="different adapters in a batch")
    failures: int = Field(description="forward passes that raised")


class TaskStats(_Part):
    """A task's requests. `_unknown` are names that do not exist, `_other` what has no label of its own."""

    task: str = Field(examples=["digits"])
    requests: int
    errors: int = Field(description="of these, the ones that were refused or failed")
    seconds: float = Field(description="from the first header to the last byte of the answer, all together")
    by_code: dict[str, int] = Field(description="by HTTP status", examples=[{"200": 3}])


class Requests(_Part):
    """All of them."""

    total: int
    by_code: dict[str, int] = Field(description="by HTTP status", examples=[{"200": 3}])


class StoreStats(_Part):
    """The store that several servers share, as this one knows it."""

    age_s: float | None = Field(description="since it last answered; null: it has not since the start", examples=[0.2])
    generation: int = Field(description="its last change that is known here", examples=[41])


class Stats(_Part):
    """Counters grow from the server's start on: take the differences of two answers. Times are in seconds."""

    time: float = Field(description="of this answer, since 1970")
    ready: bool
    requests: Requests
    stages: dict[str, Buckets] = Field(description="`decode`, `queue`, `compute` of predictions; `total` of requests")
    batch: ForwardPasses
    queue_rows: int = Field(description="accepted and not yet answered")
    slots: dict[str, int] = Field(description="of the bank, by state")
    host_cache_bytes: int
    device_memory_bytes: int
    loads: dict[str, int] = Field(description="adapters brought into a tier")
    evictions: dict[str, int] = Field(description="adapters put out of a tier")
    store: StoreStats | None = Field(None, description="null: the server has a folder of its own")
    tasks: list[TaskStats] = Field(description="those that were asked most, first; at most `limit`")


def stats_of(families: Iterable[Metric], limit: int) -> Stats:
    """What the families say, with the ``limit`` tasks that were asked most."""
    found = _Read()
    for family in families:
        for sample in family.samples:
            found.add(sample.name.removeprefix("adaptserve_"), sample.labels, sample.value)
    return found.stats(limit)


class _Read:
    """Samples by what they are of."""

    def __init__(self) -> None:
        self._codes: dict[str, Counter[str]] = {}
        self._buckets: dict[str, dict[float, float]] = {}
        self._single: dict[str, dict[str, float]] = {}

    def add(self, name: str, labels: dict[str, str], value: float) -> None:
        if name == "requests_total":
            self._codes.setdefault(labels["task"], Counter())[labels["code"]] += int(value)
        elif name.endswith("_bucket"):
            key = name.removesuffix("_bucket") + labels.get("stage", "")
            self._buckets.setdefault(key, {})[float(labels["le"])] = value
        else:
            self._single.setdefault(name, {})[next(iter(labels.values()), "")] = value

    def stats(self, limit: int) -> Stats:
        stages = sorted(key.removeprefix("request_seconds") for key in self._buckets if key.startswith("request_sec"))
        whole = sum(self._codes.values(), Counter[str]())
        named = sorted((task for task in self._codes if task), key=lambda task: (-self._codes[task].total(), task))
        return Stats(
            time=time.time(), ready=bool(self._one("ready")), requests=Requests(total=whole.total(), by_code=whole),
            stages={stage: self._histogram("request_seconds", stage) for stage in stages},
            batch=ForwardPasses(
                rows=self._histogram("batch_rows"), adapters=self._histogram("batch_adapters"),
                failures=self._one("batch_failures_total"),
            ),
            queue_rows=self._one("queue_rows"), slots=self._by_label("bank_slots"),
            host_cache_bytes=self._one("host_cache_bytes"), device_memory_bytes=self._one("device_memory_bytes"),
            loads=self._by_label("adapter_loads_total"), evictions=self._by_label("adapter_evictions_total"),
            tasks=[self._task(task) for task in named[:limit]],
        )  # fmt: skip

    def _task(self, task: str) -> TaskStats:
        codes = self._codes[task]
        return TaskStats(
            task=task, requests=codes.total(), errors=sum(n for code, n in codes.items() if code[0] in "45"),
            seconds=self._single.get("task_seconds_total", {}).get(task, 0.0), by_code=codes,
        )  # fmt: skip

    def _histogram(self, name: str, stage: str = "") -> Buckets:
        return Buckets.of(self._buckets.get(name + stage, {}), self._single.get(f"{name}_sum", {}).get(stage, 0.0))

    def _by_label(self, name: str) -> dict[str, int]:
        return {label: int(value) for label, value in self._single.get(name, {}).items()}

    def _one(self, name: str) -> int:
        return int(self._single.get(name, {}).get("", 0.0))
