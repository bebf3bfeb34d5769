"""SIGTERM to real processes in which something hangs: they end within DRAIN_S and a bound, and say so."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from service.cli.serve import STOP_S
from service.exits import CUT_OFF
from tests import hanging
from tests.houses import Kit, Process, photograph, problem, until

DRAIN_S = 1.0
SLACK_S = 3.0
"""For a busy machine, and for the last log line."""


@pytest.fixture
def server(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    """Two tasks and one slot, so that ``a`` must be loaded again."""
    settings = {"DRAIN_S": DRAIN_S, "SLOTS": 1, "HOST_CACHE_BYTES": 0, "READY_FRESH_S": 0.2, "READY_TIMEOUT_S": 0.5}
    for name, value in settings.items():
        monkeypatch.setenv(f"ADAPTSERVE_{name}", str(value))
    monkeypatch.setenv(hanging.FOLDER, str(tmp_path))
    arguments = ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--data-dir", str(tmp_path / "data")]
    with Process([*arguments, "--threads", "1"], tmp_path / "log", "tests.hanging") as process:
        for number, task in enumerate("ab"):
            process.client.put(f"/v1/tasks/{task}/adapter", content=kit.file(number)[0]).raise_for_status()
        yield process


@contextmanager
def request(server: Process, line: str, body: bytes, length: int | None = None) -> Iterator[socket.socket]:
    """A connection with a request on it whose answer nobody has read; ``length`` promises more than is sent."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        size = len(body) if length is None else length
        head = f"{line} HTTP/1.1\r\nHost: {host}\r\nX-Deadline-Ms: 60000\r\nContent-Length: {size}\r\n\r\n"
        connection.sendall(head.encode() + body)
        yield connection


def stop(server: Process) -> tuple[int, float]:
    """The exit code, and the seconds until it came."""
    start = time.monotonic()
    server.client.close()
    server.process.send_signal(signal.SIGTERM)
    return server.process.wait(60), time.monotonic() - start


@pytest.mark.parametrize(
    "what",
    [
        ["device"],
        ["load", "decode"],  # the engine hangs in one, a front end in the other
        pytest.param(["load"], marks=pytest.mark.torture),
        pytest.param(["decode"], marks=pytest.mark.torture),
    ],
    ids="-".join,
)
def test_a_stop_ends_though_something_hangs_and_a_client_never_reads(
    server: Process, what: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "data" / "tasks" / "b" / "versions" / "1.safetensors"
    path.write_bytes(bytes(64 * 2**20))  # more than the kernel's buffers take
    with ExitStack() as asked:
        for place in what:
            (tmp_path / place).touch()
            asked.enter_context(request(server, "POST /v1/tasks/a/predict", photograph()))
            assert until((tmp_path / f"{place}.reached").exists)
        unread = asked.enter_context(request(server, "GET /v1/tasks/b/versions/1/adapter", b""))
        assert unread.recv(64)
        code, seconds = stop(server)
    assert code == CUT_OFF, server.output
    assert seconds < DRAIN_S + STOP_S + SLACK_S
    assert f"exit code {CUT_OFF}" in server.output.splitlines()[-1]


def test_readyz_tells_of_a_device_that_hangs_and_a_stop_cuts_off_an_upload_that_does_not_end(
    server: Process, kit: Kit, tmp_path: Path
) -> None:
    (tmp_path / "device").touch()
    with request(server, "POST /v1/tasks/b/predict", photograph()):
        assert until((tmp_path / "device.reached").exists)
        assert until(lambda: server.client.get("/readyz").status_code == 503)
        assert problem(server.client.get("/readyz"), 503)["limit"] == 0.5
        (tmp_path / "device").unlink()
        assert until(lambda: server.client.get("/readyz").status_code == 200)
    content, staging = kit.file(7)[0], tmp_path / "data" / "staging"
    with request(server, "PUT /v1/tasks/c/adapter", content[:-1], len(content)):
        assert until(lambda: any(staging.iterdir()))
        code, seconds = stop(server)
    assert code == 0, server.output
    assert seconds < DRAIN_S + STOP_S + SLACK_S
    assert list(staging.iterdir()) == []
    assert not (tmp_path / "data" / "tasks" / "c").exists()
