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

ASKED = 1_000_000
CHANGES = 500
STARTS = 3


def put(repository: Repository, task: str, content: bytes) -> None:
    """Publish a small file."""
    staging = repository.open_staging(1000)
    staging.write(content)
    repository.publish(task, staging)


def median(count: int, before: Callable[[int], object], work: Callable[[], object]) -> float:
    """Seconds of ``work``, each time after ``before``."""
    took = []
    for number in range(count):
        before(number)
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


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
    print(f"{machine(torch.device('cpu'))}; {arguments.tasks} tasks; medians")
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
            asked = min(timeit.repeat(lambda: reader.behind, number=ASKED, repeat=5)) / ASKED
            empty = min(timeit.repeat(lambda: None, number=ASKED, repeat=5)) / ASKED
            one = median(CHANGES, lambda n: writer.activate(f"task-{n}", 1), reader.follow)
            far = median(STARTS, lambda _: change_often(journal), reader.follow)
            with patch.object(os, "fsync"):
                for number in range(999):
                    put(writer, "task-0", b"version %d" % number)
            many = median(CHANGES, lambda _: writer.activate("task-0", 2), reader.follow)
    rows = [
        ("`behind`, for every request", f"{1e9 * (asked - empty):.0f} ns"),
        ("`follow` after one change", f"{1e6 * one:.0f} us"),
        ("the same, of a task with 1,000 versions", f"{1e6 * many:.0f} us"),
        (f"the same after more than {RING} changes: all tasks are read again", f"{1e3 * far:.0f} ms"),
        *((f"`{name}`", f"{1e3 * took:.0f} ms") for name, took in starts),
    ]
    print("| what | takes |\n| --- | --- |")
    for what, takes in rows:
        print(f"| {what} | {takes} |")


if __name__ == "__main__":
    main()
