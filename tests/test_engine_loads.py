"""The engine's tickets that wait for loads, and callers who leave: each hears in time, and nothing is left behind."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from adapters.bank import PackedAdapter
from adapters.errors import BrokenAdapter
from service.errors import QueueFull
from tests.engines import WAIT, House, house, wait_for

__all__ = ["house"]


def test_cancelled_rows_leave_the_queue_before_the_device_sees_them(house: House) -> None:
    house.hold()
    gone, kept = house.submit(5, rows=4), house.submit(6)
    wait_for(lambda: house.engine._scheduler.waiting_rows == 5)
    assert gone.cancel()
    assert house.engine.queued_rows == 2  # the one kept, and the one that runs
    house.forward.gate.set()
    assert kept.result(WAIT).logits[0] == 6
    assert 5 not in [v for batch in house.forward.batches for v in batch]
    with pytest.raises(CancelledError):
        gone.result(WAIT)
    assert wait_for(lambda: house.bank.stats().pinned == 0)


def test_cancelling_during_the_load_holds_nothing(house: House) -> None:
    """No row, no slot, no pixel, while the load hangs."""
    gate, reading = threading.Event(), threading.Event()

    def slow() -> PackedAdapter:
        reading.set()
        assert gate.wait(WAIT)
        return house.packs["4"]

    gc.collect()
    gc.disable()
    try:
        pixels = []
        for task in ("4", "4", "5"):
            mine = np.zeros((1, 3, 2, 2), np.uint8)
            future = house.engine.submit(task, task, slow, mine, time.monotonic() + WAIT)
            assert reading.wait(WAIT)
            pixels.append(weakref.ref(mine))
            assert future.cancel()
            del mine, future
        assert [ref() for ref in pixels] == [None] * 3
    finally:
        gc.enable()
    assert house.engine.queued_rows == 0
    gate.set()
    assert house.submit(1, task="6").result(WAIT).logits[0] == 1
    assert house.bank.stats().pinned == 0
    assert house.bank.tier("5") == "disk"


def test_answered_rows_keep_nothing_alive(house: House) -> None:
    gc.collect()
    gc.disable()
    try:
        mine = np.zeros((1, 3, 2, 2), np.uint8)
        gone = weakref.ref(mine)
        future = house.engine.submit("1", "1", lambda: house.packs["1"], mine, time.monotonic() + WAIT)
        del mine
        future.result(WAIT)
        assert wait_for(lambda: gone() is None)  # though the caller still has its answer
    finally:
        gc.enable()


def test_each_caller_of_a_load_that_fails_gets_an_error_of_its_own(house: House) -> None:
    gate = threading.Event()

    def broken() -> PackedAdapter:
        gate.wait(WAIT)
        raise BrokenAdapter("bits rotted", tensor="head.bias")

    futures = [house.submit(1, task="5", load=broken) for _ in range(2)]
    gate.set()
    errors = [future.exception(WAIT) for future in futures]
    assert all(isinstance(error, BrokenAdapter) and error.__traceback__ is None for error in errors)
    errors[0].facts["task"] = "mine"  # type: ignore[union-attr]
    assert errors[1].facts == {"tensor": "head.bias"}  # type: ignore[union-attr]


def test_loads_that_cannot_be_in_time_are_refused_and_others_are_not(house: House) -> None:
    house.submit(1).result(WAIT)
    gate, reading = threading.Event(), threading.Event()

    def slow() -> PackedAdapter:
        reading.set()
        assert gate.wait(WAIT)
        return house.packs["4"]

    cold = house.submit(1, task="4", load=slow)
    assert reading.wait(WAIT)
    assert wait_for(lambda: house.bank._pace.wait(0, 1, time.monotonic()) > 0.2)
    soon = time.monotonic() + 0.3
    for digests in (["5"], ["1", "4"]):
        with pytest.raises(QueueFull, match="adapters wait to be loaded, .* X-Deadline-Ms") as caught:
            house.engine.check_room(1, soon, digests)
        assert caught.value.facts["reason"] == "loads"
        assert caught.value.retry_after > 0
    house.engine.check_room(1, soon, ["1"])
    house.engine.check_room(1, time.monotonic() + 60, ["5"])
    with pytest.raises(QueueFull, match="adapters wait to be loaded"):
        house.submit(1, task="5", seconds=0.3)
    assert house.engine.queued_rows == 1
    assert house.submit(7, seconds=0.3 * WAIT).result(WAIT).logits[0] == 7
    gate.set()
    assert cold.result(WAIT).logits[0] == 1


def test_the_versions_of_one_request_do_not_count_against_each_other(tmp_path: Path) -> None:
    house = House(tmp_path / "vit")
    house.engine.start()

    def slow(task: str) -> PackedAdapter:
        time.sleep(0.05)
        return house.packs[task]

    tasks = [str(i) for i in range(8)]
    house.submit(1, task="7", load=lambda: slow("7")).result(WAIT)  # how long a load takes is known
    deadline = time.monotonic() + 2.0
    house.engine.check_room(8, deadline, tasks)
    pixels = np.zeros((1, 3, 2, 2), np.uint8)
    futures = [
        house.engine.submit(task, task, lambda task=task: slow(task), pixels, deadline, admitted=True)  # type: ignore[misc]
        for task in tasks
    ]
    assert all(future.result(WAIT) for future in futures)
    house.close()


def test_a_storm_of_cancellations_leaves_nothing_behind(house: House) -> None:
    """Callers on four threads who leave at any moment: while loading, waiting, running, or after the answer."""

    def calls(seed: int) -> Counter[str]:
        dice, seen = random.Random(seed), Counter[str]()
        for _ in range(100):
            try:
                future = house.submit(seed, task=str(dice.randrange(8)))
            except QueueFull:
                seen["refused"] += 1
                continue
            time.sleep(dice.choice([0, 0, 0.0005, 0.002]))
            if future.cancel():
                seen["left"] += 1
            else:
                assert future.result(WAIT).logits[0] == seed
                seen["answered"] += 1
        return seen

    with ThreadPoolExecutor(4) as pool:
        seen = sum(pool.map(calls, range(4)), Counter[str]())
    assert seen.total() == 400
    assert seen["left"] > 0
    assert wait_for(lambda: (house.engine.queued_rows, house.engine.room.ready) == (0, 0))
    assert wait_for(lambda: house.bank.stats().pinned == 0)
    assert house.submit(9).result(WAIT).logits[0] == 9


def test_rows_that_wait_for_loads_leave_room_for_others(house: House) -> None:
    house.submit(1).result(WAIT)
    gate = threading.Event()
    cold = [
        house.submit(1, task="4", load=lambda: house.packs["4"] if gate.wait(WAIT) else house.packs["5"], seconds=1000)
        for _ in range(15)
    ]
    with pytest.raises(QueueFull, match="15 rows wait for adapters to be loaded") as caught:
        house.submit(1, task="4", seconds=1000)
    assert caught.value.facts["reason"] == "loads"
    assert house.submit(3).result(WAIT).logits[0] == 3
    gate.set()
    assert all(future.result(WAIT) for future in cold)


def test_a_slow_load_delays_nobody_else(house: House) -> None:
    gate = threading.Event()
    house.submit(1, task="1").result(WAIT)

    def slow() -> PackedAdapter:
        assert gate.wait(WAIT)
        return house.packs["2"]

    cold = house.submit(2, task="2", load=slow)
    assert [house.submit(v, task="1").result(WAIT).logits[0] for v in range(10)] == list(range(10))
    assert not cold.done()
    gate.set()
    assert cold.result(WAIT).logits[0] == 2


def test_a_broken_adapter_fails_its_own_requests_only(house: House) -> None:
    def broken() -> PackedAdapter:
        raise BrokenAdapter("bits rotted")

    bad, good = house.submit(1, task="5", load=broken), house.submit(2, task="1")
    with pytest.raises(BrokenAdapter, match="bits rotted"):
        bad.result(WAIT)
    assert good.result(WAIT).logits[0] == 2
    assert house.engine.queued_rows == 0
