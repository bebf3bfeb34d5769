"""`python -m benchmarks.peers`: AdaptServe and what one would use instead, in turns on the same cores.

Every server has the same backbone and tasks, and first answers as plain timm does, or the command ends. Then, in
rounds: a closed loop, and the highest rate of Poisson arrivals at which 99 % of all requests have their answer in time.
Then the time from a new task's file to its first answer, and the memory of a task, from two numbers of tasks. Peers
are stopped (SIGSTOP) while others have their turn, since Ray and LitServe use a tenth of a core each when idle. It
needs the extra `peers`. Servers listen on free ports of 127.0.0.1, but Ray's replicas everywhere if it has HAProxy.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.common import machine
from benchmarks.peers.measure import Load, Pictures, check, rounds
from benchmarks.peers.model import Folder, name_of
from benchmarks.peers.prepare import pictures, prepare
from benchmarks.peers.report import Row, markdown, summary
from benchmarks.peers.systems import DEFAULT, SYSTEMS, running

NEW_TASKS = 3
console = Console(stderr=True, soft_wrap=True, highlight=False)


def measure(given: argparse.Namespace, folder: Folder, body: list[bytes], logs: Path) -> dict[str, Row]:
    """All rows, one for each system."""
    few, many = given.tasks
    found = {name: Row(SYSTEMS[name].says, SYSTEMS[name].dtype) for name in given.systems}
    shown = Pictures(folder, body)
    with ExitStack() as stack:
        servers = {}
        for name, row in found.items():
            server = servers[name] = stack.enter_context(running(SYSTEMS[name], folder, few, body[0], logs))
            row.start_s = server.start_s
            row.memory[few] = server.memory()
            row.error = check(server, shown, few)
            row.idle_cores = server.idle_cores()
            server.pause()
            console.print(f"{name}: up in {row.start_s:.1f} s, at most {row.error:.1e} from timm")
        load = Load(body, few, given.clients, given.seconds, given.limit_ms / 1e3)
        rounds(servers, found, load, given.rounds, console.print)
        for name, server in servers.items():
            with server.awake():
                found[name].new_task_s = [server.new_task(name_of(few + i), body[i]) for i in range(NEW_TASKS)]
    for name, row in found.items():
        with running(SYSTEMS[name], folder, many, body[0], logs) as server:
            row.memory[many] = server.memory()
        console.print(f"{name}: {row.per_task() / 1e6:.2f} MB a task")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=DEFAULT, metavar="NAME",
                        help=f"of {', '.join(SYSTEMS)}; by default {', '.join(DEFAULT)}")  # fmt: skip
    parser.add_argument("--backbone", default="vit_tiny_patch16_224", help="a timm name")
    parser.add_argument("--weights", default="random:0", help="as of adaptserve serve")
    parser.add_argument("--tasks", type=int, nargs=2, default=(16, 64), help="for the load, and for memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a rate that is tried, and of the closed loop")
    parser.add_argument("--clients", type=int, default=16, help="in the closed loop")
    parser.add_argument("--limit-ms", type=float, default=500.0, help="what 99 %% of all answers must keep")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and the servers with it
    lora = any(SYSTEMS[name].lora for name in given.systems)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        path = Path(temporary)
        folder, shares = prepare(path, given.backbone, given.weights, max(given.tasks), lora)
        found = measure(given, folder, pictures(), path)
    settings = {
        name: getattr(given, name) for name in ("backbone", "tasks", "rounds", "seconds", "clients", "limit_ms")
    }
    where = machine(torch.device("cpu"))
    told = summary(found)
    if given.out:
        rows = {name: row.told() for name, row in found.items()}
        text = {"machine": where, "settings": settings, "shares": shares, "systems": rows, "ratios": told}
        given.out.write_text(json.dumps(text, indent=1) + "\n")
    print(f"{where}; {settings}; adapters of {shares}\n\n{markdown(found)}\n")
    for line, ratio in told.items():
        print(f"{line}: {ratio}")


if __name__ == "__main__":
    main()
