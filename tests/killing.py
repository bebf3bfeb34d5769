"""A mixed load on connections of which each knows its front end, so that no connection may break but by that one's end.

What each answer may be is checked here; who is killed, and when, is for the tests to say.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

from tests.houses import CLIP, WAIT, Kit, Process, photograph
from tests.media_samples import clip

LOST = "urn:adaptserve:problem:engine-lost"
UPLOADERS, FILES = 2, 40


@dataclass
class Rig:
    """What all clients share: the server, what was killed in it, what was acknowledged, what was wrong."""

    kit: Kit
    server: Process
    killed: list[tuple[int, float]] = field(default_factory=list)
    """Front ends by process id, and when; put down before the kill."""
    acknowledged: dict[tuple[str, int], str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def owner(self, port: int) -> int:
        """The front end that has the connection from that port; 0 where none has it, or not any more."""
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            for process in self.server.family("service.web.process"):
                try:
                    if port in {c.raddr.port for c in process.net_connections("tcp") if c.raddr}:
                        return process.pid
                except psutil.Error:  # it is just ending
                    continue
        return 0

    def saw(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def complain(self, what: str) -> None:
        with self.lock:
            self.wrong.append(what)


class Client:
    """One connection at a time. ``ask`` returns the status and the document, or None where its front end was killed."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.rig, self.name = rig, name
        host, port = rig.server.url.removeprefix("http://").split(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=WAIT)
        self.owner, self._since = 0, 0.0

    def ask(
        self, method: str, path: str, body: Any = None, *, but: tuple[int, ...] = (), length: int | None = None
    ) -> tuple[int, Any] | None:
        """Statuses below 300 are as they should be, an engine that was lost is, and those of ``but``."""
        headers = {"X-Deadline-Ms": "20000"} | ({} if length is None else {"Content-Length": str(length)})
        try:
            if self._connection.sock is None:
                self._since = time.monotonic()
                self._connection.connect()
                self.owner = self.rig.owner(self._connection.sock.getsockname()[1])
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.new()
            self._broke(f"{self.name}: {method} {path}: {error!r}")
            return None
        document = json.loads(content) if content.startswith((b"{", b"[")) else content.decode()
        self.rig.saw(f"{self.name} {answer.status}")
        lost = answer.status == 503 and document.get("type") == LOST
        if not (answer.status < 300 or lost or answer.status in but):
            self.rig.complain(f"{self.name}: {method} {path}: {answer.status} {document}")
        if lost:
            time.sleep(0.05)  # a client that asks again at once takes the processor from the engine that starts
        return answer.status, document

    def new(self) -> None:
        """Whatever comes next goes over a new connection, to whichever front end takes it."""
        self._connection.close()

    def _broke(self, how: str) -> None:
        self.rig.saw(f"{self.name} broke")
        found = [pid for pid, at in self.rig.killed if at > self._since - 1 and pid == (self.owner or pid)]
        if not found:
            self.rig.complain(f"{how}, and its front end ({self.owner or 'unknown'}) was not killed: {self.rig.killed}")


class Load:
    """The clients; ``with`` runs them, each on a thread of its own, with a pause after each piece of work."""

    def __init__(self, rig: Rig, pause_s: float) -> None:
        self.rig, self._pause_s, self._stop = rig, pause_s, threading.Event()
        self._files = [rig.kit.file(seed) for seed in range(FILES)]
        self._clip_file = rig.kit.file(1, CLIP)[0]
        self._picture, self._clip = photograph(size=(300, 200)), clip()
        uploads = [lambda c, d, n=n: self._upload(c, d, f"up-{n}") for n in range(UPLOADERS)]
        self._works: list[tuple[str, Callable[[Client, random.Random], None]]] = [
            ("predict", self._predict), ("predict", self._predict), ("predict", self._predict), ("clip", self._clips),
            ("delete", self._come_and_go), ("list", self._list), ("slow", self._slow), ("metrics", self._metrics),
            *(("upload", work) for work in uploads),
        ]  # fmt: skip
        self._counters: dict[str, float] = {}
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Load:
        client = Client(self.rig, "first")
        for number in range(4):
            client.ask("PUT", f"/v1/tasks/kept-{number}/adapter", self._files[number][0])
        client.ask("PUT", "/v1/tasks/moving/adapter", self._clip_file)
        client.new()
        for seed, (name, work) in enumerate(self._works):
            self._threads.append(threading.Thread(target=self._run, args=(name, work, seed)))
            self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, name: str, work: Callable[[Client, random.Random], None], seed: int) -> None:
        client, dice = Client(self.rig, name), random.Random(seed)
        try:
            while not self._stop.wait(self._pause_s):
                work(client, dice)
        except Exception as error:  # a client that ended quietly would prove nothing
            self.rig.complain(f"{name} ended: {error!r}")
        finally:
            client.new()

    def _predict(self, client: Client, dice: random.Random) -> None:
        client.ask("POST", f"/v1/tasks/kept-{dice.randrange(4)}/predict", self._picture)

    def _clips(self, client: Client, dice: random.Random) -> None:
        client.ask("POST", "/v1/tasks/moving/predict", self._clip)

    def _slow(self, client: Client, dice: random.Random) -> None:
        def pieces() -> Any:
            step = len(self._picture) // 20 + 1
            for start in range(0, len(self._picture), step):
                yield self._picture[start : start + step]
                time.sleep(0.02)

        client.ask("POST", f"/v1/tasks/kept-{dice.randrange(4)}/predict", pieces(), length=len(self._picture))

    def _list(self, client: Client, dice: random.Random) -> None:
        time.sleep(0.01)
        found = client.ask("GET", "/v1/tasks")
        if found and found[0] == 200:
            names = {task["task"] for task in found[1]["tasks"]}
            if not names >= {"kept-0", "kept-1", "kept-2", "kept-3", "moving"}:
                self.rig.complain(f"a list lacks tasks: {sorted(names)}")
        client.ask("GET", f"/v1/tasks/kept-{dice.randrange(4)}/versions")

    def _upload(self, client: Client, dice: random.Random, task: str) -> None:
        """What is acknowledged is there for whoever comes next."""
        content, adapter = dice.choice(self._files)
        found = client.ask("PUT", f"/v1/tasks/{task}/adapter", content)
        if not found or found[0] not in (200, 201):
            return
        version = found[1]["version"]
        self.rig.acknowledged[task, version] = adapter.digest
        client.new()
        for path, body in ((f"/v1/tasks/{task}", None), (f"/v1/tasks/{task}/predict", self._picture)):
            seen = client.ask("GET" if body is None else "POST", path, body)
            if seen and seen[0] == 200 and (seen[1]["version"], seen[1]["digest"]) != (version, adapter.digest):
                self.rig.complain(f"{task} {version} was acknowledged, and {path} says {seen[1]['version']}")

    def _come_and_go(self, client: Client, dice: random.Random) -> None:
        """What is deleted is gone for whoever comes next."""
        task = f"brief-{dice.randrange(3)}"
        found = client.ask("PUT", f"/v1/tasks/{task}/adapter", dice.choice(self._files)[0])
        if not found or found[0] not in (200, 201):
            return
        client.ask("POST", f"/v1/tasks/{task}/predict", self._picture)
        gone = client.ask("DELETE", f"/v1/tasks/{task}")
        if gone and gone[0] == 204:
            client.new()
            for method, path, body in (("GET", "", None), ("POST", "/predict", self._picture)):
                seen = client.ask(method, f"/v1/tasks/{task}{path}", body, but=(404,))
                if seen and seen[0] not in (404, 503):
                    self.rig.complain(f"{task} was deleted, and {method} says {seen}")

    def _metrics(self, client: Client, dice: random.Random) -> None:
        """What front ends count never goes down."""
        time.sleep(0.1)
        found = client.ask("GET", "/metrics")
        if not found or found[0] != 200:
            return
        counters = samples(found[1], r"adaptserve_(requests_total|uploads_total|\w+_count|\w+_bucket)")
        for name, value in self._counters.items():
            if counters.get(name, 0.0) < value:
                self.rig.complain(f"{name} was {value} and is {counters.get(name)}")
        self._counters = counters


def samples(metrics: str, pattern: str) -> dict[str, float]:
    """The values of what begins so, by name and labels."""
    lines = re.finditer(rf"^({pattern}(?:{{[^\n]*}})?) (\S+)$", metrics, re.MULTILINE)
    return {line[1]: float(line[line.lastindex or 0]) for line in lines}


def kill(rig: Rig, victim: psutil.Process, *, front_end: bool) -> float:
    """With a note of it first; when it was."""
    now = time.monotonic()
    if front_end:
        rig.killed.append((victim.pid, now))
    victim.kill()
    return now


def answers(url: str) -> bool:
    """Whether a new connection is answered within half a second."""
    host, port = url.removeprefix("http://").split(":")
    try:
        with socket.create_connection((host, int(port)), timeout=0.5) as connection:
            connection.sendall(f"GET /livez HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(16).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
