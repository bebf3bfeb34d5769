"""Slots: loaded off the caller's thread, never written while live, evicted when idle, fair when scarce."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.bank import Bank, Lease, PackedAdapter, Slabs, pack
from adapters.config import SiteConfig
from adapters.errors import AdapterTooLarge, BrokenAdapter, LoadsBehind, NoRoom
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


def test_a_slot_that_falls_idle_goes_to_the_newcomer_at_once(bank: Bank, packed: Packs) -> None:
    """Also when another resident was asked to yield; that one goes on, and keeps who queued for it meanwhile."""
    first, second = get(bank, packed, 1), get(bank, packed, 2)
    newcomer = bank.acquire("3", lambda: packed(3))
    assert wait_for(lambda: bank.tier("1") != "device")
    again = bank.acquire("1", lambda: packed(1))
    second.release()
    assert newcomer.result(WAIT).slot == second.slot
    assert again.result(WAIT).slot == first.slot
    assert bank.tier("1") == "device"
    assert bank.stats().loads["device"] == 3


def test_callers_of_one_digest_do_not_share_what_is_wrong_with_one_loader(bank: Bank, packed: Packs) -> None:
    gate, reading = threading.Event(), threading.Event()

    def broken() -> PackedAdapter:
        reading.set()
        gate.wait(WAIT)
        raise BrokenAdapter("this copy rotted")

    bad = [bank.acquire("1", broken) for _ in range(2)]
    assert reading.wait(WAIT)
    good = bank.acquire("1", lambda: packed(1))
    gate.set()
    assert good.result(WAIT).meta == packed(1).meta
    for future in bad:
        with pytest.raises(BrokenAdapter):
            future.result(WAIT)


def test_tasks_that_are_asked_often_outlast_a_flood_of_others(packed: Packs) -> None:
    """LRU would lose them: between two uses of one come more newcomers than there are slots."""
    now = [0.0]
    bank = packed.bank(4, clock=lambda: now[0])
    hot = ["0", "1", "2"]
    for _ in range(5):
        for key in hot:
            now[0] += 0.3
            get(bank, packed, int(key)).release()
    for turn in range(60):
        now[0] += 0.1
        bank.acquire(f"cold {turn}", lambda: packed(3)).result(WAIT).release()
        if turn % 6 == 0:
            assert [bank.tier(key) for key in hot] == ["device"] * 3
            get(bank, packed, turn // 6 % 3).release()
    assert bank.stats().loads["device"] == 3 + 60
    now[0] += 120.0  # yesterday's favourites make room
    for i in (4, 5, 6, 7):
        get(bank, packed, i).release()
        now[0] += 1.0
        get(bank, packed, i).release()
    assert [bank.tier(key) for key in hot] == ["host"] * 3
    bank.close()


def refused(bank: Bank, *keys: str, hope_s: float = 0.05) -> bool:
    try:
        bank.check(keys, time.monotonic() + WAIT, hope_s)
    except LoadsBehind:
        return True
    return False


def test_a_backlog_is_refused_by_its_expected_time(packed: Packs) -> None:
    gate, bank = threading.Event(), packed.bank(2)
    first = bank.acquire("0", lambda: packed(0) if gate.wait(WAIT) else packed(1), time.monotonic() + WAIT, 0.001)
    assert wait_for(lambda: refused(bank, "1"))
    assert refused(bank, "0")  # its own rest
    assert not refused(bank, "1", hope_s=WAIT)
    with pytest.raises(LoadsBehind, match="1 adapters wait to be loaded"):
        bank.acquire("1", lambda: packed(1), time.monotonic() + WAIT, 0.05)
    gate.set()
    first.result(WAIT).release()
    assert wait_for(lambda: bank._loading is None)
    assert not refused(bank, "0", "1", hope_s=0.0)  # nothing is before it
    bank.acquire("1", lambda: packed(1), time.monotonic() + WAIT, 0.001).result(WAIT).release()
    bank.close()


def test_what_is_asked_again_is_loaded_before_others(packed: Packs) -> None:
    now, gate, order = [0.0], threading.Event(), list[int]()
    bank = packed.bank(1, clock=lambda: now[0], host_bytes=0)

    def load(i: int) -> PackedAdapter:
        order.append(i)
        return packed(i)

    first = bank.acquire("0", lambda: packed(0) if gate.wait(WAIT) else packed(1), 100.0)
    assert wait_for(lambda: bank._loading == "0")
    now[0] = 1.0
    with pytest.raises(LoadsBehind):
        bank.check(["3"], 100.0, 0.5)
    futures = [bank.acquire(str(i), lambda i=i: load(i), 100.0) for i in (1, 2)]  # type: ignore[misc]
    now[0] = 2.0
    futures.append(bank.acquire("3", lambda: load(3), 100.0))
    gate.set()
    for future in [first, futures[2], *futures[:2]]:
        future.result(WAIT).release()
    assert order == [3, 1, 2]
    bank.close()


def test_what_is_too_late_is_told_and_not_loaded(packed: Packs) -> None:
    now, gate = [0.0], threading.Event()
    bank = packed.bank(2, clock=lambda: now[0])
    first = bank.acquire("0", lambda: packed(0) if gate.wait(WAIT) else packed(1), 100.0)
    assert wait_for(lambda: bank._loading == "0")
    late, fine = (bank.acquire(str(i), lambda i=i: packed(i), deadline) for i, deadline in ((1, 1.0), (2, 100.0)))  # type: ignore[misc]
    now[0] = 2.0
    gate.set()
    with pytest.raises(LoadsBehind):
        late.result(WAIT)
    fine.result(WAIT).release()
    first.result(WAIT).release()
    assert bank.tier("1") == "disk"
    bank.close()


def test_whoever_left_keeps_nothing_alive(bank: Bank, packed: Packs) -> None:
    """Not the loader, and not what hangs on the future's callbacks, while another load hangs."""

    class Pixels:
        pass

    gate = threading.Event()
    stuck = bank.acquire("1", lambda: packed(1) if gate.wait(WAIT) else packed(2))
    seen = []
    gc.collect()
    gc.disable()
    try:
        for key in ("1", "2"):
            pixels, weights = Pixels(), Pixels()
            future = bank.acquire(key, lambda weights=weights: packed(2))  # type: ignore[misc]
            future.add_done_callback(lambda _, pixels=pixels: None)  # type: ignore[misc]
            assert future.cancel()
            seen += [weakref.ref(pixels), weakref.ref(weights)]
            del pixels, weights, future
        assert [ref() for ref in seen] == [None] * 4
    finally:
        gc.enable()
    gate.set()
    stuck.result(WAIT).release()


SLOTS, KEYS = 2, 5
moves = st.lists(
    st.tuples(
        st.sampled_from(["acquire", "acquire", "cancel", "release", "forget", "settle"]), st.integers(0, KEYS - 1)
    ),
    max_size=40,
)


@given(moves)
@settings(max_examples=60, deadline=None)
def test_whatever_callers_do_slots_are_conserved_and_every_waiter_ends(
    packed: Packs, schedule: list[tuple[str, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adapters.bank.bank.YIELD_AFTER_S", 0.0005)
        bank = packed.bank(SLOTS)
        asked: list[tuple[int, Future[Lease]]] = []
        for kind, number in schedule:
            if kind == "acquire":
                asked.append((number, bank.acquire(str(number), lambda number=number: packed(number))))  # type: ignore[misc]
            elif kind == "forget":
                bank.forget(str(number))
            elif kind == "settle":
                time.sleep(0.001)  # the loader may get somewhere, or not
            elif asked:
                key, future = asked.pop(number % len(asked))
                if kind == "cancel" and future.cancel():
                    continue
                if future.done():
                    check(bank, packed, key, future.result(0))
                    future.result(0).release()
                else:
                    asked.append((key, future))
            for key, future in asked:
                if held(future):
                    check(bank, packed, key, future.result(0))
        while asked:  # whoever has a slot gives it back: then whoever waits must get one
            assert wait_for(lambda: any(future.done() for _, future in asked))
            for key, future in [pair for pair in asked if pair[1].done()]:
                check(bank, packed, key, future.result(0))
                future.result(0).release()
                asked.remove((key, future))
        assert wait_for(lambda: bank._loading is None)
        bank.close()
        assert not bank.alive
        assert bank.stats().pinned == 0
        slots = bank._slots
        residents = list(slots.resident.values())
        assert not slots._yielding
        assert all(r.pins == 0 and not r.draining for r in residents)
        assert sorted([*slots._free_slots, *(r.slot for r in residents)]) == list(range(1, SLOTS + 1))
        pages = [*slots._free_pages, *(p for r in residents for p in r.pages)]
        assert sorted(pages) == list(range(1, bank.slabs.page_count + 1))
        assert bank.stats().host_bytes == sum(p.nbytes for p in bank._host._kept.values())


def held(future: Future[Lease]) -> bool:
    return future.done() and not future.cancelled()


def check(bank: Bank, packed: Packs, number: int, lease: Lease) -> None:
    """The slot still shows what was asked for."""
    assert torch.equal(bank.slabs._flat["parallel"][lease.slot], packed(number).planes["parallel"])
    assert torch.equal(bank.slabs.pages[list(lease.pages)], packed(number).pages)


def test_closing_does_not_wait_for_ever(packed: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.bank.bank.CLOSE_S", 0.05)
    bank, gate, reading = packed.bank(1), threading.Event(), threading.Event()

    def hangs() -> PackedAdapter:
        reading.set()
        gate.wait(WAIT)
        return packed(1)

    future = bank.acquire("1", hangs)
    assert reading.wait(WAIT)
    bank.close()
    with pytest.raises(NoRoom, match="closed"):
        future.result(WAIT)
    assert bank.alive
    gate.set()
    assert wait_for(lambda: not bank.alive)


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


def test_a_load_that_nobody_waits_for_is_not_begun(bank: Bank, packed: Packs) -> None:
    gate = threading.Event()
    first = bank.acquire("1", lambda: packed(1) if gate.wait(WAIT) else packed(0))
    begun: list[str] = []
    gone = [bank.acquire(str(i), lambda i=i: begun.append(str(i)) or packed(i)) for i in range(2, 8)]  # type: ignore[misc]
    kept = gone.pop()
    assert all(future.cancel() for future in gone)
    gate.set()
    first.result(WAIT).release()
    kept.result(WAIT).release()
    assert begun == ["7"]
    assert [bank.tier(str(i)) for i in range(2, 7)] == ["disk"] * 5


def test_a_load_whose_callers_left_evicts_nobody_and_pins_nothing(bank: Bank, packed: Packs) -> None:
    for i in (1, 2):
        get(bank, packed, i).release()
    reading, gate = threading.Event(), threading.Event()

    def slow() -> PackedAdapter:
        reading.set()
        gate.wait(WAIT)
        return packed(3)

    future = bank.acquire("3", slow)
    assert reading.wait(WAIT)
    assert future.cancel()
    gate.set()
    assert wait_for(lambda: bank.tier("3") == "host")
    assert [bank.tier(k) for k in "12"] == ["device", "device"]
    get(bank, packed, 3).release()  # and the loader goes on
    assert bank.stats().pinned == 0


def test_whoever_comes_while_the_last_other_one_leaves_is_served(bank: Bank, packed: Packs) -> None:
    held = [get(bank, packed, i) for i in (1, 2)]
    first = bank.acquire("3", lambda: packed(3))
    assert wait_for(lambda: bank.tier("3") == "host")  # read, and waiting for a slot
    second = bank.acquire("3", lambda: packed(3))
    assert first.cancel()
    held[1].release()
    assert second.result(WAIT).slot == held[1].slot


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


def test_what_is_kept_makes_room_for_nobody(packed: Packs) -> None:
    bank = packed.bank(3)
    bank.keep(["1", "2"])
    for i in (1, 2):
        get(bank, packed, i).release()
    busy = get(bank, packed, 3)  # the only slot that others may have
    for i in range(4, 8):
        waiting = bank.acquire(str(i), lambda i=i: packed(i))  # type: ignore[misc]
        assert not wait_for_tier(bank, str(i), "device", 0.15)  # nobody yields but the busy one
        assert (bank.tier("1"), bank.tier("2")) == ("device", "device")
        busy.release()
        busy = waiting.result(WAIT)
    busy.release()
    bank.keep(["1"])
    get(bank, packed, 8).release()
    get(bank, packed, 9).release()
    assert (bank.tier("1"), bank.tier("2")) == ("device", "host")
    bank.forget("1")
    assert bank.tier("1") == "disk"
    bank.close()


def test_what_the_kept_leave_no_room_for_is_refused_at_once(packed: Packs) -> None:
    """Its load would else hold up all others' until somebody's deadline."""
    bank = packed.bank(3, pages=14)
    bank.keep(["1", "2"])
    for i in (1, 2):
        get(bank, packed, i).release()
    with pytest.raises(NoRoom, match="2 pinned adapters leave 10 of 14 pages and 1 of 3 slots; pin fewer tasks"):
        get(bank, packed, 99)
    get(bank, packed, 3).release()
    bank.keep([])
    get(bank, packed, 99).release()
    bank.close()


def wait_for_tier(bank: Bank, key: str, tier: str, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while bank.tier(key) != tier and time.monotonic() < end:
        threading.Event().wait(0.01)
    return bank.tier(key) == tier
