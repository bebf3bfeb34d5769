"""Metrics for the endpoint picker of the Gateway API Inference Extension: read as it reads them."""

from __future__ import annotations

import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from service.watch.gateway import MAX_LABEL, gateway_metrics, joined
from service.watch.metrics import Metrics, Snapshot
from tests.houses import Kit, house, photograph

PICTURE = photograph()


def scraped(text: str) -> dict[str, tuple[dict[str, str], float]]:
    families = text_string_to_metric_families(text)
    return {s.name: (s.labels, s.value) for family in families for s in family.samples if s.name.startswith("vllm:")}


def test_the_picker_sees_the_queue_and_the_tasks_on_the_device(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path, gateway_metrics=True, slots=8)) as home:
        for name, seed in (("pets", 1), ("cats", 2), ("twin", 1), ("staged", 3)):
            home.put(name, kit.file(seed, task=name)[0], activate=name != "staged").raise_for_status()
        home.ask("pets", PICTURE).raise_for_status()
        found = scraped(home.client.get("/metrics").text)
    labels, when = found["vllm:lora_requests_info"]
    assert set(labels["running_lora_adapters"].split(",")) == {"pets", "cats", "twin"}  # an upload is tried in its slot
    assert (labels["max_lora"], labels["waiting_lora_adapters"]) == ("8", "")
    assert abs(when - time.time()) < 60
    for name in ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"):
        assert found[name] == ({}, 0.0)


def test_they_are_shown_only_where_they_are_wanted(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path)) as home:
        assert "vllm" not in home.client.get("/metrics").text


def test_rows_that_are_computed_do_not_wait() -> None:
    now = Snapshot(40, {"used": 1, "pinned": 3, "free": 4}, 0, {}, {}, 0, True, running_rows=32, waiting=["b", "c"])
    text = Metrics().render(now, {}, list(gateway_metrics(now, {"b": ["cold"]}, 8))).decode()
    found = scraped(text)
    assert found["vllm:num_requests_waiting"][1] == 8
    assert found["vllm:num_requests_running"][1] == 32
    assert found["vllm:kv_cache_usage_perc"][1] == 3 / 8
    assert found["vllm:lora_requests_info"][0]["waiting_lora_adapters"] == "cold"


@given(st.lists(st.text("abc.-_9", min_size=1, max_size=64), max_size=400))
def test_a_label_has_a_bound(names: list[str]) -> None:
    label = joined(names)
    assert len(label) <= MAX_LABEL
    given_once = list(dict.fromkeys(names))
    shown = label.split(",") if label else []
    assert shown == given_once[: len(shown)]
    if len(shown) < len(given_once):
        assert len(label) + len(given_once[len(shown)]) + 1 > MAX_LABEL
