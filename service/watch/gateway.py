"""Metrics under vLLM's names, by which the endpoint picker of Kubernetes' Gateway API Inference Extension chooses.

It knows an engine's snapshot and which tasks its adapters are of; docs/DEPLOY.md says what each number means here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from service.watch.metrics import Snapshot

MAX_LABEL = 8192
"""Characters of a label at most: the names that still fit."""


def gateway_metrics(now: Snapshot, tasks: Mapping[str, Sequence[str]], slots: int) -> Iterator[Metric]:
    """``tasks`` are the names of those that each digest is the active version of, ``slots`` how many a device has."""
    waiting = max(0, now.queue_rows - now.running_rows)
    yield GaugeMetricFamily("vllm:num_requests_waiting", "Rows that wait for the device.", value=waiting)
    yield GaugeMetricFamily("vllm:num_requests_running", "Rows that the device computes.", value=now.running_rows)
    used = now.slots.get("used", 0) + now.slots.get("pinned", 0)
    yield GaugeMetricFamily(
        "vllm:kv_cache_usage_perc", "Share of the slots that hold an adapter which somebody needs this moment, 0 to 1.",
        value=now.slots.get("pinned", 0) / (used + now.slots.get("free", 0) or 1),
    )  # fmt: skip
    info = GaugeMetricFamily(
        "vllm:lora_requests_info", "When this was so, in seconds since 1970.",
        labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
    )  # fmt: skip
    running, waiting_for = (
        joined(name for digest in reversed(digests) for name in tasks.get(digest, ()))
        for digests in (now.resident, now.waiting)
    )
    info.add_metric([str(slots), running, waiting_for], time.time())
    yield info


def joined(names: Iterable[str]) -> str:
    """By commas, each once, those that fit into MAX_LABEL."""
    found, length = list[str](), 0
    for name in dict.fromkeys(names):
        length += len(name) + 1
        if length > MAX_LABEL + 1:
            break
        found.append(name)
    return ",".join(found)
