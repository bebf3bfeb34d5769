"""`adaptserve top`: percentiles from two looks at a histogram, and one table of a real server."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from adaptserve_client import Client
from service.cli.main import app
from service.cli.top import busiest, quantile
from service.keys import create, dump
from tests.houses import Kit, house, photograph

BOUNDS = (0.001, 0.01, 0.1, 1.0, math.inf)


def histogram(*counts: float) -> dict[float, float]:
    return dict(zip(BOUNDS, counts, strict=True))


@pytest.mark.parametrize(
    ("q", "before", "after", "expected"),
    [
        (0.5, histogram(0, 0, 0, 0, 0), histogram(0, 10, 10, 10, 10), 0.0055),
        (0.5, histogram(50, 50, 50, 50, 50), histogram(50, 60, 60, 60, 60), 0.0055),  # what was before does not count
        (0.99, histogram(0, 0, 0, 0, 0), histogram(0, 0, 98, 100, 100), 0.55),
        (0.99, histogram(0, 0, 0, 0, 0), histogram(0, 0, 0, 0, 5), 1.0),  # beyond the last bound: the last bound
        (0.5, {}, histogram(4, 4, 4, 4, 4), 0.0005),
    ],
)
def test_quantiles(q: float, before: dict[float, float], after: dict[float, float], expected: float) -> None:
    assert quantile(q, before, after) == pytest.approx(expected)


def test_no_requests_have_no_quantile() -> None:
    assert math.isnan(quantile(0.5, histogram(1, 2, 3, 4, 5), histogram(1, 2, 3, 4, 5)))
    assert math.isnan(quantile(0.5, {}, {}))


def test_once_prints_the_busiest_task_first(kit: Kit, tmp_path: Path) -> None:
    secret, key = create("boss", "admin")
    with house(kit.settings(data_dir=tmp_path / "data", keys=dump([key]))) as made:
        made.client.headers["Authorization"] = f"Bearer {secret}"
        for number, task in enumerate(("idle", "busy", "other")):
            made.put(task, kit.file(number)[0]).raise_for_status()
        end = threading.Event()

        def ask() -> None:
            while not end.is_set():
                made.ask("busy", photograph())

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            command = ["top", "--once", "--url", made.url, "--interval", "1", "--rows", "2"]
            done = CliRunner().invoke(app, [*command, "--key", secret])
        finally:
            end.set()
            asking.join()
        refused = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    rows = [re.split(r"[│\s]+", line.strip("│ ")) for line in done.output.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["busy", "idle"]
    assert rows[0][1:3] == ["1", "device"]
    assert float(rows[0][3]) > 0
    assert rows[1][3] == "0.0"
    assert "and 1 more" in done.output
    assert re.search(r"ready: [\d.]+ requests/s", done.output)
    assert re.search(r"p50/p99 ms: decode [\d.]+/[\d.]+, queue [\d.]+/[\d.]+, compute [\d.]+/[\d.]+", done.output)
    assert refused.exit_code == 1


def test_only_the_tasks_shown_are_asked_about(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path / "data", page_items=5)) as made, ExitStack() as stack:
        for number in range(7):
            made.put(f"t{number}", kit.file(number)[0]).raise_for_status()
        made.put("t5-more", kit.file(8)[0]).raise_for_status()
        asked: list[str] = []

        class Noting(httpx.HTTPTransport):
            def handle_request(self, request: httpx.Request) -> httpx.Response:
                asked.append(request.url.raw_path.decode())
                return super().handle_request(request)

        client = stack.enter_context(Client(made.url, transport=Noting()))
        shown = busiest(client, {"t5": 3.0, "t2": 1.0, "t1": 0.0, "gone": 2.0, "_unknown": 9.0}, 4)
        assert [task.task for task in shown.tasks] == ["t5", "t2", "t0", "t1"]
        assert shown.count == 8
        assert len(asked) == 5
        assert {path.partition("?")[0] for path in asked} == {"/v1/tasks"}  # none counts as a request of a task
        asked.clear()
        assert [task.task for task in busiest(client, {"t5": 3.0}, 100).tasks][:3] == ["t5", "t0", "t1"]
        assert len(asked) == 4


def test_commands_that_compute_nothing_do_not_wait_for_torch() -> None:
    code = "import sys, service.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
