"""Loads into the bank: off the caller's thread, shared, in order of need, and for nobody who left."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import Future

import pytest

from adapters.bank import Bank, Lease, PackedAdapter
from adapters.errors import BrokenAdapter, LoadsBehind, NoRoom
from tests.banks import WAIT, Packs, bank, get, packed, wait_for

__all__ = ["bank", "packed"]


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
