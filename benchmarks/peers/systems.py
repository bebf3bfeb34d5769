"""The systems that are measured: how each is started, asked and given a new task, and what its processes hold.

A server is a real process with a whole tree below it; memory and processor time are summed over that tree.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.load import Answer, Clients
from benchmarks.peers.model import Folder, name_of
from benchmarks.uploads import free_port

START_S = 180.0
STOP_S = 20.0
IDLE_S = 2.0
SPARE_SLOTS = 8
"""More adapters than tasks that AdaptServe keeps at once; the bank is allocated at start, so memory follows it."""
BOUNDARY = "a-boundary-that-no-picture-has"


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A whole request."""
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


def form(task: str, picture: bytes) -> bytes:
    """LitServe takes forms and JSON, and no picture as a body."""
    part = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
    body = b"".join([
        f'{part}"task"\r\n\r\n{task}\r\n'.encode(),
        f'{part}"picture"; filename="p.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'.encode(), picture,
        f"\r\n--{BOUNDARY}--\r\n".encode(),
    ])  # fmt: skip
    return post("/predict", body, f"Content-Type: multipart/form-data; boundary={BOUNDARY}")


def ours(task: str, picture: bytes) -> bytes:
    return post(f"/v1/tasks/{task}/predict?top_k=1000", picture, "Content-Type: image/jpeg")


def fastapi(task: str, picture: bytes) -> bytes:
    return post(f"/predict/{task}", picture, "Content-Type: image/jpeg")


def multiplexed(task: str, picture: bytes) -> bytes:
    return post("/", picture, "Content-Type: image/jpeg", f"serve-multiplexed-model-id: {task}")


def scores_of(answer: Answer) -> list[float]:
    """Scores by class, of AdaptServe's answer or a peer's."""
    found: dict[str, Any] = json.loads(answer.body)
    if "scores" in found:
        return [float(score) for score in found["scores"]]
    by_class = {p["index"]: float(p["score"]) for p in found["predictions"]}
    return [by_class[number] for number in range(len(by_class))]


@dataclass(frozen=True)
class System:
    """One row of the table."""

    name: str
    says: str
    """What it is, for the table."""
    dtype: str
    request: Callable[[str, bytes], bytes]
    module: str = ""
    """A peer's module; AdaptServe has none."""
    options: tuple[str, ...] = ()
    lora: bool = False
    """Its tasks are PEFT's LoRAs, not AdaptFormers."""
    environment: Callable[[Path], dict[str, str]] = lambda _: {}
    """Given a folder that does not exist yet."""

    def command(self, folder: Folder, data: Path, port: int, tasks: int) -> list[str]:
        if self.module:
            module = f"benchmarks.peers.{self.module}"
            return [sys.executable, "-m", module, str(folder.path), str(port), str(tasks), self.dtype, *self.options]
        return [sys.executable, "-m", "service.cli", "serve", "--port", str(port), "--data-dir", str(data),
                "--backbone", folder.setup["backbone"], "--weights", str(folder.weights),
                "--dtype", self.dtype, "--slots", str(tasks + SPARE_SLOTS), *self.options]  # fmt: skip


def haproxy(place: Path) -> dict[str, str]:
    """Ray Serve's two flags; and files and ports of its own for each HAProxy, which would share them else."""
    taken = {"METRICS_PORT": free_port(), "STATS_PORT": free_port()}
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{place}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{place}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(place),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{place}/server-state",
        **{f"RAY_SERVE_HAPROXY_{name}": str(number) for name, number in taken.items()},
    }


def _both(name: str, says: str, request: Callable[[str, bytes], bytes], **more: Any) -> list[System]:
    return [
        System(f"{name}-{short}", says, dtype, request, **more)
        for short, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
    ]


QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
SYSTEMS = {
    system.name: system
    for system in (
        *_both("adaptserve", "AdaptServe", ours),
        *_both("litserve", "LitServe, a model per task", form, module="litserve_models"),
        *_both("litserve-peft", "LitServe, PEFT's mixed batch", form, module="litserve_peft", lora=True),
        *_both("ray", "Ray Serve, multiplexed, HAProxy", multiplexed, module="ray_multiplexed",
               environment=lambda place: QUIET_RAY | haproxy(place)),
        *_both("ray-plain", "Ray Serve, multiplexed, its own proxy", multiplexed, module="ray_multiplexed",
               environment=lambda _: QUIET_RAY),
        *_both("fastapi", "FastAPI, a model per task", fastapi, module="fastapi_timm"),
        *_both("fastapi-swap", "FastAPI, one model, swapped", fastapi, module="fastapi_timm", options=("--swap",)),
    )
}  # fmt: skip
DEFAULT = tuple(name for name in SYSTEMS if not name.startswith("ray-plain") and name != "fastapi-swap-bf16")


class Running:
    """A started server."""

    def __init__(
        self, system: System, folder: Folder, port: int, process: subprocess.Popen[bytes], picture: bytes
    ) -> None:
        self.system, self.port = system, port
        self._folder, self._process, self._picture = folder, process, picture
        self.start_s = 0.0

    def ask(self, task: str, picture: bytes) -> Answer:
        async def once() -> Answer:
            clients = Clients(self.port)
            try:
                return await clients.ask(self.system.request(task, picture))
            finally:
                clients.close()

        return asyncio.run(once())

    def first(self, task: str, picture: bytes, within: float = START_S) -> None:
        """Ask until there is an answer. Ends the program when there is none in time."""
        end, last = time.monotonic() + within, "nothing"
        while time.monotonic() < end and self._process.poll() is None:
            try:
                answer = self.ask(task, picture)
            except (OSError, TimeoutError) as error:
                last = repr(error)
            else:
                if answer.status == 200:
                    return
                last = f"{answer.status} {answer.body[:500]!r}"
            time.sleep(0.02)
        raise SystemExit(f"{self.system.name} does not answer: {last}")

    def publish(self, task: str) -> None:
        """Upload where there is such a thing; a peer reads the file when it is first asked for it."""
        if not self.system.module:
            url = f"http://127.0.0.1:{self.port}/v1/tasks/{task}/adapter"
            httpx.put(url, content=self._folder.adapter(task).read_bytes(), timeout=60).raise_for_status()

    def new_task(self, task: str, picture: bytes) -> float:
        """Seconds from a file at hand to its first answer."""
        start = time.perf_counter()
        self.publish(task)
        self.first(task, picture)
        return time.perf_counter() - start

    def tree(self) -> list[psutil.Process]:
        top = psutil.Process(self._process.pid)
        return [top, *top.children(recursive=True)]

    def memory(self) -> dict[str, int]:
        """Bytes of all processes: ``rss`` summed, and ``pss``, where a page that n share counts 1 / n in each."""
        found = {"rss": 0, "pss": 0, "processes": 0}
        for process in self.tree():
            try:
                info = process.memory_full_info()
            except psutil.Error:
                continue
            found["rss"] += info.rss
            found["pss"] += info.pss
            found["processes"] += 1
        return found

    def pause(self) -> None:
        """Stop a peer's processes until they are wanted again; ours stay as they are and watch one another."""
        if self.system.module:
            for process in self.tree():
                process.suspend()

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let a paused peer run within the block."""
        if self.system.module:
            for process in reversed(self.tree()):
                process.resume()
        self.first(name_of(0), self._picture)
        try:
            yield
        finally:
            self.pause()

    def idle_cores(self) -> float:
        """Share of one core that it uses while nobody asks."""
        before = self.cpu()
        time.sleep(IDLE_S)
        return (self.cpu() - before) / IDLE_S

    def cpu(self) -> float:
        """Seconds of processor time of all processes so far."""
        spent = 0.0
        for process in self.tree():
            try:
                spent += sum(process.cpu_times()[:2])
            except psutil.Error:
                continue
        return spent


@contextmanager
def running(system: System, folder: Folder, tasks: int, picture: bytes, logs: Path) -> Iterator[Running]:
    """The server with its tasks, all of them asked once; stopped at the end with all below it."""
    port = free_port()
    name = f"{system.name}-{tasks}"
    command = system.command(folder, logs / f"{name}-data", port, tasks)
    environment = os.environ | system.environment(logs / str(port))  # short: HAProxy's socket is below it
    start = time.perf_counter()
    with (logs / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    server = Running(system, folder, port, process, picture)
    try:
        try:
            if not system.module:
                _until_ready(port, process)
                for number in range(tasks):
                    server.publish(name_of(number))
            server.first(name_of(0), picture)
            server.start_s = time.perf_counter() - start
            for _ in range(2):  # each of two replicas is likely to have seen each task then
                for number in range(tasks):
                    server.first(name_of(number), picture)
        except SystemExit as error:
            raise SystemExit(f"{error}\n{(logs / f'{name}.log').read_text(errors='replace')[-3000:]}") from error
        yield server
    finally:
        below = server.tree()[1:] if process.poll() is None else []
        for child in reversed(below):
            with suppress(psutil.Error):
                child.resume()
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in below:
            with suppress(psutil.Error):
                child.kill()


def _until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise SystemExit("the server did not start")
