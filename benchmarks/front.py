"""What HTTP costs: servers whose forward pass computes nothing, against an endpoint that only reads and decodes.

`python -m benchmarks.front` starts one with one front end, one with ``--front-ends`` of them, and the endpoint, each a
family of real processes, and asks them in turns, over kept-alive connections in a closed loop, from this process, on
the same cores. The endpoint is Starlette on uvicorn with the server's own decoder on as many threads; what it does not
do is all the rest: keys, lookups, admission, the way to the engine and back, scores, logs, metrics.

Rates move with whatever else runs on the machine, the processor time of a request much less: both are printed, and
what the log line of a request costs.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import httpx
import numpy as np
import psutil
import uvicorn
import uvloop
from PIL import Image
from rich.console import Console
from rich.table import Table
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from adapters.config import InputConfig
from adapters.media import MediaLimits, Preprocess, decode_image, rows
from benchmarks.null import ENGINE, FRONT_END
from service.watch import logs

if TYPE_CHECKING:  # the endpoint is a process without torch, as a front end is
    from adapters.file import Adapter

BACKBONE, WEIGHTS, TASK = "vit_tiny_patch16_224", "random:0", "bench"
START_S = 120.0
LINES = 20_000
REFERENCE = "reads and decodes"


def pictures() -> dict[str, bytes]:
    """A photograph's size and a thumbnail's, of smooth noise, so that they compress as photographs do."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    made = {}
    for name, size, kind in (("335x500 JPEG", (335, 500), "JPEG"), ("1.5 kB PNG", (32, 16), "PNG")):
        file = io.BytesIO()
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, kind)
        made[name] = file.getvalue()
    return made


def serve_reference(port: int, config: str) -> None:
    """Read the body, decode it as the server does, answer a few bytes."""
    pool, limits = ThreadPoolExecutor(len(os.sched_getaffinity(0))), MediaLimits()
    preprocess = Preprocess(InputConfig.model_validate_json(config))

    async def read(request: Request) -> Response:
        body = await request.body()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(pool, lambda: rows([decode_image(body, limits)], preprocess))
        return Response(b'{"ok":true}', media_type="application/json")

    async def ready(_: Request) -> Response:
        return Response()

    app = Starlette(routes=[Route("/v1/tasks/{task}/predict", read, methods=["POST"]), Route("/readyz", ready)])
    uvicorn.run(app, port=port, log_level="error", access_log=False)


class Connection(asyncio.Protocol):
    """Sends the same request again as soon as its answer is there; counts answers, stops at anything but 200."""

    def __init__(self, request: bytes, done: asyncio.Future[None]) -> None:
        self._request, self._done = request, done
        self._buffer = b""
        self.answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(rest) < length:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self._end(RuntimeError(self._buffer.decode(errors="replace")))
            return
        self._buffer = b""
        self.answers += 1
        self._transport.write(self._request)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or RuntimeError("the server closed the connection"))

    def _end(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)


async def ask(port: int, body: bytes, clients: int, seconds: float) -> tuple[int, float]:
    """How many answers came, in how many seconds."""
    head = f"POST /v1/tasks/{TASK}/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    made = [
        await loop.create_connection(lambda: Connection(head.encode() + body, done), "127.0.0.1", port)
        for _ in range(clients)
    ]
    start = time.perf_counter()
    failed, _ = await asyncio.wait([done], timeout=seconds)
    taken = time.perf_counter() - start
    for one in failed:
        one.result()  # raises
    done.cancel()
    for transport, _ in made:
        transport.abort()
    return sum(connection.answers for _, connection in made), taken


@dataclass(frozen=True)
class Running:
    """A server to ask, and its processes by what they are."""

    name: str
    port: int
    processes: Sequence[tuple[str, psutil.Process]]

    def processor_s(self) -> Counter[str]:
        """Seconds of processor time since their start, of each kind, and of this process as the load generator."""
        own = Counter({"load generator": time.process_time()})
        for kind, process in self.processes:
            times = process.cpu_times()
            own[kind] += times.user + times.system
        return own


@dataclass(frozen=True)
class Round:
    """What one server did in one round: answers a second, and milliseconds of processor time for each answer."""

    rate: float
    processor_ms: Mapping[str, float]


def measured(server: Running, body: bytes, clients: int, seconds: float) -> Round:
    before = server.processor_s()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answers, taken = runner.run(ask(server.port, body, clients, seconds))
    after = server.processor_s()
    return Round(answers / taken, {kind: 1000 * (after[kind] - before[kind]) / answers for kind in after})


@contextmanager
def running(name: str, command: Sequence[str], port: int) -> Iterator[Running]:
    """A server, ready, until the block ends."""
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + START_S
        while time.monotonic() < end and process.poll() is None:
            try:
                httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        else:
            raise SystemExit(f"the server '{name}' did not start")
        first = psutil.Process(process.pid)
        kinds = {ENGINE: "engine", FRONT_END: "front end"}
        found = [
            (next((kind for module, kind in kinds.items() if module in child.cmdline()), "other"), child)
            for child in first.children(recursive=True)
        ]
        yield Running(name, port, [("supervisor" if found else name, first), *found])
    finally:
        process.terminate()
        process.wait()


def null_server(folder: Path, port: int, front_ends: int) -> list[str]:
    return ["benchmarks.null", "serve", "--port", str(port), "--backbone", BACKBONE, "--weights", WEIGHTS,
            "--device", "cpu", "--data-dir", str(folder / f"data-{front_ends}"),
            "--front-ends", str(front_ends)]  # fmt: skip


def a_file(adapter: Adapter, folder: Path) -> bytes:
    from adapters.file import write_adapter

    path = folder / "adapter.safetensors"
    write_adapter(path, adapter.config, adapter.tensors)
    return path.read_bytes()


def rounds(servers: Sequence[Running], body: bytes, given: argparse.Namespace) -> dict[str, list[Round]]:
    """Each in turn, in changing order; the first round warms up and is not told."""
    kept: dict[str, list[Round]] = {server.name: [] for server in servers}
    for turn in range(given.rounds + 1):
        for place in range(len(servers)):
            server = servers[(turn + place) % len(servers)]
            kept[server.name].append(measured(server, body, given.clients, given.seconds))
    return {name: taken[1:] for name, taken in kept.items()}


def ratio_row(body: str, ours: Sequence[Round], theirs: Sequence[Round]) -> list[str]:
    ratios = sorted(a.rate / b.rate for a, b in zip(ours, theirs, strict=True))
    rates = (statistics.median(r.rate for r in column) for column in (ours, theirs))
    return [body, *(f"{rate:.0f}" for rate in rates), f"{statistics.median(ratios):.2f}",
            f"{ratios[0]:.2f} to {ratios[-1]:.2f}"]  # fmt: skip


def table(title: str, *columns: str) -> Table:
    made = Table(title=title)
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place else "left")
    return made


def processor_table(found: Mapping[str, Mapping[str, Sequence[Round]]]) -> Table:
    """Medians over the rounds."""
    made = table("Processor time of one request, ms", "body", "server", "of it", "all but the load generator")
    for body, servers in found.items():
        for server, taken in servers.items():
            of = {kind: statistics.median(r.processor_ms[kind] for r in taken) for kind in taken[0].processor_ms}
            own = sum(ms for kind, ms in of.items() if kind != "load generator")
            made.add_row(body, server, ", ".join(f"{kind} {ms:.2f}" for kind, ms in of.items()), f"{own:.2f}")
    return made


def log_lines() -> Table:
    """What the line of one request costs, into a pipe's end that nobody reads: /dev/null, as in the rounds."""
    made = table("The log line of one request, microseconds of one core, best of 5", "format", "us")
    with open(os.devnull, "w") as sink:  # noqa: PTH123
        for form in ("text", "json"):
            handlers = logging.getLogger().handlers
            for handler in handlers[:]:
                logging.getLogger().removeHandler(handler)
            stderr, sys.stderr = sys.stderr, sink
            try:
                logs.configure("info", form)
            finally:
                sys.stderr = stderr
            best = float("inf")
            for _ in range(5):
                start = time.perf_counter()
                for number in range(LINES):
                    logs.request(f"{number:016x}", "POST", "/v1/tasks/{task}/predict", [TASK], "key", 200, 0.0123)
                best = min(best, (time.perf_counter() - start) / LINES)
            made.add_row(form, f"{1e6 * best:.1f}")
    return made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.front", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", nargs=2, metavar=("PORT", "CONFIG"), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round and server")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--front-ends", type=int, default=2, help="of the server that is held against one with one")
    given = parser.parse_args()
    if given.reference:
        serve_reference(int(given.reference[0]), given.reference[1])
        return

    import torch

    from adapters import load_backbone
    from benchmarks.common import machine, random_adapter

    where = machine(torch.device("cpu"))
    backbone = load_backbone(BACKBONE, WEIGHTS, "cpu", "float32")
    one, several = "1 front end", f"{given.front_ends} front ends"
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        file, port = a_file(random_adapter(backbone, 0, task=TASK), folder), free_port()
        config = backbone.input.model_dump_json()
        reference = ["benchmarks.front", "--reference", str(port), config]
        servers = [stack.enter_context(running(REFERENCE, reference, port))]
        for name, count in {one: 1, several: given.front_ends}.items():
            port = free_port()
            servers.append(stack.enter_context(running(name, null_server(folder, port, count), port)))
            url = f"http://127.0.0.1:{port}/v1/tasks/{TASK}/adapter"
            httpx.put(url, content=file, timeout=60).raise_for_status()
        found = {}
        for name, body in pictures().items():
            found[f"{name} ({len(body) / 1000:.1f} kB)"] = rounds(servers, body, given)
    console = Console(width=140)
    console.print(f"{where['device']}, {where['date']}, {given.rounds} rounds of {given.seconds:g} s, "
                  f"{given.clients} clients on the same cores, load average {os.getloadavg()[1]:.1f}")  # fmt: skip
    first = table("Null forward, answers a second", "body", one, REFERENCE + " only", "ratio, median", "range")
    second = table("Null forward, answers a second", "body", several, one, "ratio, median", "range")
    for name, taken in found.items():
        first.add_row(*ratio_row(name, taken[one], taken[REFERENCE]))
        second.add_row(*ratio_row(name, taken[several], taken[one]))
    console.print(first, *([second] if given.front_ends > 1 else []), processor_table(found), log_lines())


if __name__ == "__main__":
    main()
