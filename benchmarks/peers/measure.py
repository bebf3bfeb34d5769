"""What is measured of running servers: that they answer as timm does, the closed loop, goodput at a p99."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from benchmarks.load import arrivals, closed, good, highest, percentile, poisson, zipf
from benchmarks.peers.model import Folder, Reader, name_of, scores
from benchmarks.peers.report import Row
from benchmarks.peers.systems import Running, scores_of

ALLOWED = {"float32": 1e-5, "bfloat16": 5e-3}
"""How far a score may be from plain timm's in float32."""
CHECKED_TASKS, CHECKED_PICTURES = 4, 3
FEWEST = 100
"""Arrivals of a rate that is tried; 1 in 100 may be late."""
DRAIN_S = 20.0


class Pictures:
    """The bodies, and what plain timm in float32 says of some of them."""

    def __init__(self, folder: Folder, bodies: Sequence[bytes]) -> None:
        self.bodies = bodies[:CHECKED_PICTURES]
        self._folder, self._read = folder, Reader(folder.backbone())
        self._known: dict[tuple[str, bool], list[list[float]]] = {}

    def scores(self, task: str, lora: bool) -> list[list[float]]:
        if (task, lora) not in self._known:
            model = self._folder.merged(task) if lora else self._folder.task(task)
            self._known[task, lora] = [scores(model, self._read(body)[None])[0] for body in self.bodies]
        return self._known[task, lora]


def check(server: Running, pictures: Pictures, tasks: int) -> float:
    """The largest difference of a score from plain timm's. Ends the program where it is too large.

    It does too where two tasks are so alike that an answer of the wrong one would pass.
    """
    system, allowed = server.system, ALLOWED[server.system.dtype]
    names = [name_of(int(number)) for number in np.linspace(0, tasks - 1, CHECKED_TASKS)]
    wanted = np.array([pictures.scores(task, system.lora) for task in names])
    apart = min(float(np.abs(a - b).max()) for n, a in enumerate(wanted) for b in wanted[:n])
    if apart < 2 * allowed:
        raise SystemExit(f"two tasks differ by {apart:.1e} alone, which a check to {allowed:.1e} would not see")
    got = np.array([[scores_of(server.ask(task, body)) for body in pictures.bodies] for task in names])
    error = float(np.abs(wanted - got).max())
    if error > allowed:
        raise SystemExit(f"{system.name} computes something else: {error:.1e} from timm's scores")
    return error


@dataclass(frozen=True)
class Load:
    """What is asked of every server: tasks by Zipf, pictures evenly."""

    bodies: Sequence[bytes]
    tasks: int
    clients: int
    seconds: float
    limit_s: float

    def requests(self, server: Running, seed: int) -> Iterator[bytes]:
        random, shares = np.random.default_rng(seed), zipf(self.tasks)
        while True:
            chosen = zip(
                random.choice(self.tasks, 256, p=shares), random.integers(0, len(self.bodies), 256), strict=True
            )
            for task, body in chosen:
                yield server.system.request(name_of(int(task)), self.bodies[body])


def rounds(
    servers: Mapping[str, Running], rows: Mapping[str, Row], load: Load, count: int, say: Callable[[str], None]
) -> None:
    """Each server in turn, every other round backwards, so that no one is always behind the same neighbour."""
    for turn in range(count):
        order = list(servers) if turn % 2 == 0 else list(reversed(list(servers)))
        for name in order:
            row, server = rows[name], servers[name]
            with server.awake():
                _closed(server, row, load, turn)
                row.goodput.append(_goodput(server, row, load, turn))
            say(f"round {turn + 1}, {name}: {row.closed[-1]:.1f} a second in a closed loop with a p99 of "
                f"{row.closed_p99_s[-1] * 1e3:.0f} ms; goodput {row.goodput[-1]:.1f}")  # fmt: skip


def _closed(server: Running, row: Row, load: Load, turn: int) -> None:
    if not row.closed:  # the first warms up
        asyncio.run(closed(server.port, load.requests(server, 999), load.clients, load.seconds / 2))
    outcome = asyncio.run(closed(server.port, load.requests(server, turn), load.clients, load.seconds))
    row.closed.append(outcome.rate)
    row.closed_p99_s.append(percentile(outcome.latencies, 0.99))


def _goodput(server: Running, row: Row, load: Load, turn: int) -> float:
    """From what the closed loop reached, or in small steps from what an earlier round found."""
    known = [rate for rate in row.goodput if rate]
    guess, step = (known[-1], 1.12) if known else (0.8 * max(row.closed[-1], 1.0), 1.3)

    def passes(rate: float) -> bool:
        due = arrivals(rate, max(load.seconds, FEWEST / rate), seed=turn)
        outcome = asyncio.run(poisson(server.port, load.requests(server, turn), due, load.limit_s))
        _drain(server, load)
        return good(outcome, load.limit_s)

    return highest(passes, guess, step, most=6)


def _drain(server: Running, load: Load) -> None:
    """Wait until the server answers promptly again: some go on with what nobody waits for any more."""
    end, best = time.monotonic() + DRAIN_S, math.inf
    while time.monotonic() < end and best > load.limit_s:
        start = time.perf_counter()
        with suppress(OSError, TimeoutError):
            if server.ask(name_of(0), load.bodies[0]).status == 200:
                best = time.perf_counter() - start
