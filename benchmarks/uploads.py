"""Does uploading stall predictions? 8 clients on 10 tasks against a real server, with and without uploads.

`python -m benchmarks.uploads`. The two phases alternate in one run; the table shows the clients' latency. Server and
clients share this machine's cores, so the numbers are for comparing the phases, not for capacity.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from adapters.backbone import load_backbone
from adapters.file import write_adapter
from benchmarks.common import machine, random_adapter

CLIENTS, TASKS, REPLACED = 8, 10, 3


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(folder: Path, backbone: str) -> Iterator[str]:
    """A real server process on a free loopback port, stopped at the end."""
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), "--data-dir", str(folder / "data"),
               "--backbone", backbone, "--weights", "random:0"]  # fmt: skip
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None:
                raise SystemExit((folder / "server.log").read_text())
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def photograph(size: tuple[int, int] = (500, 375)) -> bytes:
    """A JPEG of smooth noise, about as large as a photograph of that size."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    return file.getvalue()


def clients(url: str, body: bytes, seconds: float) -> list[float]:
    """Latencies in ms of ``CLIENTS`` closed-loop clients over the time given."""
    taken: list[float] = []
    end = time.monotonic() + seconds

    def run(number: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            turn = number
            while time.monotonic() < end:
                start = time.perf_counter()
                client.post(f"/v1/tasks/task-{turn % TASKS}/predict", content=body).raise_for_status()
                taken.append(1e3 * (time.perf_counter() - start))
                turn += 1

    threads = [threading.Thread(target=run, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


@contextmanager
def uploading(url: str, files: list[bytes], counts: list[int]) -> Iterator[None]:
    """Replace three tasks, one upload every 100 ms, until the block ends."""
    stop = threading.Event()

    def run() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.wait(0.1):
                turn = counts[0]
                task, file = f"task-{turn % REPLACED}", files[turn % len(files)]
                client.put(f"/v1/tasks/{task}/adapter", content=file).raise_for_status()
                counts[0] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="length of a phase (default 10)")
    parser.add_argument("--phases", type=int, default=3, help="pairs of phases (default 3)")
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="a timm name; weights are random")
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        backbone = load_backbone(args.backbone, "random:0", "cpu", "float32")
        files = []
        for seed in range(TASKS + 2 * REPLACED):
            adapter = random_adapter(backbone, seed)
            write_adapter(folder / "a.safetensors", adapter.config, adapter.tensors)
            files.append((folder / "a.safetensors").read_bytes())
        del backbone
        quiet, busy, counts, body = [], [], [0], photograph()
        with server(folder, args.backbone) as url:
            for number in range(TASKS):
                httpx.put(f"{url}/v1/tasks/task-{number}/adapter", content=files[number], timeout=60).raise_for_status()
            clients(url, body, 2)
            for _ in range(args.phases):
                quiet += clients(url, body, args.seconds)
                with uploading(url, files, counts):
                    busy += clients(url, body, args.seconds)
    show(args, quiet, busy, counts[0], len(files[0]))


def show(args: argparse.Namespace, quiet: list[float], busy: list[float], uploads: int, size: int) -> None:
    place = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    table = Table(title=f"{args.backbone}, {CLIENTS} clients, {TASKS} tasks, {os.cpu_count()} cores, {place['device']}")
    for column in ("", "requests", "p50 ms", "p90 ms", "p99 ms"):
        table.add_column(column, justify="right")
    results = {}
    for name, taken in (("no uploads", quiet), (f"{uploads} uploads of {size / 2**20:.1f} MiB", busy)):
        p50, p90, p99 = np.percentile(taken, [50, 90, 99])
        results[name] = {"requests": len(taken), "p50_ms": p50, "p90_ms": p90, "p99_ms": p99}
        table.add_row(name, str(len(taken)), f"{p50:.0f}", f"{p90:.0f}", f"{p99:.0f}")
    Console().print(table)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"machine": place, "backbone": args.backbone, "results": results}, indent=2))


if __name__ == "__main__":
    main()
