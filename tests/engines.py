"""An engine whose forward pass is a stand-in: tests say when it runs, and what it raises."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adapters.bank import Bank, PackedAdapter, Slabs, pack
from adapters.config import SiteConfig
from adapters.forward.banked import Job
from service.engine.engine import BatchReport, Engine
from service.engine.interface import Answer
from tests.models import Spec, random_adapter, small_backbone

WAIT = 20.0
SPEC = Spec((SiteConfig(site="parallel", blocks=(0, 1, 2), rank=4),), classes=3)


class GatedForward:
    """Answers each job with its first pixel and its slot; waits at a gate, and fails where told."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []
        self.poison: set[int] = set()
        self.bad: set[int] = set()

    def __call__(self, jobs: Sequence[Job]) -> list[NDArray[np.float32]]:
        self.entered.set()
        assert self.gate.wait(WAIT)
        values = [int(job.pixels.flatten()[0]) for job in jobs]
        self.batches.append(values)
        if self.poison & set(values):
            raise RuntimeError("poisoned")
        return [
            np.array([v if v not in self.bad else np.nan, job.slot], np.float32)
            for v, job in zip(values, jobs, strict=True)
        ]


class House:
    """An engine over a gated forward, and a backbone's real packed adapters."""

    def __init__(self, folder: Path, slots: int = 3) -> None:
        self.backbone = small_backbone(folder)
        layout = self.backbone.layout
        self.packs = {str(i): pack(random_adapter(self.backbone, SPEC, i), layout, 8, torch.float32) for i in range(8)}
        cpu = torch.device("cpu")
        self.slabs = Slabs(layout, slots=slots, rank=8, pages=slots, dtype=torch.float32, device=cpu)
        self.bank = Bank(self.slabs, host_cache_bytes=2**30)
        self.forward = GatedForward()
        self.reports: list[BatchReport] = []
        self.engine = self.make(self.forward)

    def make(self, forward: Callable[[Sequence[Job]], list[NDArray[np.float32]]]) -> Engine:
        return Engine(forward, self.bank, max_batch_rows=8, max_queue_rows=20, on_batch=self.reports.append)

    def submit(
        self, value: int, task: str = "1", rows: int = 1, seconds: float = WAIT,
        load: Callable[[], PackedAdapter] | None = None,
    ) -> Future[Answer]:  # fmt: skip
        pixels = np.full((rows, 3, 2, 2), value, np.uint8)
        return self.engine.submit(task, task, load or (lambda: self.packs[task]), pixels, time.monotonic() + seconds)

    def hold(self) -> Future[Answer]:
        """Close the gate with one request inside the forward, so that what follows must wait."""
        self.forward.gate.clear()
        self.forward.entered.clear()
        first = self.submit(0)
        assert self.forward.entered.wait(WAIT)
        return first

    def close(self) -> None:
        self.forward.gate.set()
        self.engine.close()
        self.bank.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "vit")
    made.engine.start()
    yield made
    made.close()


def wait_for(condition: Callable[[], bool]) -> bool:
    """Poll until true; the engine has no event for every inner state a test wants to see."""
    end = time.monotonic() + WAIT
    pause = threading.Event()
    while not condition() and time.monotonic() < end:
        pause.wait(0.002)
    return condition()
