"""What a store that servers share costs one of them: its start with ten thousand tasks, and how soon it sees a change.

`python -m benchmarks.servers STORE` prints a table; STORE is empty, and the environment has its endpoint and keys, as
for `adaptserve serve --store`. Two mirrors follow it in this process, as two servers do.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType

import torch

from benchmarks.common import machine
from benchmarks.store import put, span
from service.store.follower import Follower
from service.store.manifest import TaskInfo, VersionInfo, render
from service.store.mirror import Mirror
from service.store.objects import Missing, open_objects
from service.store.truth import Truth

WRITERS = 16
POLL_S = 0.3
"""The setting's default."""


def truth(store: str) -> Truth:
    """As a server asks."""
    return Truth(open_objects(store, timeout_s=5, retries=2))


def fill(to: Truth, tasks: int) -> None:
    """Tasks with a version each, as if they had been published one after another."""
    digest, about = hashlib.sha256(b"1").hexdigest(), "2026-01-01T00:00:00+00:00"
    to.objects.put(f"blobs/{digest}", b"1")

    def one(number: int) -> None:
        name = f"task-{number}"
        versions = MappingProxyType({1: VersionInfo(name, 1, digest, 1, about)})
        to.objects.put(f"log/{number + 1:016}", name.encode())
        to.objects.put(f"tasks/{name}.json", render(TaskInfo(name, versions, 1, 2, log=(number + 1,))))

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(one, range(tasks)))


@contextmanager
def server(store: str, folder: Path, tasks: int) -> Iterator[tuple[Mirror, float]]:
    """A mirror that follows, and how long it took until it knew all."""
    began = time.perf_counter()
    with closing(Mirror(folder, truth(store), max_tasks=tasks + 1)) as mirror:
        mirror.recover()
        with closing(Follower(mirror, truth(store), every_s=POLL_S)) as follower:
            follower.start()
            yield mirror, time.perf_counter() - began


def seen_after(writer: Mirror, reader: Mirror, number: int) -> float:
    """Seconds from the end of a publish until the other one knows of it."""
    put(writer, "seen", b"version %d" % number)
    done, digest = time.perf_counter(), writer.version("seen").digest
    while not reader.holds(digest):
        time.sleep(0.001)
    return time.perf_counter() - done


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.servers", description=__doc__)
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--changes", type=int, default=100)
    arguments = parser.parse_args()
    to = truth(arguments.store)
    try:
        to.objects.head("adaptserve.json")
    except Missing:
        pass
    else:
        raise SystemExit(f"{arguments.store} is in use; name an empty place")
    load = os.getloadavg()[0]
    print(f"{machine(torch.device('cpu'))}; {arguments.tasks:,} tasks; load average {load:.1f} at the start")
    fill(to, arguments.tasks)
    with tempfile.TemporaryDirectory() as name:
        folder, tasks = Path(name), arguments.tasks
        with server(arguments.store, folder / "a", tasks) as (a, first):
            assert len(a.names) == tasks, "not all tasks are known"
        with (
            server(arguments.store, folder / "a", tasks) as (a, again),
            server(arguments.store, folder / "b", tasks) as (b, _),
        ):
            late = sorted(seen_after(a, b, number) for number in range(arguments.changes))
            took = []
            for number in range(arguments.changes):
                began = time.perf_counter()
                a.activate("seen", number % 2 + 1)
                took.append(time.perf_counter() - began)
    rows = {
        "a new server knows all tasks": first, "a server that was stopped knows all tasks again": again,
        "an activation": statistics.median(took), "a publish is seen by another server, p50": statistics.median(late),
        "p99": late[int(0.99 * len(late))],
    }  # fmt: skip
    print("| what | seconds |\n| --- | --- |")
    for what, seconds in rows.items():
        print(f"| {what} | {span(seconds)} |")


if __name__ == "__main__":
    main()
