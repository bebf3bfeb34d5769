"""The journey of docs/SCALE.md over several servers behind one address, and whether anything acknowledged is lost.

It knows HTTP and the header that says who answered; what the servers run in is for ``benchmarks.ray_serve`` and
``benchmarks.compose``.
"""

from __future__ import annotations

import random
import shlex
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from safetensors import safe_open
from safetensors.torch import load_file

from adapters.file import write_tensors

ROOT = Path(__file__).parent.parent
SAMPLES, TASKS = "adapters/demo/samples", "adapters/demo/tasks"
REPLICA, GENERATION = "x-adaptserve-replica", "x-adaptserve-generation"
WAIT_S = 120.0
WRITERS, READERS = 2, 4
MOST_SHOWN = 300
PAUSE_S = 0.02


def say(line: str = "") -> None:
    print(line, flush=True)


def shell(command: str, within: float = 600.0) -> str:
    """What a command prints, its errors too, as a terminal shows it. Raises RuntimeError where it fails."""
    done = subprocess.run(
        shlex.split(command), cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=within,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def until(what: str, condition: Callable[[], bool], within: float = WAIT_S) -> float:
    """Seconds until it is so. Raises TimeoutError."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > within:
            raise TimeoutError(f"{what}: not within {within:g} s")
        time.sleep(0.05)
    return time.monotonic() - start


@dataclass
class Journey:
    """One run against ``url``, behind which are so many ``servers``."""

    url: str
    servers: int
    folder: Path
    acknowledged: list[tuple[str, int, str]] = field(default_factory=list)
    """Task, version, digest of each upload that was."""
    counts: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.url, timeout=30, trust_env=False) as client:
            yield client

    def names(self, asks: int = 16) -> set[str]:
        """Of the servers that answer now; each ask is on a connection of its own."""
        found = set()
        for _ in range(asks):
            try:
                with self.client() as client:
                    answer = client.get("/readyz")
            except httpx.TransportError:
                continue
            if answer.status_code == 200:
                found.add(answer.headers.get(REPLICA, ""))
        return found

    def come_up(self, without: str = "") -> float:
        """Seconds until so many answer, none of which is ``without``."""

        def all_there() -> bool:
            names = self.names()
            return len(names) >= self.servers and without not in names

        return until(f"{self.servers} servers", all_there)

    def curl(self, arguments: str) -> None:
        """One call, as it is typed, and what came."""
        say(f"    $ curl {arguments.replace(self.url, 'http://127.0.0.1:8000')}")
        answer = shell(f"curl -s --max-time 30 {arguments}")
        say("    " + (answer if len(answer) <= MOST_SHOWN else f"{answer[:MOST_SHOWN]}…"))

    def readme(self) -> None:
        """The README's calls."""
        self.curl(f"--data-binary @{SAMPLES}/digits-9.png '{self.url}/v1/tasks/digits/predict?top_k=2'")
        self.curl(f"--data-binary @{SAMPLES}/moving-digit-left.mp4 '{self.url}/v1/tasks/moving-digit/predict?top_k=2'")
        self.curl(f"-T {TASKS}/digits.safetensors {self.url}/v1/tasks/my-digits/adapter")
        say("    $ sleep 1    # another server may answer the next one, and it sends no X-AdaptServe-Generation")
        time.sleep(1)
        self.curl(f"--data-binary @{SAMPLES}/digits-4.png '{self.url}/v1/predict?task=digits&task=my-digits&top_k=1'")
        self.curl(f"--data-binary @README.md {self.url}/v1/tasks/digits/predict")

    def everywhere(self) -> None:
        """An upload, and who answers for it: at once where its generation is sent, within a second where it is not."""
        content = self.variant(0)
        with self.client() as client:
            made = client.put("/v1/tasks/everywhere/adapter", content=content).raise_for_status()
        came, generation, digest = time.monotonic(), made.headers[GENERATION], made.json()["digest"]
        say(f"    upload of everywhere: {made.status_code} from {made.headers[REPLICA]}, generation {generation}")
        for what, headers in (("with its generation", {GENERATION: generation}), ("without", {})):
            seen, wrong, latest = set[str](), Counter[str](), 0.0
            while len(seen) < self.servers:
                with self.client() as client:
                    answer = client.post(
                        "/v1/tasks/everywhere/predict", content=(ROOT / SAMPLES / "digits-9.png").read_bytes(),
                        headers=headers,
                    )  # fmt: skip
                if answer.status_code == 200 and answer.json()["digest"] == digest:
                    seen.add(answer.headers[REPLICA])
                    latest = time.monotonic() - came
                else:
                    wrong[f"{answer.status_code} of {answer.headers.get(REPLICA, 'nobody')}: {answer.text[:160]}"] += 1
                if time.monotonic() - came > WAIT_S:
                    raise TimeoutError(f"{seen} answer for an upload, of {self.servers}")
            others = f"; before that {told(wrong)}" if wrong else ""
            say(f"    {what}: {len(seen)} servers answered for it, the last {latest:.2f} s after 201{others}")

    def variant(self, number: int) -> bytes:
        """The demo's adapter of digits with other bytes: one bias a little different."""
        path = ROOT / TASKS / "digits.safetensors"
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        name = next(name for name in sorted(tensors) if name.endswith("bias"))
        tensors[name] = tensors[name] + 1e-3 * number
        made = self.folder / f"{threading.get_ident()}.safetensors"
        write_tensors(made, tensors, metadata)
        return made.read_bytes()

    def under_load(self, kill: Callable[[], str], before_s: float, after_s: float) -> None:
        """Writers and readers, and in their midst ``kill``, which says what it did."""
        stop = threading.Event()
        self.counts.clear()
        threads = [threading.Thread(target=self._write, args=(number, stop)) for number in range(WRITERS)]
        threads += [threading.Thread(target=self._read, args=(number, stop)) for number in range(READERS)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(before_s)
            quiet = dict(self.counts)
            say(f"    under load: {told(quiet)}")
            say(f"    {kill()}")
            time.sleep(after_s)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        say(f"    from then on: {told({name: count - quiet.get(name, 0) for name, count in self.counts.items()})}")

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _write(self, writer: int, stop: threading.Event) -> None:
        number, content = writer, self.variant(writer + 1)
        while not stop.is_set():
            task = f"load-{writer}-{number % 5}"
            try:
                with self.client() as client:
                    answer = client.put(f"/v1/tasks/{task}/adapter", content=content)
            except httpx.TransportError as error:
                self._count(f"uploads cut off ({type(error).__name__}), sent again")
                time.sleep(PAUSE_S)
                continue
            if not answer.is_success:
                self._count(f"uploads {answer.status_code}, sent again")
                time.sleep(PAUSE_S)
                continue
            made: dict[str, Any] = answer.json()
            with self._lock:
                self.acknowledged.append((task, made["version"], made["digest"]))
            self._count("uploads acknowledged")
            number += WRITERS
            content = self.variant(number + 1)

    def _read(self, reader: int, stop: threading.Event) -> None:
        body, dice = (ROOT / SAMPLES / "digits-9.png").read_bytes(), random.Random(reader)
        while not stop.is_set():
            task = dice.choice(("digits", "everywhere"))
            try:
                with self.client() as client:
                    answer = client.post(f"/v1/tasks/{task}/predict", content=body)
            except httpx.TransportError as error:
                self._count(f"predictions cut off ({type(error).__name__})")
            else:
                self._count("predictions" if answer.status_code == 200 else f"predictions {answer.status_code}")
            time.sleep(PAUSE_S)

    def hold(self) -> None:
        """Every acknowledged upload against what every server has. Raises AssertionError where one is lost."""
        lost, wanted = [], dict[str, dict[int, str]]()
        for task, version, digest in self.acknowledged:
            wanted.setdefault(task, {})[version] = digest
        for task, versions in wanted.items():
            seen = set[str]()
            for _ in range(64 * self.servers):
                if len(seen) == self.servers:
                    break
                with self.client() as client:
                    answer = client.get(f"/v1/tasks/{task}/versions", params={"limit": 1000}).raise_for_status()
                    name = answer.headers[REPLICA]
                    if name in seen:
                        continue
                    seen.add(name)
                found = {one["version"]: one["digest"] for one in answer.json()["versions"]}
                lost += [(name, task, v) for v, digest in versions.items() if found.get(v) != digest]
        body = (ROOT / SAMPLES / "digits-9.png").read_bytes()
        for task, version, digest in self.acknowledged:
            with self.client() as client:
                answer = client.post(f"/v1/tasks/{task}/predict", params={"version": version}, content=body)
            if answer.status_code != 200 or answer.json()["digest"] != digest:
                lost.append((answer.headers.get(REPLICA, ""), task, version))
        say(
            f"    {len(self.acknowledged)} acknowledged uploads, each listed by {self.servers} servers and asked by "
            f"version: {len(lost)} lost"
        )
        assert not lost, lost


def told(counts: Mapping[str, int]) -> str:
    """In a line."""
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()) if count)
