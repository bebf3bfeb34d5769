"""Predictions while a task is taught, against predictions when nothing else runs: time, rate, and the processor's time.

`python -m benchmarks.teach` starts a server of real processes and teaches it a task of 60 pictures in three labels. In
turns it asks for predictions in a closed loop, and at a steady rate, while no training runs and while an adapter is
trained. The load generator runs on the same cores. It tells too how long after the call the head answered, on the idle
server. `--backbone demo` is what the first minute with AdaptServe looks like.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import load
from benchmarks.batches import pictures
from benchmarks.front import a_file, free_port, running

TASK, TAUGHT, LABELS = "bench", "taught", ("first", "second", "third")
EXAMPLES, EPOCHS, PATIENCE_S = 60, 1000, 1800.0
TRAINER = "service.teach.process"


def requests(task: str) -> Iterator[bytes]:
    """Predictions about pictures that are all different."""
    bodies = pictures(64)
    for body in itertools.cycle(bodies):
        head = f"POST /v1/tasks/{task}/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        yield head.encode() + body


def wait(client: httpx.Client, job: str, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The job, once it is so. Ends the benchmark where it fails first."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        found: dict[str, Any] = client.get(f"/v1/jobs/{job}").raise_for_status().json()
        if until(found):
            return found
        if found["state"] in ("failed", "cancelled"):
            raise SystemExit(f"the training is {found['state']}: {found['problem']}")
        time.sleep(0.1)
    raise SystemExit(f"the training is not so far after {PATIENCE_S:g} s")


def teach(client: httpx.Client) -> float:
    """Send the examples; the seconds from the call to a head that answers."""
    bodies = pictures(EXAMPLES)
    for place, label in enumerate(LABELS):
        files = [("file", (f"{n}.jpg", body)) for n, body in enumerate(bodies[place :: len(LABELS)])]
        client.post(f"/v1/tasks/{TAUGHT}/examples", params={"label": label}, files=files).raise_for_status()
    start = time.perf_counter()
    job = client.post(f"/v1/tasks/{TAUGHT}/training", json={"method": "linear"}).raise_for_status().json()["id"]
    wait(client, job, lambda found: bool(found["published"]))
    client.post(f"/v1/tasks/{TAUGHT}/predict", content=bodies[0]).raise_for_status()
    taken = time.perf_counter() - start
    wait(client, job, lambda found: found["state"] == "done")
    return taken


class Shares:
    """The processor's time that the server's processes take, by module."""

    def __init__(self, server: psutil.Process) -> None:
        self._server, self._before = server, dict[int, float]()
        self.shares()

    def shares(self) -> dict[str, float]:
        """Seconds by module since the last time."""
        found: dict[str, float] = {}
        for one in self._server.children():
            times = one.cpu_times()
            total = times.user + times.system
            name = next((word for word in one.cmdline() if word.startswith("service.")), "other")
            found[name] = found.get(name, 0.0) + total - self._before.get(one.pid, 0.0)
            self._before[one.pid] = total
        return found


def measure(port: int, seconds: float, clients: int, rate: float, seed: int) -> dict[str, float]:
    """The closed loop's rate, and the median and the 99th percentile at a steady rate, in milliseconds."""
    closed = asyncio.run(load.closed(port, requests(TASK), clients, seconds))
    steady = asyncio.run(load.poisson(port, requests(TASK), load.arrivals(rate, seconds, seed), load.PATIENCE_S))
    return {
        "rate": closed.rate,
        "p50": 1000 * load.percentile(steady.latencies, 0.5),
        "p99": 1000 * load.percentile(steady.latencies, 0.99),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.teach", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="`demo`, or a timm name: random weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--clients", type=int, default=4, help="requests at once in the closed loop")
    parser.add_argument("--load", type=float, default=0.3, help="the steady rate, as a share of the closed loop's")
    given = parser.parse_args()

    import torch

    from adapters import load_backbone
    from benchmarks.common import machine, random_adapter

    where = machine(torch.device("cuda" if torch.cuda.is_available() and given.device != "cpu" else "cpu"))
    weights = "" if given.backbone == "demo" else "random:0"
    backbone = load_backbone(given.backbone, weights, "cpu", "float32")
    found: dict[str, list[dict[str, float]]] = {"alone": [], "while an adapter is trained": []}
    shares = {name: dict[str, float]() for name in found}
    with tempfile.TemporaryDirectory() as temporary:
        folder, port = Path(temporary), free_port()
        command = ["service.cli", "serve", "--port", str(port), "--backbone", given.backbone, "--weights", weights,
                   "--device", given.device, "--data-dir", str(folder / "data")]  # fmt: skip
        file = a_file(random_adapter(backbone, 0, task=TASK), folder)
        with (
            running("server", command, port) as server,
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client,
        ):
            client.put(f"/v1/tasks/{TASK}/adapter", content=file).raise_for_status()
            head_s = teach(client)
            first = asyncio.run(load.closed(port, requests(TASK), given.clients, given.seconds))  # and it is warm
            counted = Shares(server.processes[0][1])
            for turn in range(given.rounds):
                for name, results in found.items():
                    job = ""
                    if name != "alone":
                        asked = {"method": "adaptformer", "epochs": EPOCHS, "activate": False}
                        job = client.post(f"/v1/tasks/{TAUGHT}/training", json=asked).raise_for_status().json()["id"]
                        wait(client, job, lambda told: told["stage"] == "adapter")
                    counted.shares()
                    results.append(measure(port, given.seconds, given.clients, given.load * first.rate, turn))
                    for module, seconds in counted.shares().items():
                        shares[name][module] = shares[name].get(module, 0.0) + seconds
                    if job:
                        client.delete(f"/v1/jobs/{job}").raise_for_status()
    console = Console(width=120)
    console.print(where, given.backbone, f"head of {EXAMPLES} pictures answers after {head_s:.1f} s", sep="; ")
    shown = Table(
        "", "closed loop, 1/s", f"p50 at {given.load:.0%}, ms", "p99, ms", "server's CPU s", "trainer's CPU s"
    )
    for name, results in found.items():
        cells = [f"{statistics.median(one[key] for one in results):.1f}" for key in ("rate", "p50", "p99")]
        trainer = shares[name].pop(TRAINER, 0.0)
        shown.add_row(name, *cells, f"{sum(shares[name].values()):.0f}", f"{trainer:.0f}")
    console.print(shown)
    pairs = list(zip(*found.values(), strict=True))
    for key in ("rate", "p50", "p99"):
        ratios = sorted(after[key] / before[key] for before, after in pairs)
        console.print(f"{key}: {statistics.median(ratios):.2f} of that alone, {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main()
