"""Log lines: one for each request, JSON or text, with the id of the response and nothing that was secret."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.keys import create, dump
from service.watch import logs
from service.watch.logs import FIELDS, JsonLines
from tests.houses import WAIT, House, Kit, house, photograph, until


@contextmanager
def listening(level: int = logging.INFO) -> Iterator[list[logging.LogRecord]]:
    """The records of requests, in the order of their ends."""
    found: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    handler, before = Keep(), logs.log.level
    logs.log.addHandler(handler)
    logs.log.setLevel(level)
    try:
        yield found
    finally:
        logs.log.removeHandler(handler)
        logs.log.setLevel(before)


@pytest.fixture(scope="module")
def secret() -> tuple[str, str]:
    made, key = create("boss", "admin")
    return made, dump([key])


@pytest.fixture(scope="module")
def home(kit: Kit, secret: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"), keys=secret[1])) as made:
        made.client.headers["Authorization"] = f"Bearer {secret[0]}"
        assert made.put("pets", kit.file(1)[0]).status_code == 201
        yield made


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """The members of the JSON line."""
    return dict(json.loads(JsonLines().format(record)))


def test_each_request_leaves_one_line(home: House, secret: tuple[str, str]) -> None:
    calls = [
        ("POST", "/v1/tasks/pets/predict", "/v1/tasks/{task}/predict", ["pets"], 200),
        ("POST", "/v1/predict?task=pets&task=nosuch", "/v1/predict", ["pets", "_unknown"], 404),
        ("POST", "/v1/tasks/nosuch/predict?top_k=0", "/v1/tasks/{task}/predict", ["_unknown"], 400),
        ("GET", "/v1/tasks", "/v1/tasks", [], 200),
        ("PATCH", "/v1/tasks", "/v1/tasks", [], 405),
        ("GET", "/made/up", None, [], 404),
    ]
    with listening() as records:
        answers = [home.client.request(method, path, content=photograph()) for method, path, *_ in calls]
        assert until(lambda: len(records) == len(calls))
    for (method, _, route, tasks, status), answer, record in zip(calls, answers, records, strict=True):
        line = fields(record)
        assert answer.status_code == status
        assert (line["method"], line["route"], line["tasks"], line["status"]) == (method, route, tasks, status)
        assert line["request_id"] == answer.headers["x-request-id"]
        assert 0 < line["ms"] < 1000 * WAIT
        assert line["level"] == "info"
        assert "made/up" not in line["message"]
        assert secret[0] not in json.dumps(line)
        assert answer.headers["x-request-id"] in record.getMessage()  # as text too
    assert fields(records[0])["key_name"] == "boss"


def test_refused_calls_are_told_without_the_task_or_the_key(home: House) -> None:
    with listening() as records:
        home.client.get("/v1/tasks/hidden-name", headers={"Authorization": "Bearer as_wrong"})
        assert until(lambda: len(records) == 1)
    line = JsonLines().format(records[0])
    assert fields(records[0])["status"] == 401
    assert fields(records[0])["key_name"] is None
    assert "hidden-name" not in line
    assert "as_wrong" not in line


def test_health_checks_are_quiet_at_info(home: House) -> None:
    with listening(logging.DEBUG) as records:
        for path in ("/livez", "/readyz", "/metrics"):
            assert home.client.get(path).status_code == 200
        assert until(lambda: len(records) == 3)
    assert {record.levelno for record in records} == {logging.DEBUG}
    with listening(logging.WARNING) as records:
        home.client.get("/v1/tasks")
        assert home.client.get("/livez").status_code == 200
    assert records == []


def test_json_lines_hold_tracebacks_and_odd_values() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "a\n%s", ("b",), sys.exc_info())
    setattr(record, FIELDS, {"path": Path("p")})
    text = JsonLines().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line["message"] == "a\nb"
    assert line["path"] == "p"
    assert "ValueError: two\nlines" in line["exception"]
    assert line["time"].endswith("+00:00")


def test_a_json_server_that_cannot_start_says_so_in_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--log-format", "json"]
    command += ["--backbone", "qwen3_vit_88m_enc", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 1
    (line,) = [json.loads(line) for line in (done.stdout + done.stderr).splitlines()]
    assert line["level"] == "error"
    assert "qwen3_vit_88m has the same weights" in line["message"]


def test_errors_that_nobody_catches_are_lines_too(tmp_path: Path) -> None:
    code = """
import threading
from service.watch import logs
logs.configure("info", "json")
class Bad:
    def __del__(self):
        raise ValueError("in del")
Bad()
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert ["ValueError" in lines[0]["exception"], "ZeroDivisionError" in lines[1]["exception"]] == [True, True]
