"""The server's processes: what memory each holds, at rest and after a load of pictures.

`python -m benchmarks.family` prints the table of docs/OPERATIONS.md: the demo's backbone, and a ViT-B with random
weights, each with two front ends. `own` is what the end of the process would free, `share` that and its part of what
it shares with others, so that the shares of all add up to what the server takes.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import httpx
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from adapters.backbone import load_backbone
from adapters.file import write_adapter
from benchmarks.common import machine, random_adapter
from benchmarks.uploads import free_port

FRONT_ENDS, CLIENTS, REQUESTS, TASKS = 2, 8, 400, 16
WAIT_S = 120.0
NAMES = {"service.engine.process": "engine", "service.web.process": "front end"}


@contextmanager
def served(arguments: Sequence[str], scratch: Path) -> Iterator[tuple[int, str, float]]:
    """A server's process id, its address, and the seconds until it was ready."""
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), "--data-dir", str(scratch / "data")]
    start, url = time.perf_counter(), f"http://127.0.0.1:{port}"
    with (scratch / "log").open("w") as log:
        process = Popen([*command, "--front-ends", str(FRONT_ENDS), *arguments], stdout=log, stderr=log)
    try:
        while not _ready(url):
            if process.poll() is not None or time.perf_counter() - start > WAIT_S:
                raise SystemExit((scratch / "log").read_text())
            time.sleep(0.01)
        yield process.pid, url, time.perf_counter() - start
    finally:
        process.terminate()
        process.wait(WAIT_S)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=WAIT_S).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def memory(supervisor: int) -> Iterator[tuple[str, float, float]]:
    """Each process: its name, and its own MiB and its share."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    for pid in (supervisor, *map(int, children)):
        command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        own = kib["Private_Clean"] + kib["Private_Dirty"]
        yield next((n for m, n in NAMES.items() if m in command), "supervisor"), own / 1024, kib["Pss"] / 1024


def load(url: str, tasks: Sequence[str]) -> None:
    """Photographs of usual size, from several clients at once."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (500, 335, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    with httpx.Client(base_url=url, timeout=WAIT_S) as client, ThreadPoolExecutor(CLIENTS) as pool:

        def ask(number: int) -> None:
            task = tasks[number % len(tasks)]
            client.post(f"/v1/tasks/{task}/predict", content=file.getvalue()).raise_for_status()

        list(pool.map(ask, range(REQUESTS)))


def publish(url: str, name: str, folder: Path) -> None:
    backbone = load_backbone(name, "random:0", "cpu", "float32")
    for number in range(TASKS):
        adapter = random_adapter(backbone, number, task=f"task-{number}")
        write_adapter(folder / "one.safetensors", adapter.config, adapter.tensors)
        content = (folder / "one.safetensors").read_bytes()
        httpx.put(f"{url}/v1/tasks/task-{number}/adapter", content=content, timeout=WAIT_S).raise_for_status()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backbone", default="vit_base_patch16_224", help="the second one, with random weights")
    backbone = parser.parse_args().backbone
    console = Console()
    console.print({**machine(torch.device("cpu")), "load average": round(os.getloadavg()[0], 1)})
    for name, arguments in (("demo", ()), (backbone, ("--backbone", backbone, "--weights", "random:0"))):
        with tempfile.TemporaryDirectory() as scratch, served(arguments, Path(scratch)) as (pid, url, start_s):
            if arguments:
                publish(url, backbone, Path(scratch))
            listed = httpx.get(f"{url}/v1/tasks").json()["tasks"]
            tasks = [task["task"] for task in listed if task["modality"] == "image"]
            before = list(memory(pid))
            load(url, tasks)
            after = list(memory(pid))
        title = f"{name}: ready after {start_s:.1f} s, {len(listed)} tasks; {REQUESTS} pictures from {CLIENTS} clients"
        table = Table("process", "own MiB", "share MiB", "own after", "share after", title=title)
        for (process, own, share), (_, own_after, share_after) in zip(before, after, strict=True):
            table.add_row(process, *(f"{value:.0f}" for value in (own, share, own_after, share_after)))
        table.add_row("all", "", f"{sum(row[2] for row in before):.0f}", "", f"{sum(row[2] for row in after):.0f}")
        console.print(table)


if __name__ == "__main__":
    main()
