"""Is it as fast as the bare model? timm's own forward against the banked forward, alternating in one process.

`make bench` runs it. On a CPU the bare forward is in float32, whatever the banked one computes in (--dtype). A ratio is
bare time / banked time; 1.0 would mean that the adapters, the normalisation and the heads cost nothing, or as much as a
narrower dtype saves. The arithmetic floor of a 1.4 % adapter is 0.987. Two ratios are given, and neither is the verdict
alone: of the fastest rounds, and the median over the rounds, each against its neighbour in time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from adapters.backbone import Backbone, load_backbone
from adapters.forward.banked import BankedForward, Job
from benchmarks.common import fill, machine

SECONDS = 6.0
"""A mix is repeated for at least so long, beyond the rounds asked for: noise is worst where forwards are short."""
MIXES = ((1, 1), (8, 1), (8, 8), (32, 1), (32, 8), (32, 32))
BACKBONES = ("vit_small_patch16_224", "vit_base_patch16_224")


def seconds(function: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def alternate(
    bare: Callable[[], object], banked: Callable[[], object], rounds: int, device: torch.device
) -> list[tuple[float, float]]:
    """Seconds of each, in turns, the first one changing; both ran once before."""
    bare()
    banked()
    pairs: list[tuple[float, float]] = []
    while len(pairs) < rounds or sum(map(sum, pairs)) < SECONDS:
        order = (bare, banked) if len(pairs) % 2 else (banked, bare)
        taken = {f: seconds(f, device) for f in order}
        pairs.append((taken[bare], taken[banked]))
    return pairs


def measure(
    backbone: Backbone, reference: Backbone, rounds: int, advance: Callable[[], None], *, compile: bool = False
) -> list[dict[str, float | int | str]]:
    """One row of results per mix of rows and adapters; ``reference`` has the bare model."""
    slabs, held = fill(backbone, max(adapters for _, adapters in MIXES))
    forward, model = BankedForward(backbone, slabs, compile=compile), reference.model
    forward.warm_up(sorted({rows for rows, _ in MIXES}), [held[0][2]])
    size, results = backbone.input.size, []
    for rows, adapters in MIXES:
        pixels = torch.randint(0, 256, (rows, 1, 3, size, size), dtype=torch.uint8).numpy()
        jobs = [Job(p, *held[i % adapters]) for i, p in enumerate(pixels)]
        images = torch.randn(rows, 3, size, size).to(reference.device, reference.dtype)

        def bare(images: torch.Tensor = images) -> object:
            with torch.inference_mode():
                return model.forward_head(model.forward_features(images), pre_logits=True)

        def banked(jobs: list[Job] = jobs) -> object:
            return forward(jobs)

        pairs = alternate(bare, banked, rounds, backbone.device)
        ratios = [b / k for b, k in pairs]
        fastest = [1e3 * min(times) for times in zip(*pairs, strict=True)]
        results.append(
            {
                "backbone": backbone.layout.model.split("+")[0],
                "dtype": str(backbone.dtype).removeprefix("torch."),
                "rows": rows,
                "adapters": adapters,
                "rounds": len(pairs),
                "bare_ms": fastest[0],
                "banked_ms": fastest[1],
                "ratio": fastest[0] / fastest[1],
                "median": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
            }
        )
        advance()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds per mix, at least (default 7)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="of the banked forward (default: what serves here)")
    parser.add_argument("--compile", action="store_true", help="the banked forward through torch.compile")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's default")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help="timm names; weights are random")
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    console, results, place = Console(), [], None
    with Progress(console=console) as bar:
        task = bar.add_task("measuring", total=len(args.backbones) * len(MIXES))
        for name in args.backbones:
            backbone = load_backbone(name, "random:0", args.device, args.dtype)
            on_cpu = backbone.device.type == "cpu"
            bare = load_backbone(name, "random:0", args.device, "float32") if on_cpu else backbone
            place = machine(backbone.device)
            results += measure(backbone, bare, args.rounds, lambda: bar.advance(task), compile=args.compile)
    table = Table(title=f"{place}", title_justify="left")
    for column in ("backbone", "dtype", "rows", "adapters", "bare ms", "banked ms", "ratio", "median", "range"):
        table.add_column(column, justify="left" if column in ("backbone", "dtype") else "right")
    for r in results:
        table.add_row(
            *(str(r[name]) for name in ("backbone", "dtype", "rows", "adapters")),
            f"{r['bare_ms']:.1f}", f"{r['banked_ms']:.1f}", f"{r['ratio']:.3f}", f"{r['median']:.3f}",
            f"{r['low']:.3f} to {r['high']:.3f}",
        )  # fmt: skip
    console.print(table)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"machine": place, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
