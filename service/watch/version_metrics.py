"""Metrics of versions that share a task's traffic, or are its shadow; all others cost nothing here.

It is told what happened, as ``service.watch.metrics`` is, of which it is a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

MAX_VERSION_LABELS = 1000
"""Pairs of a task and a version; all others together."""
OTHER = "_other"


class VersionMetrics:
    """Counters of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._labels: set[tuple[str, str]] = set()
        self._requests = Counter(
            "adaptserve_version_requests",
            "Pictures and clips that versions under a traffic rule or shadows computed, by outcome: answered, "
            "not_finite or failed.",
            ["task", "version", "outcome"], registry=registry,
        )  # fmt: skip
        self._seconds = Counter(
            "adaptserve_version_seconds", "Seconds that decoding, queueing and computing took for them in all.",
            ["task", "version"], registry=registry,
        )  # fmt: skip
        self._compared = Counter(
            "adaptserve_version_compared",
            "Answers of a new version or a shadow held against the active version's, by outcome: agreed or disagreed.",
            ["task", "version", "outcome"], registry=registry,
        )  # fmt: skip
        self._dropped = Counter(
            "adaptserve_comparisons_dropped", "Comparisons that were left out, by why.", ["reason"], registry=registry
        )

    def answered(self, task: str, version: int, seconds: float) -> None:
        """It computed scores; without ``seconds`` nobody waited for them."""
        labels = self._of(task, version)
        self._requests.labels(*labels, "answered").inc()
        if seconds:
            self._seconds.labels(*labels).inc(seconds)

    def failed(self, task: str, version: int, *, not_finite: bool) -> None:
        """It should have."""
        self._requests.labels(*self._of(task, version), "not_finite" if not_finite else "failed").inc()

    def compared(self, task: str, version: int, *, agreed: bool) -> None:
        """Its best label and the active version's are known."""
        self._compared.labels(*self._of(task, version), "agreed" if agreed else "disagreed").inc()

    def dropped(self, reason: str) -> None:
        """A comparison was left out."""
        self._dropped.labels(reason).inc()

    def _of(self, task: str, version: int) -> tuple[str, str]:
        labels = task, str(version)
        if labels not in self._labels:
            if len(self._labels) >= MAX_VERSION_LABELS:
                return OTHER, OTHER
            self._labels.add(labels)
        return labels


def version_gauges(
    traffic: Sequence[tuple[str, int, float]], roll_backs: int
) -> Iterator[Metric]:  # fmt: skip
    """What is so now: the share of each version of those tasks whose requests several share, and roll-backs so far."""
    shares = GaugeMetricFamily(
        "adaptserve_traffic_share", "Share of a task's requests that a version answers, where several share them.",
        labels=["task", "version"],
    )  # fmt: skip
    for task, version, share in traffic[:MAX_VERSION_LABELS]:
        shares.add_metric([task, str(version)], share)
    yield shares
    text = "New versions that lost their traffic for what they did."
    yield CounterMetricFamily("adaptserve_roll_backs", text, value=roll_backs)
