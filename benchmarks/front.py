"""What HTTP costs: the server whose forward pass computes nothing, against an endpoint that only reads and decodes.

`python -m benchmarks.front` starts both as processes of their own and asks them in turns, over kept-alive connections
in a closed loop, from this process, on the same cores. The endpoint is Starlette on uvicorn with the server's own
decoder on as many threads; what it does not do is all the rest: keys, lookups, admission, queue, scores, logs, metrics.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import torch
import uvicorn
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from adapters.backbone import load_backbone
from adapters.file import write_adapter
from adapters.forward.banked import BankedForward, Job
from adapters.media import MediaLimits, Preprocess, decode_image, rows
from benchmarks.common import machine, random_adapter

BACKBONE, WEIGHTS, TASK = "vit_tiny_patch16_224", "random:0", "bench"
START_S = 120.0


def pictures() -> dict[str, bytes]:
    """A photograph's size and a thumbnail's, of smooth noise, so that they compress as photographs do."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    made = {}
    for name, size, kind in (("335x500 JPEG", (335, 500), "JPEG"), ("1.5 kB PNG", (32, 16), "PNG")):
        file = io.BytesIO()
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, kind)
        made[name] = file.getvalue()
    return made


def serve_null(port: int) -> None:
    """`adaptserve serve` whose device answers zeros at once."""

    def nothing(_: BankedForward, jobs: Sequence[Job]) -> list[NDArray[np.float32]]:
        return [np.zeros(job.meta.classes, np.float32) for job in jobs]

    BankedForward.__call__ = nothing  # type: ignore[assignment, method-assign]
    from service.cli import main  # after the change

    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["adaptserve", "serve", "--port", str(port), "--backbone", BACKBONE, "--weights", WEIGHTS,
                    "--device", "cpu", "--data-dir", folder]  # fmt: skip
        main()


def serve_reference(port: int) -> None:
    """Read the body, decode it as the server does, answer a few bytes."""
    pool, limits = ThreadPoolExecutor(len(os.sched_getaffinity(0))), MediaLimits()
    backbone = load_backbone(BACKBONE, WEIGHTS, "cpu", "float32")
    preprocess = Preprocess(backbone.input)

    async def read(request: Request) -> Response:
        body = await request.body()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(pool, lambda: rows([decode_image(body, limits)], preprocess))
        return Response(b'{"ok":true}', media_type="application/json")

    app = Starlette(routes=[Route("/v1/tasks/{task}/predict", read, methods=["POST"]), Route("/readyz", read)])
    uvicorn.run(app, port=port, log_level="error", access_log=False)


class Connection(asyncio.Protocol):
    """Sends the same request again as soon as its answer is there; counts answers, stops at anything but 200."""

    def __init__(self, request: bytes, done: asyncio.Future[None]) -> None:
        self._request, self._done = request, done
        self._buffer = b""
        self.answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

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


async def ask(port: int, body: bytes, clients: int, seconds: float) -> float:
    """Answers a second."""
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
    return sum(connection.answers for _, connection in made) / taken


@contextmanager
def process(kind: str, port: int) -> Iterator[None]:
    """One of the two servers, ready."""
    command = [sys.executable, "-m", "benchmarks.front", "--serve", kind, "--port", str(port)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + START_S
        while time.monotonic() < end and child.poll() is None:
            try:
                httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        else:
            raise SystemExit(f"the server '{kind}' did not start")
        yield
    finally:
        child.terminate()
        child.wait()


def publish(port: int) -> None:
    backbone = load_backbone(BACKBONE, WEIGHTS, "cpu", "float32")
    adapter = random_adapter(backbone, 0, task=TASK)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        write_adapter(path, adapter.config, adapter.tensors)
        url = f"http://127.0.0.1:{port}/v1/tasks/{TASK}/adapter"
        httpx.put(url, content=path.read_bytes(), timeout=60).raise_for_status()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front", description=__doc__)
    parser.add_argument("--serve", choices=["null", "reference"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=8790, help="the first of two")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round and server")
    parser.add_argument("--clients", type=int, default=16)
    given = parser.parse_args()
    if given.serve:
        {"null": serve_null, "reference": serve_reference}[given.serve](given.port)
        return
    ports = {"null": given.port, "reference": given.port + 1}
    where = machine(torch.device("cpu"))
    table = Table(title=f"{where['device']}, {where['date']}, {given.rounds} rounds of {given.seconds:g} s, "
                        f"{given.clients} clients on the same cores")  # fmt: skip
    for column in ("body", "server, null forward, a second", "reads and decodes only", "ratio, median", "range"):
        table.add_column(column, justify="left" if column == "body" else "right")
    with process("null", ports["null"]), process("reference", ports["reference"]):
        publish(ports["null"])
        for name, body in pictures().items():
            rates: list[tuple[float, float]] = []
            for turn in range(given.rounds + 1):
                order = ("null", "reference") if turn % 2 else ("reference", "null")
                rate = {kind: asyncio.run(ask(ports[kind], body, given.clients, given.seconds)) for kind in order}
                rates.append((rate["null"], rate["reference"]))
            rates = rates[1:]  # the first warms up
            ratios = sorted(null / bare for null, bare in rates)
            null, bare = (statistics.median(column) for column in zip(*rates, strict=True))
            table.add_row(
                f"{name} ({len(body) / 1000:.1f} kB)", f"{null:.0f}", f"{bare:.0f}", f"{statistics.median(ratios):.2f}",
                f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
            )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
