"""The trainer as a real process: it starts for work, is replaced when it dies, and a job outlives the whole server."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.houses import Kit, Process, until
from tests.teaching import ended, send, shape, start

TRAINER = "service.teach.process"
PATIENCE_S = 180.0
"""A trainer imports torch, and trains behind everything else that this machine does."""


def served(kit: Kit, folder: Path, *more: str) -> Process:
    given = ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--data-dir", str(folder / "data")]
    return Process([*given, "--threads", "1", "--front-ends", "1", *more], folder / "log")


def until_epoch(client: httpx.Client, job: dict[str, Any], epoch: int) -> int:
    """Wait for it; the epoch that was reached."""
    reached = [0]

    def there() -> bool:
        reached[0] = client.get(f"/v1/jobs/{job['id']}").raise_for_status().json()["epoch"]
        return reached[0] >= epoch

    assert until(there, PATIENCE_S), client.get(f"/v1/jobs/{job['id']}").text
    return reached[0]


@pytest.mark.timeout(400)
def test_a_killed_trainer_is_replaced_and_its_job_goes_on(kit: Kit, tmp_path: Path) -> None:
    with served(kit, tmp_path) as server:
        client = server.client
        assert server.family(TRAINER) == []
        send(client, "shapes", 4)
        job = start(client, "shapes", epochs=36)
        first = until_epoch(client, job, 1)
        (trainer,) = server.family(TRAINER)
        threads = (os.getpriority(os.PRIO_PROCESS, one.id) for one in trainer.threads())
        assert os.getpriority(os.PRIO_PROCESS, trainer.pid) < max(threads)  # it trains behind all others
        assert client.post("/v1/tasks/shapes/predict", content=shape("disc", 7)).json()["version"] == 1
        trainer.kill()
        done = ended(client, job, PATIENCE_S)
        assert (done["state"], done["problem"], done["epoch"]) == ("done", None, 36)
        assert [one["version"] for one in done["published"]] == [1, 2]
        assert done["curves"]["epochs"][0] <= first
        assert done["curves"]["epochs"] == sorted(set(done["curves"]["epochs"]))
        assert "goes on with its work" in server.output
        again = start(client, "shapes", method="linear")  # by the same trainer, which lingers
        (lingering,) = server.family(TRAINER)
        assert lingering.pid != trainer.pid
        assert ended(client, again, PATIENCE_S)["state"] == "done"
        assert psutil.pid_exists(lingering.pid)
        assert server.stop(signal.SIGTERM) == 0


@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_outlives_the_server(kit: Kit, tmp_path: Path, how: signal.Signals) -> None:
    with served(kit, tmp_path) as server:
        send(server.client, "shapes", 4)
        job = start(server.client, "shapes", epochs=120)
        waiting = start(server.client, "shapes", method="linear")
        before = until_epoch(server.client, job, 1)
        family = server.family()
        server.stop(how)
        assert until(lambda: not any(one.is_running() and one.status() != "zombie" for one in family))
    with served(kit, tmp_path) as server:
        done = ended(server.client, job, 3 * PATIENCE_S)
        assert (done["state"], done["problem"]) == ("done", None)
        assert done["curves"]["epochs"][0] <= before
        assert [one["version"] for one in done["published"]] == [1, 2]
        assert ended(server.client, waiting, PATIENCE_S)["state"] == "done"
