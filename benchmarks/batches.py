"""Batch calls against single requests: the same pictures to one server, as many calls at once and as one call.

`python -m benchmarks.batches` starts a server of real processes and asks it in turns: single requests over kept-alive
connections in a closed loop, which is the server's own speed, then a form, a zip and a tar of as many pictures, from
the first byte sent to the last line read. The pictures are all different, and the load generator runs on the same
cores. `--null` takes a forward pass that computes nothing, and leaves what a batch costs a front end.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import statistics
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import uvloop
from PIL import Image
from rich.console import Console

from benchmarks import load
from benchmarks.front import TASK, a_file, free_port, running, table

SINGLE = "single requests"


def pictures(count: int) -> list[bytes]:
    """JPEGs of a photograph's size, of smooth noise, no two alike."""
    made = []
    for seed in range(count):
        noise = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((335, 500), Image.Resampling.BICUBIC).save(file, "JPEG")
        made.append(file.getvalue())
    return made


def a_zip(bodies: Sequence[bytes]) -> httpx.Request:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for number, body in enumerate(bodies):
            packed.writestr(f"{number}.jpg", body)
    return httpx.Request("POST", "http://x", content=out.getvalue())


def a_tar(bodies: Sequence[bytes]) -> httpx.Request:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as packed:
        for number, body in enumerate(bodies):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(body)
            packed.addfile(info, io.BytesIO(body))
    return httpx.Request("POST", "http://x", content=out.getvalue())


def a_form(bodies: Sequence[bytes]) -> httpx.Request:
    return httpx.Request("POST", "http://x", files=[("file", (f"{n}.jpg", body)) for n, body in enumerate(bodies)])


FORMS: dict[str, Callable[[Sequence[bytes]], httpx.Request]] = {"form": a_form, "zip": a_zip, "tar": a_tar}


def singles(port: int, bodies: Sequence[bytes], clients: int) -> float:
    """Answers a second; each picture is asked about once."""

    def requests() -> Iterator[bytes]:
        for body in itertools.cycle(bodies):
            head = f"POST /v1/tasks/{TASK}/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
            yield head.encode() + body

    async def all_of_them() -> int:
        source, pool, left, answered = requests(), load.Clients(port), iter(range(len(bodies))), 0

        async def client() -> None:
            nonlocal answered
            for _ in left:
                answer = await pool.ask(next(source))
                answered += answer.status == 200

        await asyncio.gather(*(client() for _ in range(clients)))
        pool.close()
        return answered

    start = time.perf_counter()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answered = runner.run(all_of_them())
    if answered != len(bodies):
        raise SystemExit(f"{len(bodies) - answered} of {len(bodies)} single requests were not answered")
    return answered / (time.perf_counter() - start)


def batch(port: int, request: httpx.Request, count: int) -> float:
    """Answers a second of one call, all told."""
    content, kind = request.read(), request.headers.get("content-type", "application/octet-stream")
    url, start = f"http://127.0.0.1:{port}/v1/tasks/{TASK}/batch", time.perf_counter()
    with httpx.stream("POST", url, content=content, headers={"Content-Type": kind}, timeout=600) as response:
        *_, last = response.iter_lines()
    if json.loads(last) != {"done": True, "items": count, "failed": 0}:
        raise SystemExit(f"the batch ended with {last}")
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batches", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="a timm name, with random weights")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=32, help="single requests at once")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--front-ends", type=int, default=0)
    parser.add_argument("--null", action="store_true", help="a forward pass that computes nothing")
    given = parser.parse_args()

    import torch

    from adapters import load_backbone
    from benchmarks.common import machine, random_adapter

    where = machine(torch.device("cuda" if torch.cuda.is_available() and given.device != "cpu" else "cpu"))
    backbone = load_backbone(given.backbone, "random:0", "cpu", "float32")
    bodies = pictures(given.pictures)
    made = {name: make(bodies) for name, make in FORMS.items()}
    found: dict[str, list[float]] = {name: [] for name in (SINGLE, *FORMS)}
    with tempfile.TemporaryDirectory() as temporary:
        folder, port = Path(temporary), free_port()
        command = ["benchmarks.null" if given.null else "service.cli", "serve", "--port", str(port), "--backbone",
                   given.backbone, "--weights", "random:0", "--device", given.device, "--data-dir",
                   str(folder / "data"), "--front-ends", str(given.front_ends)]  # fmt: skip
        file = a_file(random_adapter(backbone, 0, task=TASK), folder)
        with running("server", command, port):
            url = f"http://127.0.0.1:{port}/v1/tasks/{TASK}/adapter"
            httpx.put(url, content=file, timeout=60).raise_for_status()
            singles(port, bodies[:100], given.clients)  # warms up
            for _ in range(given.rounds):
                found[SINGLE].append(singles(port, bodies, given.clients))
                for name, request in made.items():
                    found[name].append(batch(port, request, len(bodies)))
    console = Console(width=140)
    forward = "null forward" if given.null else given.backbone
    console.print(f"{where['device']}, {where['date']}, {forward}, {given.rounds} rounds, "
                  f"{given.pictures} pictures of {len(bodies[0]) / 1000:.1f} kB, {given.clients} clients")  # fmt: skip
    lines = table("Answers a second", "how", "median", f"over {SINGLE}, median", "range")
    for name, rates in found.items():
        ratios = sorted(a / b for a, b in zip(rates, found[SINGLE], strict=True))
        lines.add_row(name, f"{statistics.median(rates):.1f}", f"{statistics.median(ratios):.2f}",
                      f"{ratios[0]:.2f} to {ratios[-1]:.2f}")  # fmt: skip
    console.print(lines)


if __name__ == "__main__":
    main()
