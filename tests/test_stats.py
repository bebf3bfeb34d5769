"""Stats: the numbers of /metrics as one bounded document, of one process and of several."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.watch.metrics import OTHER, UNKNOWN, Metrics, Snapshot
from service.watch.stats import Stats
from tests.houses import Kit, house, photograph, problem

HELD = Snapshot(3, {"used": 2, "free": 6}, 100, {"device": 5, "host": 2}, {"device": 1}, 200, ready=True)


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Metrics:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    return Metrics()


def test_what_was_counted_is_told(metrics: Metrics) -> None:
    for seconds in (0.002, 0.02, 20.0):
        metrics.requested(["digits"], 200, seconds)
    metrics.requested(["digits"], 422, 0.004)
    metrics.requested(["letters", "digits"], 200, 0.05)
    metrics.requested([UNKNOWN], 404, 0.001)
    metrics.requested([], 200, 0.001)
    metrics.requested(["letters"], 408, None)  # never came whole
    metrics.staged(0.01, 0.2, 0.03)
    metrics.batch(5, 2, {"": 5}, failed=False)
    metrics.batch(8, 8, {"": 8}, failed=True)
    told = metrics.stats(HELD, 100)
    assert told.requests.total == 9
    assert told.requests.by_code == {"200": 6, "422": 1, "404": 1, "408": 1}
    digits, letters, unknown = told.tasks
    assert (digits.task, digits.requests, digits.errors) == ("digits", 5, 1)
    assert digits.by_code == {"200": 4, "422": 1}
    assert digits.seconds == pytest.approx(20.076)
    assert (letters.task, letters.requests, letters.errors) == ("letters", 2, 1)
    assert letters.seconds == pytest.approx(0.05)
    assert unknown.task == UNKNOWN
    assert told.stages["total"].counts[-1] == 7
    assert told.stages["total"].bounds[-1] is None
    assert dict(zip(told.stages["queue"].bounds, told.stages["queue"].counts, strict=True))[0.1] == 0
    assert dict(zip(told.stages["queue"].bounds, told.stages["queue"].counts, strict=True))[0.25] == 1
    assert told.stages["queue"].total == pytest.approx(0.2)
    assert (told.batch.rows.counts[-1], told.batch.rows.total) == (2, 13)
    assert (told.batch.adapters.total, told.batch.failures) == (10, 1)
    assert (told.queue_rows, told.slots) == (3, {"used": 2, "free": 6})
    assert (told.loads, told.evictions) == ({"device": 5, "host": 2}, {"device": 1})
    assert (told.host_cache_bytes, told.device_memory_bytes, told.ready) == (100, 200, True)


def test_nothing_yet_is_told_too(metrics: Metrics) -> None:
    told = metrics.stats(Snapshot.nothing(), 100)
    assert (told.requests.total, told.tasks, told.ready) == (0, [], False)
    assert told.batch.rows.counts[-1] == 0


def test_tasks_are_bounded_and_the_busiest_stay(metrics: Metrics) -> None:
    for number in range(30):
        for _ in range(number):
            metrics.requested([f"t{number:02}"], 200, 0.001)
    assert [one.task for one in metrics.stats(HELD, 3).tasks] == ["t29", "t28", "t27"]
    assert metrics.stats(HELD, 0).tasks == []


def test_tasks_beyond_the_labels_share_one(metrics: Metrics) -> None:
    for number in range(1010):
        metrics.requested([f"t{number}"], 200, 1.0)
    told = metrics.stats(HELD, 2000).tasks
    assert len(told) == 1001
    assert (told[0].task, told[0].requests, told[0].seconds) == (OTHER, 10, 10.0)


def test_over_http(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path / "data")) as made:
        made.put("digits", kit.file(1)[0]).raise_for_status()
        for _ in range(3):
            made.ask("digits", photograph()).raise_for_status()
        problem(made.ask("nosuch", photograph()), 404)
        told = Stats.model_validate(made.client.get("/v1/stats").raise_for_status().json())
        of = {one.task: one for one in told.tasks}
        assert of["digits"].requests == 3
        assert of[UNKNOWN].errors == 1
        assert told.ready
        assert told.batch.rows.total >= 3
        assert {"decode", "queue", "compute", "total"} == set(told.stages)
        for limit in ("-1", "1001", "x"):
            assert problem(made.client.get("/v1/stats", params={"limit": limit}), 400)["field"] == "limit"
