"""What following the others costs a process: per request, per change, at its start with ten thousand tasks.

`python -m benchmarks.store` prints a table. Two repositories share a folder and a journal, as two front ends do;
nothing else is running.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.common import machine
from service.store.journal import RING, Journal
from service.store.repository import Repository

ASKED = 200_000
CHANGES = 500
STARTS = 3


def put(repository: Repository, task: str, content: bytes) -> None:
    """Publish a small file."""
    staging = repository.open_staging(1000)
    staging.write(content)
    repository.publish(task, staging)


def median(count: int, before: Callable[[int], object], work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of ``work``, each time after ``before``: by the clock, and of the processor."""
    took, used = [], []
    for number in range(count):
        before(number)
        start, began = time.perf_counter(), time.thread_time()
        work()
        took.append(time.perf_counter() - start)
        used.append(time.thread_time() - began)
    return statistics.median(took), statistics.median(used)


def least(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one of many calls, without the loop's own: by the clock, and of the processor."""
    best = []
    for timer in (time.perf_counter, time.thread_time):
        took, empty = (min(timeit.repeat(w, number=ASKED, repeat=9, timer=timer)) for w in (work, lambda: None))
        best.append((took - empty) / ASKED)
    return best[0], best[1]


def span(seconds: float) -> str:
    """In a unit that fits."""
    units = (("s", 1.0), ("ms", 1e3), ("us", 1e6))
    unit, scale = next(((u, s) for u, s in units if seconds * s >= 1), ("ns", 1e9))
    return f"{seconds * scale:.3g} {unit}"


def change_often(journal: Journal) -> None:
    """So many changes that nobody can tell which tasks they were of."""
    for _ in range(RING + 1):
        journal.append("task-0")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the tasks are written for the time; else a temporary one")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{machine(torch.device('cpu'))}; {arguments.tasks:,} tasks; load average {load:.1f} at the start")
    journal = Journal(bytearray(Journal.SIZE))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        root = Path(folder)
        with (
            closing(Repository(root, journal, max_tasks=arguments.tasks, owner="a")) as writer,
            closing(Repository(root, journal, owner="b")) as reader,
        ):
            with patch.object(os, "fsync"):  # this is to have them, not what is measured
                writer.recover()
                for number in range(arguments.tasks):
                    put(writer, f"task-{number}", b"%d" % number)
            starts = [(name, median(STARTS, lambda _: None, getattr(reader, name))) for name in ("load", "recover")]
            asked = least(lambda: reader.behind)
            one = median(CHANGES, lambda n: writer.activate(f"task-{n}", 1), reader.follow)
            far = median(STARTS, lambda _: change_often(journal), reader.follow)
            with patch.object(os, "fsync"):
                for number in range(999):
                    put(writer, "task-0", b"version %d" % number)
            many = median(CHANGES, lambda _: writer.activate("task-0", 2), reader.follow)
    rows = [
        ("`behind`, for every request", asked),
        ("`follow` after one change", one),
        ("the same, of a task with 1,000 versions", many),
        (f"the same after more than {RING:,} changes: all tasks are read again", far),
        *((f"`{name}`", took) for name, took in starts),
    ]
    print("| what | by the clock | of the processor |\n| --- | --- | --- |")
    for what, (clock, used) in rows:
        print(f"| {what} | {span(clock)} | {span(used)} |")


if __name__ == "__main__":
    main()
