"""From an upload to its first answer, on an idle server: `python -m benchmarks.first_answer`.

Each round puts a new adapter of a ViT-B under a name that the server does not know, and asks it about one picture as
soon as the 201 is there. Beside the whole it shows the parts that the answer has anyway (its own forward pass) and the
one that checking an upload has (another forward pass, on the blank input).
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import torch
from rich.console import Console
from rich.table import Table

from adapters import load_backbone
from benchmarks.common import machine, random_adapter
from benchmarks.front import a_file
from benchmarks.uploads import photograph, server


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_answer", description=__doc__)
    parser.add_argument("--backbone", default="vit_base_patch16_224", help="a timm name; weights are random")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, body = Path(temporary), photograph()
        backbone = load_backbone(given.backbone, "random:0", "cpu", "float32")
        files = [a_file(random_adapter(backbone, seed, task="new"), folder) for seed in range(given.rounds + 2)]
        del backbone
        with server(folder, given.backbone) as url, httpx.Client(base_url=url, timeout=60) as client:
            for number, content in enumerate(files):
                start = time.perf_counter()
                client.put(f"/v1/tasks/task-{number}/adapter", content=content).raise_for_status()
                uploaded = time.perf_counter()
                client.post(f"/v1/tasks/task-{number}/predict", content=body).raise_for_status()
                answered = time.perf_counter()
                again = client.post(f"/v1/tasks/task-{number}/predict", content=body).raise_for_status()
                computing = float(re.findall(r"compute;dur=([\d.]+)", again.headers["Server-Timing"])[0])
                parts = {
                    "upload to 201": uploaded - start, "201 to its first answer": answered - uploaded,
                    "together": answered - start, "one forward pass of one picture": computing / 1000,
                    "together, less two forward passes": answered - start - 2 * computing / 1000,
                }  # fmt: skip
                for name, seconds in parts.items():
                    taken.setdefault(name, []).append(1000 * seconds)
            dtype = client.get("/v1/tasks").json()["dtype"]
    place = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    table = Table(title=f"{given.backbone}, {dtype}, an adapter of {len(files[0]) / 1e6:.1f} MB, {place['device']}, "
                        f"{place['date']}, {given.rounds} rounds")  # fmt: skip
    for column in ("", "median ms", "least", "most"):
        table.add_column(column, justify="right" if column else "left")
    for name, all_ms in taken.items():
        ms = sorted(all_ms[2:])  # the first two warm up
        table.add_row(name, f"{statistics.median(ms):.0f}", f"{ms[0]:.0f}", f"{ms[-1]:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
