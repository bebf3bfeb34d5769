"""What does a second server bring? `python -m benchmarks.replicas` prints the table of docs/SCALE.md, in 3 minutes.

Two servers of the demo on one store, behind a balancer that costs nothing: each client of a closed loop sends its next
request to the server with the fewest under way. Once the forward pass computes nothing, so that HTTP, decoding and the
queue are what is measured, and once it is the demo's. A machine with two cores has no third for the load generator, so
servers are held to one core each first, and then have both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import torch

from benchmarks.common import machine
from benchmarks.front import free_port
from benchmarks.load import Clients, percentile

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "adapters/demo/samples/digits-9.png"
KINDS = {"null forward": "benchmarks.null", "demo": "service.cli"}
CLIENTS, GOOD_S, WAIT_S = 16, 0.25, 120.0
"""An answer that takes longer than ``GOOD_S`` is not good."""


@dataclass
class Server:
    """One that runs, with all of its processes."""

    process: psutil.Process
    port: int

    def hold(self, cores: Sequence[int]) -> None:
        """To these, every thread that there is, and so those to come."""
        for one in (self.process, *self.process.children(recursive=True)):
            for thread in one.threads():
                os.sched_setaffinity(thread.id, cores)

    def seconds(self) -> float:
        """Of processor time so far."""
        family = (self.process, *self.process.children(recursive=True))
        return float(sum(times.user + times.system for times in (one.cpu_times() for one in family)))


@dataclass
class Seen:
    """Of one setting, over its rounds."""

    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    """Processor time of the servers, of all that there was."""


@contextmanager
def running(module: str, folder: Path, number: int) -> Iterator[Server]:
    port = free_port()
    command = [
        sys.executable, "-m", module, "serve", "--port", str(port), "--store", f"file://{folder / 'store'}",
        "--data-dir", str(folder / f"data-{number}"), "--front-ends", "1", "--threads", "1",
    ]  # fmt: skip
    with (folder / f"log-{number}").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            end = time.monotonic() + WAIT_S
            while not _ready(port):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit((folder / f"log-{number}").read_text())
                time.sleep(0.05)
            yield Server(psutil.Process(process.pid), port)
        finally:
            process.terminate()
            process.wait(WAIT_S)


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


async def balanced(servers: Sequence[Server], clients: int, seconds: float) -> list[float]:
    """Seconds of each answer, ``inf`` for one that is none."""
    body = SAMPLE.read_bytes()
    head = f"POST /v1/tasks/digits/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    asked, found = head.encode() + body, list[float]()
    pools, under_way = [Clients(server.port) for server in servers], [0] * len(servers)
    end = time.perf_counter() + seconds

    async def client() -> None:
        while (now := time.perf_counter()) < end:
            at = under_way.index(min(under_way))
            under_way[at] += 1
            found.append(await pools[at].timed(asked, now))
            under_way[at] -= 1

    await asyncio.gather(*(client() for _ in range(clients)))
    for pool in pools:
        pool.close()
    return found


def measured(module: str, given: argparse.Namespace) -> dict[str, Seen]:
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        servers = [stack.enter_context(running(module, Path(name), number)) for number in range(2)]
        settings = {
            "one server, one core": [(servers[0], cores[:1])],
            "two servers, a core each": [(server, [core]) for server, core in zip(servers, cores, strict=False)],
            "one server, both cores": [(servers[0], cores)],
            "two servers, both cores": [(server, cores) for server in servers],
        }
        seen = {what: Seen() for what in settings}
        for number in range(given.rounds + 1):
            for what, held in settings.items():
                for server, own in held:
                    server.hold(own)
                used, start = sum(server.seconds() for server, _ in held), time.perf_counter()
                found = asyncio.run(balanced([server for server, _ in held], CLIENTS, given.seconds))
                took = time.perf_counter() - start
                if number:  # the first is for what is slow the first time
                    seen[what].rates.append(sum(one <= GOOD_S for one in found) / took)
                    seen[what].latencies += found
                    used = sum(server.seconds() for server, _ in held) - used
                    seen[what].shares.append(used / took / len(cores))
    return seen


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each setting in each round")
    given = parser.parse_args()
    columns = ("forward", "servers", "good answers/s", "against one", "p50", "p99", "the cores' time for servers")
    print(row(columns), row(["---"] * len(columns)), sep="\n")
    for kind, module in KINDS.items():
        found = measured(module, given)
        for what, seen in found.items():
            one = found[
                what.replace("two servers, a core each", "one server, one core").replace("two servers", "one server")
            ]
            ratios = [rate / other for rate, other in zip(seen.rates, one.rates, strict=True)]
            cells = (
                kind, what, f"{statistics.median(seen.rates):.0f}",
                "" if one is seen else f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{1000 * percentile(seen.latencies, 0.5):.0f} ms", f"{1000 * percentile(seen.latencies, 0.99):.0f} ms",
                f"{statistics.median(seen.shares):.0%}",
            )  # fmt: skip
            print(row(cells), flush=True)
    print(machine(torch.device("cpu")), f"load average {os.getloadavg()[0]:.1f}")


def row(cells: Sequence[str]) -> str:
    """Of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
