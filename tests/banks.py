"""Small banks on a small backbone, and what is loaded into them: what tests of the bank share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from adapters.bank import Bank, Lease, PackedAdapter, Slabs, pack
from adapters.config import SiteConfig
from adapters.layout import Layout
from tests.models import Spec, random_adapter, small_backbone

WAIT = 10.0


class Packs:
    """Packed adapters by number; 99 has a head of 200 classes."""

    def __init__(self, folder: Path) -> None:
        backbone = small_backbone(folder)
        self.layout: Layout = backbone.layout
        spec = Spec((SiteConfig(site="parallel", blocks=(0, 1, 2), rank=4),), classes=20)
        self._made = {i: pack(random_adapter(backbone, spec, i), self.layout, 8, torch.float32) for i in range(12)}
        self._made[99] = pack(random_adapter(backbone, Spec(classes=200), 99), self.layout, 8, torch.float32)

    def __call__(self, i: int) -> PackedAdapter:
        return self._made[i]

    def bank(
        self, slots: int, pages: int | None = None, host_bytes: int = 2**30, clock: Callable[[], float] = time.monotonic
    ) -> Bank:
        pages = 2 * slots if pages is None else pages
        cpu = torch.device("cpu")
        slabs = Slabs(self.layout, slots=slots, rank=8, pages=pages, dtype=torch.float32, device=cpu)
        return Bank(slabs, host_cache_bytes=host_bytes, clock=clock)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packs:
    return Packs(tmp_path_factory.mktemp("bank") / "vit")


@pytest.fixture
def bank(packed: Packs) -> Iterator[Bank]:
    made = packed.bank(2)
    yield made
    made.close()


def get(bank: Bank, packed: Packs, i: int) -> Lease:
    return bank.acquire(str(i), lambda: packed(i)).result(WAIT)


def wait_for(condition: Callable[[], bool]) -> bool:
    waiter = threading.Condition()
    with waiter:
        return waiter.wait_for(condition, 0.0) or any(condition() or waiter.wait(0.01) for _ in range(500))
