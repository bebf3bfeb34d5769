"""Slots: loaded off the caller's thread, never written while live, evicted when idle, fair when scarce."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from adapters.bank import Bank, Lease, PackedAdapter, Slabs, pack
from adapters.config import SiteConfig
from adapters.errors import AdapterTooLarge, BrokenAdapter, NoRoom
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

    def bank(self, slots: int, pages: int | None = None, host_bytes: int = 2**30) -> Bank:
        pages = 2 * slots if pages is None else pages
        cpu = torch.device("cpu")
        slabs = Slabs(self.layout, slots=slots, rank=8, pages=pages, dtype=torch.float32, device=cpu)
        return Bank(slabs, host_cache_bytes=host_bytes)


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


def test_a_slot_holds_what_was_loaded(bank: Bank, packed: Packs) -> None:
    lease = get(bank, packed, 3)
    assert lease.slot > 0
    assert torch.equal(bank.slabs._flat["parallel"][lease.slot], packed(3).planes["parallel"])
    assert torch.equal(bank.slabs.pages[list(lease.pages)], packed(3).pages)
    assert bank.tier("3") == "device"


def test_a_resident_is_answered_at_once_and_without_loading(bank: Bank, packed: Packs) -> None:
    get(bank, packed, 1).release()

    def never() -> PackedAdapter:
        raise AssertionError("loaded twice")

    assert bank.acquire("1", never).done()


def test_many_who_wait_share_one_load(bank: Bank, packed: Packs) -> None:
    gate, loads = threading.Event(), []

    def slow() -> PackedAdapter:
        gate.wait(WAIT)
        loads.append(1)
        return packed(1)

    futures = [bank.acquire("1", slow) for _ in range(5)]
    gate.set()
    leases = [f.result(WAIT) for f in futures]
    assert len(loads) == 1
    assert len({lease.slot for lease in leases}) == 1
    assert bank.stats().pinned == 1


def test_the_least_recently_used_idle_one_goes(bank: Bank, packed: Packs) -> None:
    for i in (1, 2, 1, 3):
        get(bank, packed, i).release()
    assert [bank.tier(k) for k in "123"] == ["device", "host", "device"]
    assert bank.stats().evictions["device"] == 1


def test_a_pinned_slot_is_never_written(bank: Bank, packed: Packs) -> None:
    held = get(bank, packed, 1)
    before = bank.slabs._flat["parallel"][held.slot].clone()
    for i in range(2, 9):
        lease = get(bank, packed, i)
        assert lease.slot != held.slot
        lease.release()
    assert torch.equal(bank.slabs._flat["parallel"][held.slot], before)


def test_when_all_are_pinned_a_newcomer_waits_and_is_not_starved(bank: Bank, packed: Packs) -> None:
    first, second = get(bank, packed, 1), get(bank, packed, 2)
    newcomer = bank.acquire("3", lambda: packed(3))
    drained = wait_for(lambda: bank.tier("1") != "device")
    assert drained
    assert not newcomer.done()
    again = bank.acquire("1", lambda: packed(1))  # new work of the drained one queues behind the newcomer
    first.release()
    third = newcomer.result(WAIT)
    assert third.slot == first.slot
    assert not again.done()
    second.release()
    third.release()
    again.result(WAIT).release()


def wait_for(condition: Callable[[], bool]) -> bool:
    waiter = threading.Condition()
    with waiter:
        return waiter.wait_for(condition, 0.0) or any(condition() or waiter.wait(0.01) for _ in range(500))


def test_a_failed_load_reaches_everybody_and_takes_no_slot(bank: Bank, packed: Packs) -> None:
    gate = threading.Event()

    def broken() -> PackedAdapter:
        gate.wait(WAIT)
        raise BrokenAdapter("bits rotted")

    futures: list[Future[Lease]] = [bank.acquire("1", broken) for _ in range(3)]
    gate.set()
    for future in futures:
        with pytest.raises(BrokenAdapter, match="bits rotted"):
            future.result(WAIT)
    assert bank.stats().used == 0
    get(bank, packed, 1)


def test_cancelled_waiters_hold_nothing(bank: Bank, packed: Packs) -> None:
    gate = threading.Event()

    def slow() -> PackedAdapter:
        gate.wait(WAIT)
        return packed(1)

    future = bank.acquire("1", slow)
    assert future.cancel()
    gate.set()
    assert wait_for(lambda: bank.tier("1") == "device")
    assert bank.stats().pinned == 0


def test_releasing_twice_counts_once(bank: Bank, packed: Packs) -> None:
    one, other = get(bank, packed, 1), get(bank, packed, 1)
    one.release()
    one.release()
    assert bank.stats().pinned == 1
    other.release()
    assert bank.stats().pinned == 0


def test_forgotten_ones_leave_both_tiers_after_their_last_request(bank: Bank, packed: Packs) -> None:
    lease = get(bank, packed, 1)
    bank.forget("1")
    assert bank.tier("1") == "disk"
    assert bank.stats().used == 1
    lease.release()
    assert bank.stats().used == 0
    assert bank.stats().host_bytes == 0


def test_the_host_cache_keeps_to_its_bytes(packed: Packs) -> None:
    size = packed(1).nbytes
    bank = packed.bank(1, host_bytes=2 * size)
    for i in (1, 2, 3):
        get(bank, packed, i).release()
    assert bank.stats().host_bytes == 2 * size
    assert [bank.tier(k) for k in "123"] == ["disk", "host", "device"]
    bank.close()


def test_a_large_head_makes_room_for_its_pages(packed: Packs) -> None:
    bank = packed.bank(4, pages=13)
    for i in range(4):
        get(bank, packed, i).release()
    lease = get(bank, packed, 99)
    assert len(lease.pages) == 13
    assert bank.stats().used == 1
    bank.close()
    small = packed.bank(4, pages=12)
    with pytest.raises(AdapterTooLarge, match="13 pages"):
        get(small, packed, 99)
    small.close()


def test_closing_refuses_what_waits(packed: Packs) -> None:
    bank = packed.bank(1)
    held = get(bank, packed, 1)
    waiting = bank.acquire("2", lambda: packed(2))
    bank.close()
    with pytest.raises(NoRoom, match="closed"):
        waiting.result(WAIT)
    with pytest.raises(NoRoom, match="closed"):
        bank.acquire("3", lambda: packed(3))
    held.release()


def test_threads_that_share_few_slots_always_read_their_own(packed: Packs) -> None:
    """16 tasks on 3 slots, 6 threads: every lease shows its own adapter for as long as it is held."""
    bank = packed.bank(3)
    wrong: list[int] = []

    def work(offset: int) -> None:
        for n in range(40):
            i = (offset + n * 5) % 10
            lease = get(bank, packed, i)
            for _ in range(2):
                if not torch.equal(bank.slabs._flat["parallel"][lease.slot], packed(i).planes["parallel"]):
                    wrong.append(i)
            lease.release()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not any(t.is_alive() for t in threads)
    assert not wrong
    assert bank.stats().pinned == 0
    bank.close()
