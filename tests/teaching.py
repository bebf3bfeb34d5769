"""What tests of trainings share: pictures of shapes, and a trainer on a thread of the test's own process."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
from PIL import Image

from service.engine.pixels import PixelMemory
from service.teach.asking import IN_FLIGHT, Asking
from service.teach.auto import Teaching
from service.teach.records import TrainingJob
from tests.houses import WAIT, House, problem, until

SHAPES = ("bar", "box", "disc")


def shape(kind: str, seed: int, size: int = 48) -> bytes:
    """A light shape at some place on dark noise, as PNG."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 60, (size, size, 3), dtype=np.uint8)
    y, x = np.mgrid[:size, :size]
    left, top = random.integers(size // 3, 2 * size // 3, 2)
    radius = int(random.integers(size // 8, size // 5))
    inside = {
        "disc": (x - left) ** 2 + (y - top) ** 2 < radius**2, "bar": abs(x - left) < radius // 3 + 1,
        "box": (abs(x - left) < radius) & (abs(y - top) < radius),
    }[kind]  # fmt: skip
    pixels[inside] = random.integers(160, 255, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def send(client: httpx.Client, task: str, count: int, labels: Sequence[str] = SHAPES) -> dict[str, list[bytes]]:
    """So many examples of each label; what was sent."""
    sent = {}
    for place, label in enumerate(labels):
        sent[label] = [shape(SHAPES[place % 3], 1000 * place + number) for number in range(count)]
        files = [("file", (f"{number}.png", body)) for number, body in enumerate(sent[label])]
        client.post(f"/v1/tasks/{task}/examples", params={"label": label}, files=files).raise_for_status()
    return sent


def start(client: httpx.Client, task: str, **asked: Any) -> dict[str, Any]:
    """The job of a training."""
    answer = client.post(f"/v1/tasks/{task}/training", json=asked or None)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    return job


def ended(client: httpx.Client, job: dict[str, Any], seconds: float = 90.0) -> dict[str, Any]:
    """The job once it is over."""
    now: dict[str, Any] = {}

    def over() -> bool:
        now.update(client.get(f"/v1/jobs/{job['id']}").raise_for_status().json())
        return now["state"] not in ("waiting", "running")

    assert until(over, seconds), now
    return now


class Trainer:
    """Carries out what waits, on the test's own thread; asks the house's engine."""

    def __init__(self, home: House, loop: asyncio.AbstractEventLoop) -> None:
        settings, built, engine = home.settings, home.built, home.local
        memory = PixelMemory.private(max(IN_FLIGHT, settings.max_batch_rows), engine.facts.layout.input_size)
        asking = Asking(engine, memory, settings.data_dir / "staging", loop, "trainer")  # type: ignore[arg-type]
        self.jobs = built.jobs
        self.teaching = Teaching(
            settings,
            engine.facts,
            built.jobs,
            built.examples,
            built.catalogue,
            asking,
            lambda: ThreadPoolExecutor(1),
            lambda _: None,
        )

    def claim(self) -> TrainingJob:
        """The next one."""
        job: TrainingJob | None = self.jobs.claim(0)
        assert job is not None
        return job

    def work(self) -> TrainingJob:
        """Carry out the next one; its record afterwards."""
        job = self.claim()
        self.teaching.carry_out(job)
        done: TrainingJob = self.jobs.get(job.id)
        return done


@contextmanager
def trainer(home: House) -> Iterator[Trainer]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield Trainer(home, loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(WAIT)
        loop.close()


def refused(client: httpx.Client, task: str, status: int, **asked: Any) -> str:
    """What is said to a training that is not begun."""
    detail = problem(client.post(f"/v1/tasks/{task}/training", json=asked or None), status)["detail"]
    assert isinstance(detail, str)
    return detail
