"""Is it as fast as the bare model? timm's own forward against the banked forward, in turns.

`make bench` runs it. On a CPU the bare forward is in float32, whatever the banked one computes in (--dtype), and in a
process of its own, for a server's engine sets up its heap (service/engine/memory.py) and a script with timm does not;
--one-process leaves both the usual heap, which shows what the adapters alone cost. On a machine with neighbours,
--processor-time counts the time that one thread computed, not the time that it waited for a core. A ratio is
bare time / banked time; 1.0 would mean that the adapters, the normalisation and the heads cost nothing, or as much as a
narrower dtype saves. The arithmetic floor of a 1.4 % adapter is 0.987. Two ratios are given, and neither is the verdict
alone: of the fastest rounds, and the median over the rounds, each against its neighbour in time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from adapters.backbone import Backbone, load_backbone
from adapters.forward.banked import BankedForward, Job
from benchmarks.common import fill, machine
from service.engine.heap import keep_freed_memory

SECONDS = 6.0
"""A mix is repeated for at least so long, beyond the rounds asked for: noise is worst where forwards are short."""
MIXES = ((1, 1), (8, 1), (8, 8), (32, 1), (32, 8), (32, 32))
BACKBONES = ("vit_small_patch16_224", "vit_base_patch16_224")


Bare = Callable[[int], object]
"""timm's own forward of so many rows; a float is the processor time that it took in another process."""


def bare_forward(backbone: Backbone) -> Bare:
    """On random pictures, in this process."""
    size, kept = backbone.input.size, dict[int, torch.Tensor]()

    def run(rows: int) -> object:
        if rows not in kept:
            kept.clear()
            kept[rows] = torch.randn(rows, 3, *size).to(backbone.device, backbone.dtype)
        with torch.inference_mode():
            features = backbone.model.forward_features(kept[rows])
            return backbone.model.forward_head(features, pre_logits=True)

    return run


@contextmanager
def in_a_process(name: str) -> Iterator[Bare]:
    """The bare forward on the CPU in float32, in a process as Python starts it."""
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(
        target=_answer, args=(there, name, torch.get_num_threads()), daemon=True
    )
    child.start()
    there.close()

    def run(rows: int) -> object:
        here.send(rows)
        return here.recv()

    try:
        yield run
    finally:
        here.close()  # the child's recv ends it
        child.join()


def _answer(pipe: Connection, name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    run = bare_forward(load_backbone(name, "random:0", "cpu", "float32"))
    try:
        while True:
            rows, start = pipe.recv(), time.process_time()
            run(rows)
            pipe.send(time.process_time() - start)
    except EOFError:
        return


def seconds(function: Callable[[], object], device: torch.device, *, processor: bool = False) -> float:
    """By the clock; or of the processor, which ``function`` adds to by returning what another process took."""
    if processor:
        start, elsewhere = time.process_time(), function()
        return time.process_time() - start + (elsewhere if isinstance(elsewhere, float) else 0.0)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def alternate(
    bare: Callable[[], object],
    banked: Callable[[], object],
    rounds: int,
    device: torch.device,
    *,
    processor: bool = False,
) -> list[tuple[float, float]]:
    """Seconds of each, in turns, the first one changing; both ran once before."""
    bare()
    banked()
    pairs: list[tuple[float, float]] = []
    while len(pairs) < rounds or sum(map(sum, pairs)) < SECONDS:
        order = (bare, banked) if len(pairs) % 2 else (banked, bare)
        taken = {f: seconds(f, device, processor=processor) for f in order}
        pairs.append((taken[bare], taken[banked]))
    return pairs


def measure(
    backbone: Backbone,
    bare: Bare,
    rounds: int,
    advance: Callable[[], None],
    mixes: Sequence[tuple[int, int]],
    *,
    processor: bool = False,
    compile: bool = False,
) -> list[dict[str, float | int | str]]:
    """One row of results per mix of rows and adapters."""
    slabs, held = fill(backbone, max(adapters for _, adapters in mixes))
    forward = BankedForward(backbone, slabs, compile=compile)
    forward.warm_up(sorted({rows for rows, _ in mixes}), [held[0][2]])
    size, results = backbone.input.size, []
    for rows, adapters in mixes:
        pixels = torch.randint(0, 256, (rows, 1, 3, *size), dtype=torch.uint8).numpy()
        jobs = [Job(p, *held[i % adapters]) for i, p in enumerate(pixels)]

        def bare_rows(rows: int = rows) -> object:
            return bare(rows)

        def banked(jobs: list[Job] = jobs) -> object:
            return forward(jobs)

        pairs = alternate(bare_rows, banked, rounds, backbone.device, processor=processor)
        ratios = sorted(b / k for b, k in pairs)
        quarter = len(ratios) // 4
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
                "low": ratios[quarter],
                "high": ratios[-1 - quarter],
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
    parser.add_argument("--one-process", action="store_true", help="both forwards in one process with the usual heap")
    parser.add_argument("--processor-time", action="store_true", help="of one thread on a CPU, instead of the clock's")
    parser.add_argument("--mixes", nargs="+", metavar="ROWSxADAPTERS", help="default: all of the table")
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    args = parser.parse_args()
    mixes = [(int(r), int(a)) for r, a in (mix.split("x") for mix in args.mixes)] if args.mixes else MIXES
    if args.processor_time:
        args.threads = 1
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.one_process:
        keep_freed_memory()
    console, results, place = Console(), [], None
    with Progress(console=console) as bar:
        task = bar.add_task("measuring", total=len(args.backbones) * len(mixes))
        for name in args.backbones:
            backbone = load_backbone(name, "random:0", args.device, args.dtype)
            place = machine(backbone.device)
            with ExitStack() as stack:
                if backbone.device.type != "cpu":
                    bare = bare_forward(backbone)
                elif args.one_process:
                    bare = bare_forward(load_backbone(name, "random:0", "cpu", "float32"))
                else:
                    bare = stack.enter_context(in_a_process(name))
                results += measure(
                    backbone,
                    bare,
                    args.rounds,
                    lambda: bar.advance(task),
                    mixes,
                    processor=args.processor_time,
                    compile=args.compile,
                )
    table = Table(title=f"{place}", title_justify="left")
    for column in ("backbone", "dtype", "rows", "adapters", "bare ms", "banked ms", "ratio", "median", "middle half"):
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
