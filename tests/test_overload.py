"""Ten times more requests than the server can answer, from clients that do not wait: who gets what, and when."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from adapters.backbone import Backbone, load_backbone
from adapters.config import SiteConfig
from adapters.file import write_adapter
from tests.houses import Process, photograph
from tests.models import Spec, random_adapter
from tests.overload import Answers, Client

BACKBONES = {"vit_tiny_patch16_224": 1.0, "vit_small_patch16_224": 3.7, "vit_base_patch16_224": 14.0}
"""By name: how many times the work of the first one."""
PICTURES_PER_S = 20.0
"""The model must be the bottleneck: ten times what a faster one computes is more than two cores can send and read."""
DEADLINE_MS = 4000
TIMES = 10
CLIENTS = 32
"""Four batches: enough that the model is never idle."""
LONG_S = 8.0
"""A run that lasts less is measured for less, before and after too."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    monkeypatch.setenv("ADAPTSERVE_MAX_BATCH_ROWS", "8")
    name, backbone = _heavy_enough()
    adapter = random_adapter(backbone, Spec((SiteConfig(site="parallel", blocks=(0,), rank=4),), 5), 1)
    write_adapter(tmp_path / "a.safetensors", adapter.config, adapter.tensors)
    arguments = ["--backbone", name, "--weights", "random:0", "--data-dir", str(tmp_path / "data")]
    process = Process([*arguments, "--device", "cpu", "--threads", "1", "--front-ends", "2"], tmp_path / "log")
    content = (tmp_path / "a.safetensors").read_bytes()
    process.client.put("/v1/tasks/t/adapter", content=content).raise_for_status()
    yield process
    process.process.kill()
    process.process.wait()
    process.client.close()


def _heavy_enough() -> tuple[str, Backbone]:
    """The first of the models that one thread computes no faster than that, judged by the time of the smallest."""
    pixels, threads = torch.zeros(8, 3, 224, 224), torch.get_num_threads()
    backbone = load_backbone(next(iter(BACKBONES)), "random:0", "cpu", "float32")
    torch.set_num_threads(1)
    try:
        per_s = len(pixels) / min(_seconds(backbone, pixels) for _ in range(3))
    finally:
        torch.set_num_threads(threads)
    name = next((name for name, times in BACKBONES.items() if per_s / times <= PICTURES_PER_S), [*BACKBONES][-1])
    return name, load_backbone(name, "random:0", "cpu", "float32")


@torch.inference_mode()
def _seconds(backbone: Backbone, pixels: torch.Tensor) -> float:
    start = time.perf_counter()
    backbone.features(pixels)
    return time.perf_counter() - start


def _pictures() -> list[bytes]:
    """A small one, and three of which 100 to 300 kB are on their way when they are refused; no dearer to decode."""
    found = [photograph(size=(256, 256))]
    for side in (190, 260, 320):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
        found.append(file.getvalue())
    assert [len(body) // 100_000 for body in found] == [0, 1, 2, 3]
    return found


class Memory:
    """The largest resident memory of all processes together while the block runs, in bytes; shared pages count anew."""

    def __init__(self, family: Sequence[psutil.Process]) -> None:
        self._family, self._end = family, threading.Event()
        self.before = self.most = self._now()
        self._thread = threading.Thread(target=self._watch)

    @property
    def growth(self) -> float:
        return self.most / self.before - 1

    def _watch(self) -> None:
        while not self._end.wait(0.1):
            self.most = max(self.most, self._now())

    def _now(self) -> int:
        return sum(process.memory_info().rss for process in self._family)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


async def _alone(url: str, bodies: Sequence[bytes], requests: int) -> Answers:
    """One client, one request after the other."""
    client = Client(url, "t", bodies, 10_000)
    for _ in range(requests):
        await client.ask(asyncio.get_running_loop().time())
    client.close()
    return client.answers


async def _measure(
    url: str, family: Sequence[psutil.Process], bodies: Sequence[bytes], seconds: float
) -> tuple[float, Answers, Memory, Answers, Answers]:
    warm, share = Client(url, "t", bodies, 10_000), min(1, seconds / LONG_S)
    await warm.closed_loop(CLIENTS, 3 * share)
    warm.answers = Answers()
    capacity = await warm.closed_loop(CLIENTS, 4 * share)
    warm.close()
    before = await _alone(url, bodies, int(15 * share))
    client = Client(url, "t", bodies, DEADLINE_MS)
    with Memory(family) as memory:
        await client.open_loop(TIMES * capacity, seconds)
    client.close()
    await asyncio.sleep(2 * share)
    return capacity, client.answers, memory, before, await _alone(url, bodies, int(15 * share))


@pytest.mark.alone
@pytest.mark.parametrize(
    ("seconds", "late_s"), [(4, 0.5), pytest.param(60, 0.1, marks=[pytest.mark.torture, pytest.mark.timeout(600)])]
)
def test_ten_times_capacity(server: Process, seconds: float, late_s: float) -> None:
    """``late_s`` is the client's own: it sends ten times as much, and something else may have the machine."""
    measured = asyncio.run(_measure(server.url, server.family(), _pictures(), seconds))
    capacity, answers, memory, before, after = measured
    numbers = {
        "capacity_per_s": round(capacity, 1),
        "sent_per_s": round(sum(answers.counts.values()) / seconds, 1),
        "answers": dict(answers.counts),
        "accepted_p50_p99_max_s": [round(answers.quantile(200, q), 3) for q in (0.5, 0.99, 1)],
        "refused_p50_p99_max_s": [round(answers.quantile(429, q), 4) for q in (0.5, 0.99, 1)],
        "retry_after_s": sorted(set(answers.retry_after)),
        "rss_mib_before_most": [memory.before >> 20, memory.most >> 20],
        "rss_growth": round(memory.growth, 3),
        "alone_p50_s_before_after": [round(a.quantile(200, 0.5), 4) for a in (before, after)],
    }
    print(json.dumps(numbers, indent=1))
    late = answers.counts.pop(504, 0)  # the short run is too short to notice that another process came
    assert late <= (0 if seconds > LONG_S else answers.counts[200] / 2)
    assert set(answers.counts) == {200, 429}
    assert answers.quantile(200, 1) <= DEADLINE_MS / 1000 + late_s
    assert answers.counts[200] >= 0.5 * capacity * seconds  # overload must not eat the capacity
    assert min(answers.retry_after) >= 1
    assert after.counts == before.counts
    if seconds > LONG_S:
        assert answers.quantile(429, 0.99) < 0.1
        assert memory.growth < 0.1
        assert after.quantile(200, 0.5) < 1.5 * before.quantile(200, 0.5)
