"""Slots: never written while live, evicted when idle, fair when scarce, conserved whatever callers do."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.bank import Bank, Lease, PackedAdapter
from adapters.errors import AdapterTooLarge, NoRoom
from tests.banks import WAIT, Packs, bank, get, packed, wait_for

__all__ = ["bank", "packed"]


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
