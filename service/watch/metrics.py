"""Metrics: what operators see at /metrics, in Prometheus' own names and units, task labels bounded.

It is told what happened; it does not know the engine, the bank or HTTP. Gauges are read when scraped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from service.watch.stats import Stats, stats_of
from service.watch.version_metrics import OTHER, VersionMetrics, version_gauges

MAX_TASK_LABELS = 1000
UNKNOWN = "_unknown"
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The client library's own variable: processes that have it when they import the library keep their numbers there."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Snapshot:
    """What is held now; ``loads`` and ``evictions`` count since start, per tier, and so do hits.

    ``store_*``: how old the view of a store that servers share is, in seconds, and up to which change it goes.
    ``traffic``: task, version, and its share of the task's requests, where several share them.
    """

    queue_rows: int
    slots: Mapping[str, int]
    host_cache_bytes: int
    loads: Mapping[str, int]
    evictions: Mapping[str, int]
    device_memory_bytes: int
    ready: bool
    prefix_cache_hits: int = 0
    store_age_s: float = 0.0
    store_generation: int = 0
    traffic: Sequence[tuple[str, int, float]] = ()
    roll_backs: int = 0

    @classmethod
    def nothing(cls) -> Self:
        """Of no engine."""
        return cls(0, {}, 0, {}, {}, 0, ready=False)

    def __add__(self, other: Snapshot) -> Snapshot:
        """Of two engines; ready if one of them is."""
        return Snapshot(
            self.queue_rows + other.queue_rows, _sum(self.slots, other.slots),
            self.host_cache_bytes + other.host_cache_bytes, _sum(self.loads, other.loads),
            _sum(self.evictions, other.evictions), self.device_memory_bytes + other.device_memory_bytes,
            self.ready or other.ready, self.prefix_cache_hits + other.prefix_cache_hits,
        )  # fmt: skip


class Metrics:
    """Counters and histograms of this process."""

    def __init__(self, process: str = "") -> None:
        """``process`` names it among those that share a folder of numbers, over its restarts too: it counts on."""
        if process and SHARED_FOLDER in os.environ:
            # By default it is a file for each process id.
            values.ValueClass = values.MultiProcessValue(lambda: process)  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._labels: set[str] = set()
        self._stages: dict[str, Histogram] = {}
        # Both bounded as the labels are; looking one up in the library costs as much as counting.
        self._outcomes: dict[tuple[str, int], Counter] = {}
        self._times: dict[str, Counter] = {}
        self._requests = Counter(
            "adaptserve_requests",
            "Requests about tasks, and those refused before their address came, by task and HTTP status.",
            ["task", "code"], registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "adaptserve_request_seconds",
            "Seconds that a request spent per stage; total is from the first header to the last byte of the answer.",
            ["stage"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._rows = Histogram("adaptserve_batch_rows", "Rows (frames) in a batch.", buckets=_POWERS, registry=registry)
        self._adapters = Histogram(
            "adaptserve_batch_adapters", "Distinct adapters in a batch.", buckets=_POWERS, registry=registry
        )
        self._task_seconds = Counter(
            "adaptserve_task_seconds", "Seconds that the requests about a task took in all, as the stage total.",
            ["task"], registry=registry,
        )  # fmt: skip
        self._batch_failures = Counter("adaptserve_batch_failures", "Forward passes that raised.", registry=registry)
        self._load_seconds = Histogram(
            "adaptserve_adapter_load_seconds", "Seconds to bring an adapter into its slot.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._uploads = Counter(
            "adaptserve_uploads", "Uploads by outcome: created, same, refused or failed.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self._items = Counter(
            "adaptserve_batch_call_items", "Pictures and clips of batch calls by outcome: answered or failed.",
            ["outcome"], registry=registry,
        )  # fmt: skip

        self._holder_rows = Counter(
            "adaptserve_holder_rows", "Rows computed for each key, by its name; without keys all for none.", ["holder"],
            registry=registry,
        )  # fmt: skip
        self._limited = Counter(
            "adaptserve_holder_refusals", "Requests of a key beyond its rate or its quota, by its name and which.",
            ["holder", "reason"], registry=registry,
        )  # fmt: skip
        self._rows_of: dict[str, Counter] = {}
        self.versions = VersionMetrics(registry)

    def requested(self, tasks: Sequence[str], code: int, seconds: float | None) -> None:
        """A request about tasks ended; ``tasks`` that exist or UNKNOWN, none for calls that name no task.

        Without ``seconds`` it never came whole: it is counted, but says nothing of the server's time.
        """
        for task in tasks or ("",):
            outcome = self._outcomes.get((task, code))
            if outcome is None:
                outcome = self._outcome(self._label(task), code)
            outcome.inc()
        if seconds is not None:
            self._stage("total").observe(seconds)
            for task in tasks:
                self._time(self._label(task)).inc(seconds)

    def staged(self, decode_s: float, queue_s: float, compute_s: float) -> None:
        """A prediction's stages."""
        self._stage("decode").observe(decode_s)
        self._stage("queue").observe(queue_s)
        self._stage("compute").observe(compute_s)

    def batch(self, rows: int, adapters: int, holders: Mapping[str, int], *, failed: bool) -> None:
        """A forward pass ended, which had rows of these holders; on the engine's thread."""
        self._rows.observe(rows)
        self._adapters.observe(adapters)
        if failed:
            self._batch_failures.inc()
            return
        for holder, own in holders.items():
            found = self._rows_of.get(holder)
            if found is None:
                found = self._rows_of[holder] = self._holder_rows.labels(holder)
            found.inc(own)

    def limited(self, holder: str, reason: str, times: int) -> None:
        """A key was refused for its ``rate`` or ``quota``, so many times more."""
        self._limited.labels(holder, reason).inc(times)

    def loaded(self, seconds: float) -> None:
        """An adapter reached its slot; on the bank's thread."""
        self._load_seconds.observe(seconds)

    def uploaded(self, outcome: str) -> None:
        """``created``, ``same``, ``refused`` (the client's fault) or ``failed`` (ours)."""
        self._uploads.labels(outcome).inc()

    def item(self, outcome: str) -> None:
        """One of a batch call's: ``answered`` or ``failed``."""
        self._items.labels(outcome).inc()

    def render(self, now: Snapshot, build: Mapping[str, str]) -> bytes:
        """The text that Prometheus scrapes: of all processes of the server, where they share a folder of numbers.

        ``build`` are the labels of adaptserve_build_info. Blocks.
        """
        return b"".join(generate_latest(registry) for registry in self._registries(now, build))

    def stats(self, now: Snapshot, limit: int) -> Stats:
        """The same as one document, with the ``limit`` tasks that were asked most. Blocks."""
        return stats_of((family for registry in self._registries(now, {}) for family in registry.collect()), limit)

    def _registries(self, now: Snapshot, build: Mapping[str, str]) -> list[CollectorRegistry]:
        shared = os.environ.get(SHARED_FOLDER)
        registry = CollectorRegistry()
        registry.register(_Gauges(now, build))
        if shared is None:
            return [self._registry, registry]
        MultiProcessCollector(registry, shared)  # type: ignore[no-untyped-call]
        return [registry]

    def _stage(self, name: str) -> Histogram:
        found = self._stages.get(name)
        if found is None:
            found = self._stages[name] = self._seconds.labels(name)
        return found

    def _outcome(self, label: str, code: int) -> Counter:
        found = self._outcomes.get((label, code))
        if found is None:
            found = self._outcomes[label, code] = self._requests.labels(label, str(code))
        return found

    def _time(self, label: str) -> Counter:
        found = self._times.get(label)
        if found is None:
            found = self._times[label] = self._task_seconds.labels(label)
        return found

    def _label(self, task: str) -> str:
        if task not in self._labels:
            if len(self._labels) >= MAX_TASK_LABELS:
                return OTHER
            self._labels.add(task)
        return task


class _Gauges(Collector):
    def __init__(self, now: Snapshot, build: Mapping[str, str]) -> None:
        self._now, self._build = now, build

    def describe(self) -> list[Metric]:
        return []  # registering must not read

    def collect(self) -> Iterator[Metric]:
        now = self._now
        yield _gauge("adaptserve_queue_rows", "Rows accepted and not yet answered.", now.queue_rows)
        slots = GaugeMetricFamily("adaptserve_bank_slots", "Slots on the device.", labels=["state"])
        for state, count in now.slots.items():
            slots.add_metric([state], count)
        yield slots
        yield _gauge("adaptserve_host_cache_bytes", "Bytes of adapters in the host cache.", now.host_cache_bytes)
        yield _per_tier("adaptserve_adapter_loads", "Adapters brought into a tier.", now.loads)
        yield _per_tier("adaptserve_adapter_evictions", "Adapters put out of a tier.", now.evictions)
        yield _gauge("adaptserve_device_memory_bytes", "Bytes that torch holds on the device.", now.device_memory_bytes)
        hits = CounterMetricFamily("adaptserve_prefix_cache_hits", "Pictures that went on from kept tokens.")
        hits.add_metric([], now.prefix_cache_hits)
        yield hits
        yield _gauge(
            "adaptserve_store_age_seconds", "Seconds since the shared store last answered; 0 without one.",
            now.store_age_s,
        )  # fmt: skip
        yield _gauge(
            "adaptserve_store_generation", "The shared store's last change that is known here.", now.store_generation
        )
        yield from version_gauges(now.traffic, now.roll_backs)
        yield _gauge("adaptserve_ready", "1 when the last forward pass succeeded lately.", int(now.ready))
        info = GaugeMetricFamily("adaptserve_build_info", "What runs here; always 1.", labels=list(self._build))
        info.add_metric(list(self._build.values()), 1)
        yield info


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _per_tier(name: str, text: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["tier"])
    for tier, count in values.items():
        family.add_metric([tier], count)
    return family


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> Mapping[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
