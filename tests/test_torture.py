"""A server under kill -9, all its processes at once, and under a long mixed load: nothing is lost, nothing grows.

`make torture` runs them and prints their numbers. Among the quick tests, one kill is in test_supervisor.py and a short
mixed load, with kills, in test_killing.py.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.houses import CLIP, Kit, Process, pages, photograph
from tests.media_samples import clip

pytestmark = pytest.mark.torture

TASKS = 20
UPLOADS, UPLOADERS = 1000, 2
ROUNDS, ROUND_S = 10, 30.0
LIFE = 40
"""Uploads that one life of the server may acknowledge, at most; each life draws its own number."""


def arguments(kit: Kit, data: Path) -> list[str]:
    given = ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--data-dir", str(data)]
    return [*given, "--threads", "1", "--front-ends", "2"]


class Uploader:
    """Sends new files until the server dies; knows what was acknowledged and what was on its way then."""

    def __init__(self, kit: Kit, url: str, numbers: list[int]) -> None:
        self.acknowledged: dict[tuple[str, int], str] = {}
        self.in_doubt: set[tuple[str, str]] = set()
        self._kit, self._url, self._numbers = kit, url, numbers

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while True:
                number = self._numbers.pop()
                content, adapter = self._kit.file(number)
                task = f"task-{number % TASKS}"
                try:
                    answer = client.put(f"/v1/tasks/{task}/adapter", content=content)
                except httpx.TransportError:
                    self.in_doubt.add((task, adapter.digest))
                    return
                assert answer.status_code == 201, answer.text
                self.acknowledged[task, answer.json()["version"]] = adapter.digest


def one_life(kit: Kit, data: Path, log: Path, numbers: list[int], dice: random.Random) -> list[Uploader]:
    """Start, upload from several clients, kill at a random moment after a random number of uploads."""
    with Process(arguments(kit, data), log) as process:
        uploaders = [Uploader(kit, process.url, numbers) for _ in range(UPLOADERS)]
        with ThreadPoolExecutor(UPLOADERS) as pool:
            running = [pool.submit(uploader.run) for uploader in uploaders]
            wanted, end = dice.randrange(LIFE), time.monotonic() + 60
            while sum(len(u.acknowledged) for u in uploaders) < wanted and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(dice.random() * 0.05)  # anywhere within an upload
            process.stop(signal.SIGKILL)
            for done in running:
                done.result(60)
    return uploaders


def listed(client: httpx.Client) -> dict[tuple[str, int], str]:
    """Every version that the server says it has, with its digest."""
    found = {}
    for task in pages(client, "/v1/tasks", "tasks"):
        for version in pages(client, f"/v1/tasks/{task['task']}/versions", "versions"):
            found[task["task"], version["version"]] = version["digest"]
    return found


@pytest.mark.timeout(3600)
def test_kill_9_loses_no_acknowledged_upload(tmp_path: Path) -> None:
    kit, data, dice = Kit(tmp_path), tmp_path / "data", random.Random(1)
    numbers = list(range(100 * UPLOADS, 0, -1))
    acknowledged: dict[tuple[str, int], str] = {}
    in_doubt: set[tuple[str, str]] = set()
    kills = 0
    while len(acknowledged) < UPLOADS:
        for uploader in one_life(kit, data, tmp_path / "log", numbers, dice):
            acknowledged |= uploader.acknowledged
            in_doubt |= uploader.in_doubt
        kills += 1
    with Process(arguments(kit, data), tmp_path / "log") as process:
        found = listed(process.client)
        extra = {(task, digest) for (task, number), digest in found.items() if (task, number) not in acknowledged}
        print(json.dumps({"acknowledged": len(acknowledged), "kills": kills, "in_doubt": len(in_doubt),
                          "in_doubt_that_were_published": len(extra)}))  # fmt: skip
        assert {key: found.get(key) for key in acknowledged} == acknowledged
        assert extra <= in_doubt  # published, and killed before the answer was out: that cannot be told apart
        body = photograph()
        for (task, number), digest in found.items():
            whole = process.client.get(f"/v1/tasks/{task}/versions/{number}/adapter").content
            assert hashlib.sha256(whole).hexdigest() == digest
            answer = process.client.post(f"/v1/tasks/{task}/predict", content=body, params={"version": number})
            assert (answer.status_code, answer.json()["digest"]) == (200, digest)
        assert list((data / "staging").iterdir()) == []
        assert len(list((data / "tasks").rglob("*.safetensors"))) == len(found)
        assert process.stop(signal.SIGTERM) == 0


class Soak:
    """Clients that upload, delete and predict, pictures and clips, and count what they are answered."""

    def __init__(self, kit: Kit, url: str) -> None:
        self._url, self._stop = url, threading.Event()
        self._files = [kit.file(seed)[0] for seed in range(30)]
        self._clips = [kit.file(seed, CLIP)[0] for seed in range(3)]
        self._picture, self._clip = photograph(size=(300, 200)), clip()
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def run(self, seconds: float) -> None:
        works = [self._predict, self._predict, self._clips_too, self._replace, self._come_and_go]
        with ThreadPoolExecutor(len(works)) as pool:
            running = [pool.submit(self._loop, work, seed) for seed, work in enumerate(works)]
            self._stop.wait(seconds)
            self._stop.set()
            for done in running:
                done.result(60)
        self._stop.clear()

    def _loop(self, work: object, seed: int) -> None:
        dice = random.Random(seed)
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._stop.is_set():
                answer: httpx.Response = work(client, dice)  # type: ignore[operator]
                with self._lock:
                    self.counts[f"{work.__name__.strip('_')} {answer.status_code}"] += 1  # type: ignore[attr-defined]

    def _predict(self, client: httpx.Client, dice: random.Random) -> httpx.Response:
        return client.post(f"/v1/tasks/kept-{dice.randrange(8)}/predict", content=self._picture)

    def _clips_too(self, client: httpx.Client, dice: random.Random) -> httpx.Response:
        client.put("/v1/tasks/moving/adapter", content=dice.choice(self._clips)).raise_for_status()
        return client.post("/v1/tasks/moving/predict", content=self._clip)

    def _replace(self, client: httpx.Client, dice: random.Random) -> httpx.Response:
        return client.put(f"/v1/tasks/kept-{dice.randrange(8)}/adapter", content=dice.choice(self._files))

    def _come_and_go(self, client: httpx.Client, dice: random.Random) -> httpx.Response:
        task = f"brief-{dice.randrange(8)}"
        client.put(f"/v1/tasks/{task}/adapter", content=dice.choice(self._files)).raise_for_status()
        client.post(f"/v1/tasks/{task}/predict", content=self._picture).raise_for_status()
        return client.delete(f"/v1/tasks/{task}")


@pytest.mark.timeout(1200)
def test_a_long_mixed_load_ends_with_flat_memory(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    resident, files = [], []
    with Process(arguments(kit, tmp_path / "data"), tmp_path / "log") as process:
        for number in range(8):
            process.client.put(f"/v1/tasks/kept-{number}/adapter", content=kit.file(number)[0]).raise_for_status()
        soak, family = Soak(kit, process.url), process.family()
        for _ in range(ROUNDS):
            soak.run(ROUND_S)
            resident.append(sum(one.memory_full_info().uss for one in family))
            files.append(sum(one.num_fds() for one in family))
        print(json.dumps({"seconds": ROUND_S * ROUNDS, "memory_mib": [r >> 20 for r in resident], "open_files": files,
                          "threads": [one.num_threads() for one in family],
                          "answers": dict(sorted(soak.counts.items()))}))  # fmt: skip
        assert process.family() == family  # none had to be replaced
        assert {name.split()[1] for name in soak.counts} <= {"200", "201", "204"}
        assert len(soak.counts) >= 4
        assert resident[-1] < 1.1 * resident[ROUNDS // 4]
        assert files[-1] < files[0] + 20
        assert process.stop(signal.SIGTERM) == 0
