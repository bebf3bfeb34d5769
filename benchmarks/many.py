"""Ten thousand tasks: what they cost at the start and in memory, and how long each kind of call takes.

`python -m benchmarks.many` prints the table of docs/OPERATIONS.md. The tasks have the demo's `digits` adapter, each
with other bytes, written into a data folder as uploads leave them. The server is a real process, whose event loop is
watched from within: `busy` is the longest that it computed without a break, `late` the longest that a task had to wait
for it, which includes what other threads and other processes took from it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
import numpy as np
import torch

from adapters.header import read_header
from adapters.limits import FileLimits
from benchmarks.common import machine
from benchmarks.uploads import free_port
from service.store.demo import DEMO, samples
from service.store.descriptions import Description, Summary
from service.store.manifest import About, TaskInfo, VersionInfo, render

VERSIONS, LARGE = 301, 3
CREATED = "2026-11-25T17:00:00+00:00"
STARTS, QUIET_S = 3, 5
WAIT_S = 120.0
Row = tuple[str, str]


class Files:
    """Adapter files of the demo's digits task: the n-th differs from all others in its last weights."""

    def __init__(self) -> None:
        path = DEMO / "tasks" / "digits.safetensors"
        self._raw = bytearray(path.read_bytes())
        self._about = Summary.of(Description.of(read_header(path, FileLimits()), fits=True)).text()

    def content(self, number: int) -> bytes:
        self._raw[-4:] = number.to_bytes(3, "little") + b"\x3c"
        return bytes(self._raw)

    def task(self, folder: Path, name: str, numbers: Sequence[int]) -> None:
        """A task as its uploads leave it, one version for each of ``numbers``; the first is active."""
        (folder / "tasks" / name / "versions").mkdir(parents=True)
        versions = {}
        for version, number in enumerate(numbers, 1):
            content = self.content(number)
            digest = hashlib.sha256(content).hexdigest()
            versions[version] = VersionInfo(name, version, digest, len(content), CREATED)
            (folder / "tasks" / name / "versions" / f"{version}.safetensors").write_bytes(content)
        info = TaskInfo(name, versions, 1, len(versions) + 1, About(versions[1].digest, self._about))
        (folder / "tasks" / name / "manifest.json").write_bytes(render(info))


class Server:
    """A server process: the seconds that it took to start, and of these to read its data folder."""

    def __init__(self, data: Path, scratch: Path) -> None:
        port = free_port()
        self.url, self._report = f"http://127.0.0.1:{port}", scratch / "report"
        command = [sys.executable, "-m", "benchmarks.many", "--inside", str(self._report), "serve", "--port", str(port),
                   "--data-dir", str(data)]  # fmt: skip
        start = time.perf_counter()
        with (scratch / "log").open("w") as log:
            self.process = Popen(command, stdout=log, stderr=log)
        self.client = httpx.Client(base_url=self.url, timeout=WAIT_S)
        while not self._ready():
            if self.process.poll() is not None or time.perf_counter() - start > WAIT_S:
                raise SystemExit((scratch / "log").read_text())
            time.sleep(0.01)
        self.start_s = time.perf_counter() - start
        self.recover_s, self.recover_busy_s = json.loads(self._report.read_text())

    @property
    def resident_mib(self) -> float:
        """What it holds of memory now."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024

    def held(self) -> str:
        """How long its loop was held, at most, since this was last asked."""
        self._report.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        end = time.monotonic() + WAIT_S
        while not self._report.exists() and time.monotonic() < end:
            time.sleep(0.01)
        late, busy = json.loads(self._report.read_text())
        return f"loop: {busy:.1f} ms busy, {late:.1f} ms late"

    def stop(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(WAIT_S)

    def _ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


@contextmanager
def served(data: Path, scratch: Path) -> Iterator[Server]:
    server = Server(data, scratch)
    try:
        yield server
    finally:
        server.stop()


def inside(report: Path, arguments: list[str]) -> None:
    """`adaptserve` with ``arguments``, watched.

    It reports first how long reading the folder took by the clock and of the processor, in seconds; then at each
    SIGUSR1 how late, at most, the loop ran a task that wants to run every millisecond, and how long, at most, its
    thread computed between two such runs, both in ms.
    """
    from service.cli import main as adaptserve
    from service.store.repository import Repository
    from service.web.server import Server as Inner

    serve, recover, most = Inner.serve, Repository.recover, [0.0, 0.0]

    def write(value: object) -> None:
        part = report.with_suffix(".part")
        part.write_text(json.dumps(value))
        part.replace(report)

    def recovered(self: Repository) -> list[str]:
        start, used = time.perf_counter(), time.process_time()
        said = recover(self)
        write([time.perf_counter() - start, time.process_time() - used])
        return said

    def tell() -> None:
        write([1e3 * value for value in most])
        most[:] = 0.0, 0.0

    async def watch() -> None:
        while True:
            start, used = time.perf_counter(), time.thread_time()
            await asyncio.sleep(0.001)
            most[0] = max(most[0], time.perf_counter() - start - 0.001)
            most[1] = max(most[1], time.thread_time() - used)

    async def watched(self: Inner, sockets: Any = None) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell)
        watching = asyncio.create_task(watch())
        await serve(self, sockets)
        watching.cancel()

    Inner.serve = watched  # type: ignore[assignment, method-assign]
    Repository.recover = recovered  # type: ignore[method-assign]
    sys.argv = ["adaptserve", *arguments]
    adaptserve()


def timed(calls: Iterable[Callable[[], httpx.Response]]) -> list[float]:
    """Milliseconds of each call, one after another."""
    taken = []
    for call in calls:
        start = time.perf_counter()
        call().raise_for_status()
        taken.append(1e3 * (time.perf_counter() - start))
    return taken


def told(taken: Sequence[float]) -> str:
    if len(taken) < 20:  # too few for a percentile
        return f"{statistics.median(taken):.1f} ms (median of {len(taken)}), {max(taken):.1f} ms at most"
    p50, p99 = np.percentile(taken, [50, 99])
    return f"{p50:.1f} ms at p50, {p99:.1f} ms at p99"


def measure_starts(empty: Path, data: Path, scratch: Path) -> Iterator[Row]:
    """Starts with the demo's four tasks and with all, in turns."""
    few: list[tuple[float, ...]] = []
    many: list[tuple[float, ...]] = []
    for _ in range(STARTS):
        for folder, found in ((empty, few), (data, many)):
            with served(folder, scratch) as server:
                found.append((server.recover_s, server.recover_busy_s, server.start_s, server.resident_mib))
    (_, _, start, memory), (recover, busy, whole, all_memory) = (np.median(found, axis=0) for found in (few, many))
    longest = max(taken[0] for taken in many)
    yield "start: reading the folder", f"{recover:.2f} s, {longest:.2f} s at most; {busy:.2f} s of the processor"
    yield "start: all of it, ready to answer", f"{whole:.1f} s, with four tasks {start:.1f} s (medians of {STARTS})"
    yield "memory", f"{all_memory:.0f} MiB, {all_memory - memory:.0f} MiB more than with four tasks"


def measure_calls(server: Server, files: Files, tasks: int, calls: int) -> Iterator[Row]:
    """Each kind of call by itself, and by how much it made the loop late."""
    client, picture = server.client, next(s for s in samples() if s.name.startswith("digits-")).read_bytes()
    some = [f"task-{number:05d}" for number in np.random.default_rng(0).permutation(tasks)[: 2 * calls]]

    def row(what: str, requests: Iterable[Callable[[], httpx.Response]]) -> Row:
        server.held()
        taken = timed(requests)
        return what, f"{told(taken)}; {server.held()}"

    def get(path: str, **params: Any) -> Callable[[], httpx.Response]:
        return lambda: client.get(path, params=params)

    def ask(name: str) -> Callable[[], httpx.Response]:
        return lambda: client.post(f"/v1/tasks/{name}/predict", content=picture)

    def put(name: str, number: int) -> Callable[[], httpx.Response]:
        content = files.content(number)
        return lambda: client.put(f"/v1/tasks/{name}/adapter", content=content)

    def activate(number: int) -> Callable[[], httpx.Response]:
        return lambda: client.post(f"/v1/tasks/large-0/versions/{number}/activate")

    def delete(name: str) -> Callable[[], httpx.Response]:
        return lambda: client.delete(f"/v1/tasks/{name}")

    def all_pages() -> int:
        after, count = "", 0
        while after is not None:
            answer = client.get("/v1/tasks", params={"limit": 1000, "after": after}).raise_for_status().json()
            after, count = answer["next"], count + 1
        return count

    server.held()
    time.sleep(QUIET_S)
    yield f"nothing asked for {QUIET_S} s: what this machine is good for", server.held()
    first = timed([get("/v1/tasks")])[0]
    size = len(client.get("/v1/tasks").content)
    yield "list: the first page of 100 after the start", f"{first:.1f} ms, {size / 1024:.0f} KiB"
    server.held()
    start = time.perf_counter()
    pages = all_pages()
    yield f"list: all, in {pages} pages of up to 1,000", f"{time.perf_counter() - start:.2f} s; {server.held()}"
    yield row("list: any page of 100", [get("/v1/tasks", after=name) for name in some])
    yield row("list: by prefix, up to 10 tasks", [get("/v1/tasks", prefix=name[:-1]) for name in some])
    yield row("one task", [get(f"/v1/tasks/{name}") for name in some])
    yield row("one page of 100 versions", [get("/v1/tasks/large-0/versions", after=n) for n in range(calls)])
    yield row("`/metrics`", [get("/metrics")] * calls)
    yield row("predict, cold: read, packed, loaded, answered", [ask(name) for name in some[calls:]])
    yield row("predict, warm", [ask(some[-1])] * calls)
    yield row("publish a new task", [put(f"new-{n}", 1_000_000 + n) for n in range(calls)])
    yield row("activate one of 301 versions", [activate(number) for number in range(2, 22)])
    yield row("delete a task of one version", [delete(f"new-{n}") for n in range(calls)])
    yield row(f"delete a task of {VERSIONS} versions", [delete(f"large-{n}") for n in range(LARGE)])
    yield "memory after all this", f"{server.resident_mib:.0f} MiB"


def main() -> None:
    if sys.argv[1:2] == ["--inside"]:
        inside(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=9_600, help="tasks in the folder before the run (default 9,600)")
    parser.add_argument("--calls", type=int, default=200, help="calls of each kind (default 200)")
    parser.add_argument("--folder", type=Path, help="where the data is written (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="also write the table as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        scratch, files, before = Path(temporary), Files(), os.getloadavg()[0]
        data = scratch / "data"
        for number in range(args.tasks):
            files.task(data, f"task-{number:05d}", [number])
        for number in range(LARGE):
            files.task(data, f"large-{number}", [2_000_000 + VERSIONS * number + n for n in range(VERSIONS)])
        rows = list(measure_starts(scratch / "empty", data, scratch))
        with served(data, scratch) as server:
            rows.extend(measure_calls(server, files, args.tasks, args.calls))
    loads = " to ".join(f"{load:.1f}" for load in (before, os.getloadavg()[0]))
    print(f"{args.tasks + LARGE:,} tasks; {machine(torch.device('cpu'))}; load average {loads}")
    print("\n| what | measured |\n| --- | --- |")
    for what, found in rows:
        print(f"| {what} | {found} |")
    if args.out:
        args.out.write_text(json.dumps(dict(rows), indent=2) + "\n")


if __name__ == "__main__":
    main()
