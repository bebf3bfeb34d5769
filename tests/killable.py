"""A server of several processes that tests kill, stop and hang, and questions to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests import hanging
from tests.children import ENGINE
from tests.houses import WAIT, Kit, Process, client_of, photograph
from tests.killing import samples

SETTINGS = {"MAX_QUEUE_ROWS": 48, "DRAIN_S": 1.0, "READY_FRESH_S": 0.2, "READY_TIMEOUT_S": 1.0, "MAX_UPLOADS": 16}
"""A row of pixels that is not given back is missed soon, and nothing takes long."""
SLACK_S = 2.5
"""For a busy machine."""


@contextmanager
def started(
    kit: Kit, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str, **settings: object
) -> Iterator[Process]:
    """Two front ends and one engine with the task ``t``; temporary files of all of them are in ``folder``."""
    (folder / "tmp").mkdir(exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setenv(hanging.FOLDER, str(folder))
    for name, value in (SETTINGS | settings).items():
        monkeypatch.setenv(f"ADAPTSERVE_{name}", str(value))
    given = ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--data-dir", str(folder / "data")]
    with Process([*given, "--threads", "1", "--front-ends", "2", *more], folder / "log", "tests.hanging") as made:
        made.client.put("/v1/tasks/t/adapter", content=kit.file(1)[0]).raise_for_status()
        yield made


def engine(server: Process) -> psutil.Process:
    return server.family(ENGINE)[0]


def ready(server: Process) -> httpx.Response:
    with client_of(server.url) as client:
        return client.get("/readyz")


def ask(server: Process, task: str = "t", deadline_ms: int = 20_000) -> httpx.Response:
    headers = {"X-Deadline-Ms": str(deadline_ms)}
    with client_of(server.url) as client:
        return client.post(f"/v1/tasks/{task}/predict", content=photograph(), headers=headers)


def gauge(server: Process, name: str) -> float:
    with client_of(server.url) as client:
        return samples(client.get("/metrics").text, name)[name]


def ended(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=WAIT)[1]


@contextmanager
def hanging_device(folder: Path) -> Iterator[None]:
    (folder / "device.reached").unlink(missing_ok=True)
    (folder / "device").touch()
    try:
        yield
    finally:
        (folder / "device").unlink()


def ask_or_none(server: Process) -> int | None:
    """The status; None where the connection broke."""
    try:
        return ask(server).status_code
    except httpx.TransportError:
        return None
