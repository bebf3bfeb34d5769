"""Would another runtime serve more? OpenVINO against eager torch, in the same engine under the same load.

`python -m benchmarks.runtime` (needs `pip install openvino`): first the largest error against eager float32, then
closed loops in turns: 16 clients, 16 tasks, 335x500 JPEGs decoded on the same cores. OpenVINO gets timm's blocks with
each row's weights as inputs, rows left open, memory shared.

`--profile` needs no OpenVINO: where the time of the banked forward goes that the bare one does not need.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from adapters.backbone import Backbone, load_backbone
from adapters.bank import Slabs
from adapters.forward.banked import BankedForward, Job
from benchmarks.common import fill, machine
from benchmarks.front import pictures
from benchmarks.run import bare_forward
from benchmarks.serving import Forward, Served, served
from service.engine.heap import keep_freed_memory

PRECISIONS = {"f32": "float32", "bf16": "bfloat16"}


class _Walk(nn.Module):
    """A plain ViT with AdaptFormer residuals whose weights come as inputs: four tensors for each block."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, mean: Tensor, std: Tensor, *weights: Tensor) -> Tensor:
        x = self.model.patch_embed((pixels.float() / 255.0 - mean) / std)
        x = self.model.norm_pre(self.model.patch_drop(self.model._pos_embed(x)))
        for i, block in enumerate(self.model.blocks):
            down, down_bias, up, up_bias = weights[4 * i : 4 * i + 4]
            tap = x + block.ls1(block.attn(block.norm1(x)))
            out = tap + block.ls2(block.mlp(block.norm2(tap)))
            x = out + torch.bmm(F.relu(torch.bmm(tap, down) + down_bias), up) + up_bias
        pooled: Tensor = self.model.fc_norm(self.model.norm(x)[:, 0])
        return pooled


class OpenVinoForward:
    """Callable on jobs as ``BankedForward`` is, for pictures alone, AdaptFormer in every block and one page a head."""

    def __init__(self, backbone: Backbone, slabs: Slabs, precision: str) -> None:
        ov = importlib.import_module("openvino")  # no dependency: only whoever runs this needs it
        self._slabs, size = slabs, backbone.input.size
        pixels = torch.zeros(2, 3, *size, dtype=torch.uint8)
        example = (pixels, *self._inputs(torch.tensor([0, 0])))
        with torch.inference_mode():
            model = ov.convert_model(_Walk(backbone.model), example_input=example)
        for node in model.inputs:
            node.get_node().set_partial_shape(ov.PartialShape([-1, *list(node.get_partial_shape())[1:]]))
        model.validate_nodes_and_infer_types()
        self._compiled = ov.compile_model(
            model, "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        )

    def _inputs(self, slots: Tensor) -> list[Tensor]:
        vectors = self._slabs.vectors[slots]
        inputs = [vectors[:, 0:3, None, None].contiguous(), vectors[:, 3:6, None, None].contiguous()]
        for block in self._slabs.weights["parallel"]:
            down, up = block.down.index_select(0, slots), block.up.index_select(0, slots)
            biases = (b.index_select(0, slots).unsqueeze(1) for b in (block.down_bias, block.up_bias))
            inputs += [down, next(biases), up, next(biases)]
        return inputs

    def __call__(self, jobs: Sequence[Job]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            slots = torch.tensor([job.slot for job in jobs])
            pixels = np.concatenate([np.asarray(job.pixels) for job in jobs])
            inputs = [pixels, *(tensor.numpy() for tensor in self._inputs(slots))]
            pooled = torch.from_numpy(self._compiled(inputs, share_inputs=True)[0])
            pages = torch.tensor([job.pages[0] for job in jobs])
            scores = (
                torch.bmm(self._slabs.pages[pages], pooled.unsqueeze(-1)).squeeze(-1) + self._slabs.page_bias[pages]
            )
            return [row[: job.meta.classes] for row, job in zip(scores.numpy(), jobs, strict=True)]


def errors(backbones: dict[str, Backbone]) -> list[tuple[str, float]]:
    """Each way's largest difference of a logit from eager float32, of 8 rows with as many adapters."""
    found: list[tuple[str, float]] = []
    expected: NDArray[np.float32] | None = None
    for label, backbone, make in ways(backbones):
        slabs, held = fill(backbone, 8)
        generator = torch.Generator().manual_seed(1)
        size = backbone.input.size
        pixels = torch.randint(0, 256, (8, 1, 3, *size), dtype=torch.uint8, generator=generator).numpy()
        logits = np.stack(make(slabs)([Job(p, *slot) for p, slot in zip(pixels, held, strict=True)]))
        expected = logits if expected is None else expected
        found.append((label, float(np.abs(logits - expected).max())))
    return found


def ways(backbones: dict[str, Backbone]) -> list[tuple[str, Backbone, Callable[[Slabs], Forward]]]:
    """The slabs are float32 for OpenVINO, which narrows what it wants itself."""
    plain = backbones["float32"]
    return [
        *((f"eager {dtype}", b, lambda slabs, b=b: BankedForward(b, slabs)) for dtype, b in backbones.items()),
        *((f"OpenVINO {p}", plain, lambda slabs, p=p: OpenVinoForward(plain, slabs, p)) for p in PRECISIONS),
    ]


def loops(backbones: dict[str, Backbone], clients: int, seconds: float, rounds: int) -> dict[str, list[Any]]:
    """Each way's loads, round after round, the ways in turns."""
    with ExitStack() as stack:
        jpeg = pictures()["335x500 JPEG"]
        houses: list[tuple[str, Served]] = [
            (label, stack.enter_context(served(backbone, make, 16, jpeg))) for label, backbone, make in ways(backbones)
        ]
        found: dict[str, list[Any]] = {label: [] for label, _ in houses}
        for number in range(rounds):
            turn = number % len(houses)
            for label, house in houses[turn:] + houses[:turn]:
                found[label].append(house.closed_loop(clients, seconds))
    return found


def show_loops(given: argparse.Namespace, console: Console) -> None:
    backbones = {dtype: load_backbone(given.backbone, "random:0", "cpu", dtype) for dtype in PRECISIONS.values()}
    worst = dict(errors(backbones))
    found = loops(backbones, given.clients, given.seconds, given.rounds)
    table = Table("runtime", "largest error of a logit", "answers a second, median", "range", "p99 ms",
                  "ratio to eager float32", "ratio to eager bfloat16")  # fmt: skip
    for label, loads in found.items():
        rates = [load.rate for load in loads]
        ratios = [
            statistics.median(a / b.rate for a, b in zip(rates, found[f"eager {dtype}"], strict=True))
            for dtype in PRECISIONS.values()
        ]
        p99 = statistics.median(load.milliseconds(99) for load in loads)
        table.add_row(label, f"{worst[label]:.1e}", f"{statistics.median(rates):.1f}",
                      f"{min(rates):.1f} to {max(rates):.1f}", f"{p99:.0f}", *(f"{r:.2f}" for r in ratios))  # fmt: skip
    table.title = f"{given.backbone}, {given.clients} clients, {given.rounds} rounds; {machine(torch.device('cpu'))}"
    console.print(table)


def show_profile(given: argparse.Namespace, console: Console) -> None:
    """Self time of each operator in the bare and in the banked forward, and how often each is called."""
    backbone = load_backbone(given.backbone, "random:0", "cpu", given.dtype)
    slabs, held = fill(backbone, given.rows)
    forward, bare, size = BankedForward(backbone, slabs), bare_forward(backbone), backbone.input.size
    pixels = torch.randint(0, 256, (given.rows, 1, 3, *size), dtype=torch.uint8)
    jobs = [Job(p, *slot) for p, slot in zip(pixels, held, strict=True)]
    runs: tuple[Callable[[], object], ...] = (lambda: bare(given.rows), lambda: forward(jobs))
    times: list[dict[str, float]] = [{}, {}]
    calls: dict[str, int] = {}
    for run in runs:
        run()
    for _ in range(given.rounds):
        for run, own in zip(runs, times, strict=True):
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                run()
            for event in seen.key_averages():
                taken = event.self_cpu_time_total / 1e3
                own[event.key] = own.get(event.key, 0.0) + taken / given.rounds
                calls[event.key] = event.count
    table = Table("operator", "calls", "bare ms", "banked ms", "more, ms", "% of the bare forward")
    total, banked_total = (sum(own.values()) for own in times)
    names = sorted({*times[0], *times[1]}, key=lambda name: times[0].get(name, 0.0) - times[1].get(name, 0.0))
    for name in names:
        before, after = (own.get(name, 0.0) for own in times)
        if max(before, after) > total / 1000:
            table.add_row(name, str(calls[name]), f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}",
                          f"{100 * (after - before) / total:+.2f}")  # fmt: skip
    table.add_row("all", "", f"{total:.2f}", f"{banked_total:.2f}", f"{banked_total - total:+.2f}",
                  f"{100 * (banked_total - total) / total:+.2f}")  # fmt: skip
    table.title = (
        f"{given.backbone}, {given.rows} rows with as many adapters, {given.dtype}; {machine(backbone.device)}"
    )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runtime", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="a timm name; its weights are random")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each closed loop")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's default")
    parser.add_argument("--profile", action="store_true", help="the operators of one forward instead")
    parser.add_argument("--rows", type=int, default=8, help="of the profile")
    parser.add_argument("--dtype", default="float32", help="of the profile")
    given = parser.parse_args()
    keep_freed_memory()
    if given.threads:
        torch.set_num_threads(given.threads)
    (show_profile if given.profile else show_loops)(given, Console(width=160))


if __name__ == "__main__":
    main()
