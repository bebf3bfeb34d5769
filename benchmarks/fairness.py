"""Do keys get their shares over HTTP? ``python -m benchmarks.fairness`` prints the table of docs/PERFORMANCE.md.

Two keys of weights 3 and 1 flood a real server with a ViT-Ti of random weights, so that both always have more waiting
than it answers; a third one asks one picture at a time. Told are the shares of the answers of the two, and how long the
third waits: alone, beside the flood, and beside the same flood with its own key, as where everybody has the same one.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import math
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
from rich.console import Console
from rich.table import Table

from adapters.backbone import load_backbone
from adapters.file import write_adapter
from benchmarks.common import machine, random_adapter
from benchmarks.family import WAIT_S, served
from benchmarks.load import Clients, percentile
from service.keys import create, dump

ROOT = Path(__file__).parent.parent
BACKBONE = "vit_tiny_patch16_224"
CALLERS, AT_ONCE = 16, 8
"""Of each key that floods, each with one request of eight pictures under way: so few that it is the engine's queue in
which they wait, and not the front end's sockets, which know no keys."""
BATCH_ROWS = 8
"""Of a batch: those who flood have several batches waiting, or there would be nothing to choose from."""
PAUSE_S, FILL_S = 0.05, 2.0
"""Between the quiet key's requests, and until the flood's queue is full."""
WEIGHTS = {"gold": 3.0, "lead": 1.0, "quiet": 1.0}


@dataclass(frozen=True)
class Seen:
    """What one run came to: answers a second of those who flood, what they were refused, the quiet one's seconds."""

    rates: Mapping[str, float]
    refused: Mapping[str, int]
    quiet: Sequence[float]

    @property
    def share(self) -> float:
        """Of the first that floods."""
        return next(iter(self.rates.values())) / (sum(self.rates.values()) or 1.0)


def request(secret: str, task: str, picture: bytes, at_once: int = 1) -> bytes:
    body, path = picture, f"/v1/tasks/{task}/predict"
    if at_once > 1:
        instance = {"image_bytes": {"b64": base64.b64encode(picture).decode()}}
        body, path = json.dumps({"instances": [instance] * at_once}).encode(), f"/v1/models/{task}:predict"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {secret}\r\n"
        f"X-Deadline-Ms: 30000\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def run(port: int, flooding: Mapping[str, str], quiet: str, body: tuple[str, bytes], seconds: float) -> Seen:
    """``flooding`` are secrets by name. Answers count from when the queues are full to when nobody asks any more."""
    start = time.perf_counter() + FILL_S
    end, answered, refused, waits = start + seconds, Counter[str](), Counter[str](), list[float]()

    async def flood(name: str, asked: bytes) -> None:
        while time.perf_counter() < end:
            good = math.isfinite(await pool.timed(asked, 0.0))
            if start < time.perf_counter() < end:
                (answered if good else refused)[name] += AT_ONCE

    async def ask_quietly() -> None:
        await asyncio.sleep(FILL_S)
        while (now := time.perf_counter()) < end:
            waits.append(await pool.timed(request(quiet, *body), now))
            await asyncio.sleep(PAUSE_S)

    pool = Clients(port)
    floods = [flood(name, request(secret, *body, AT_ONCE)) for name, secret in flooding.items() for _ in range(CALLERS)]
    await asyncio.gather(ask_quietly(), *floods)
    pool.close()
    return Seen({name: answered[name] / seconds for name in flooding}, {n: refused[n] for n in flooding}, waits)


def measured(seconds: float, front_ends: int) -> list[tuple[str, Seen]]:
    made = {name: create(name, "predict", weight=weight) for name, weight in WEIGHTS.items()}
    secrets = {name: secret for name, (secret, _) in made.items()}
    boss, admin = create("boss", "admin")
    picture = (ROOT / "adapters/demo/samples/digits-2.png").read_bytes()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "keys.json").write_text(dump([admin, *(key for _, key in made.values())]))
        adapter = random_adapter(load_backbone(BACKBONE, "random:0", "cpu", "float32"), seed=0)
        write_adapter(folder / "adapter.safetensors", adapter.config, adapter.tensors)
        given = ["--keys-file", str(folder / "keys.json"), "--front-ends", str(front_ends)]
        os.environ["ADAPTSERVE_MAX_BATCH_ROWS"] = str(BATCH_ROWS)
        with served([*given, "--backbone", BACKBONE, "--weights", "random:0"], folder) as (_, url, _):
            httpx.put(
                f"{url}/v1/tasks/t/adapter", content=(folder / "adapter.safetensors").read_bytes(),
                headers={"Authorization": f"Bearer {boss}"}, timeout=WAIT_S,
            ).raise_for_status()  # fmt: skip
            port, body = int(url.rpartition(":")[2]), ("t", picture)
            plans: list[tuple[str, dict[str, str]]] = [
                ("nobody", {}),
                ("two keys, 3 : 1", {name: secrets[name] for name in ("gold", "lead")}),
                ("the quiet one's own key", {"quiet": secrets["quiet"], "quiet, again": secrets["quiet"]}),
            ]
            asyncio.run(run(port, dict(plans[1][1]), secrets["quiet"], body, 2.0))  # what is slow the first time
            return [(name, asyncio.run(run(port, plan, secrets["quiet"], body, seconds))) for name, plan in plans]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of three runs")
    parser.add_argument("--front-ends", type=int, default=1)
    given = parser.parse_args()
    table = Table()
    for column in ("who floods", "pictures/s", "refused", "the first's share", "the quiet key: p50", "p99", "answered"):
        table.add_column(column)
    for name, seen in measured(given.seconds, given.front_ends):
        times = seen.quiet
        table.add_row(
            name, " + ".join(f"{rate:.1f}" for rate in seen.rates.values()) or "-",
            " + ".join(map(str, seen.refused.values())) or "-", f"{seen.share:.1%}" if seen.rates else "-",
            f"{1000 * statistics.median(times):.0f} ms", f"{1000 * percentile(times, 0.99):.0f} ms",
            f"{sum(map(math.isfinite, times))} of {len(times)}",
        )  # fmt: skip
    console = Console(width=140)
    console.print(table)
    console.print(machine(torch.device("cpu")))


if __name__ == "__main__":
    main()
