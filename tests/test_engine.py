"""Every ticket ends in an answer or a typed error: in mixes, failures, cancellations, overload and stops.

Most tests use a stand-in for the forward pass, so that they can say exactly when it runs and what it raises.
"""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adapters.bank import PAGE, Bank, PackedAdapter, Slabs, pack
from adapters.config import SiteConfig
from adapters.errors import AdaptError, BrokenAdapter, BrokenMedia, MediaTooLarge
from adapters.forward.banked import BankedForward, Job
from service.engine.engine import BatchReport, Engine
from service.engine.interface import Answer
from service.errors import BadScores, ComputeFailed, DeadlineExceeded, Draining, QueueFull
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


def test_an_answer_carries_its_own_logits_and_times(house: House) -> None:
    answer = house.submit(7).result(WAIT)
    assert answer.logits[0] == 7
    assert answer.batch_rows == 1
    assert answer.queue_s >= 0
    assert answer.compute_s >= 0


def test_what_waits_shares_one_batch(house: House) -> None:
    first = house.hold()
    futures = [house.submit(v, task=str(v % 3)) for v in range(1, 7)]
    wait_for(lambda: house.engine._scheduler.waiting_rows == 6)
    house.forward.gate.set()
    assert [f.result(WAIT).logits[0] for f in futures] == [1, 2, 3, 4, 5, 6]
    assert first.result(WAIT).batch_rows == 1
    assert len(house.forward.batches) == 2
    assert wait_for(lambda: len(house.reports) == 2)
    assert house.reports[1] == BatchReport(6, 3, house.reports[1].compute_s, False, {"": 6})
    assert house.bank.stats().pinned == 0


def test_a_full_queue_refuses_and_says_when_to_come_back(house: House) -> None:
    house.hold()
    kept = [house.submit(1) for _ in range(19)]
    with pytest.raises(QueueFull, match="holds 20 rows, the limit is 20") as caught:
        house.submit(2)
    assert caught.value.retry_after > 0
    house.forward.gate.set()
    assert all(f.result(WAIT) for f in kept)
    assert house.submit(3).result(WAIT).logits[0] == 3


def test_a_late_ticket_gets_its_error_and_is_not_computed(house: House) -> None:
    house.hold()
    late = house.submit(5, seconds=-1.0)
    fine = house.submit(6)
    house.forward.gate.set()
    with pytest.raises(DeadlineExceeded, match="past the deadline"):
        late.result(WAIT)
    assert fine.result(WAIT).logits[0] == 6
    assert 5 not in [v for batch in house.forward.batches for v in batch]


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


@pytest.mark.parametrize(("rows", "kind"), [(9, MediaTooLarge), (0, BrokenMedia), (1000, MediaTooLarge)])
def test_rows_that_fit_no_batch_are_refused_at_once(house: House, rows: int, kind: type[AdaptError]) -> None:
    with pytest.raises(kind, match="frames"):
        house.submit(1, rows=rows)
    with pytest.raises(kind, match="frames"):
        house.engine.probe(np.zeros((rows, 3, 2, 2), np.uint8), time.monotonic() + WAIT)
    assert house.engine.queued_rows == 0
    assert house.bank.stats().pinned == 0
    assert house.submit(2, rows=8).result(WAIT).logits[0] == 2


def test_an_error_of_the_scheduler_reaches_its_caller_and_leaks_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.submit(1).result(WAIT)

    def broken(_: object) -> None:
        raise ValueError("no")

    with monkeypatch.context() as patch:
        patch.setattr(house.engine._scheduler, "add", broken)
        for future in (house.submit(1), house.submit(2, task="5")):
            with pytest.raises(ComputeFailed, match="queueing the rows failed: ValueError"):
                future.result(WAIT)
    assert (house.engine.queued_rows, house.engine.room.ready) == (0, 0)
    assert house.bank.stats().pinned == 0
    assert house.submit(2).result(WAIT).logits[0] == 2


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


def test_a_stop_does_not_wait_for_a_device_that_hangs(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.engine.CLOSE_S", 0.05)
    running = house.hold()
    house.engine.close()
    assert house.engine.alive
    with pytest.raises(Draining):
        running.result(WAIT)
    assert house.bank.stats().pinned == 1  # the device may still read it
    house.forward.gate.set()
    assert wait_for(lambda: not house.engine.alive)
    assert house.bank.stats().pinned == 0


def test_a_batch_tells_how_long_it_has_run(house: House) -> None:
    assert house.engine.busy_s == 0.0
    house.hold()
    assert wait_for(lambda: house.engine.busy_s > 0.02)
    house.forward.gate.set()
    assert wait_for(lambda: house.engine.busy_s == 0.0)


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


def test_a_failing_batch_is_tried_again_one_by_one(house: House) -> None:
    house.forward.poison = {3}
    house.hold()
    futures = [house.submit(v) for v in (1, 2, 3, 4)]
    wait_for(lambda: house.engine._scheduler.waiting_rows == 4)
    house.forward.gate.set()
    assert [futures[i].result(WAIT).logits[0] for i in (0, 1, 3)] == [1, 2, 4]
    with pytest.raises(ComputeFailed, match="RuntimeError"):
        futures[2].result(WAIT)
    assert house.submit(9).result(WAIT).logits[0] == 9
    assert wait_for(lambda: house.bank.stats().pinned == 0)


def test_scores_that_are_not_numbers_are_an_error_of_that_task_alone(house: House) -> None:
    house.forward.bad = {2}
    house.hold()
    bad, good = house.submit(2), house.submit(3)
    house.forward.gate.set()
    with pytest.raises(BadScores, match="not finite"):
        bad.result(WAIT)
    assert good.result(WAIT).logits[0] == 3


def test_a_stop_answers_everybody(house: House) -> None:
    running = house.hold()
    waiting = [house.submit(v) for v in (1, 2)]
    stopper = threading.Thread(target=house.engine.close)
    stopper.start()
    wait_for(lambda: not house.engine._running)
    house.forward.gate.set()
    stopper.join(WAIT)
    assert running.result(WAIT).logits[0] == 0
    for future in waiting:
        with pytest.raises(Draining):
            future.result(WAIT)
    with pytest.raises(Draining):
        house.submit(3)


def test_draining_finishes_what_was_accepted(house: House) -> None:
    house.hold()
    waiting = [house.submit(v) for v in (1, 2, 3)]
    assert not house.engine.drain(0.0)
    house.forward.gate.set()
    assert house.engine.drain(WAIT)
    assert [f.result(WAIT).logits[0] for f in waiting] == [1, 2, 3]


def test_a_probe_is_a_real_forward_without_an_adapter(house: House) -> None:
    answer = house.engine.probe(np.zeros((1, 3, 2, 2), np.uint8), time.monotonic() + WAIT).result(WAIT)
    assert answer.logits[1] == 0


def test_the_real_forward_in_a_real_engine(tmp_path: Path) -> None:
    house = House(tmp_path / "vit")
    house.engine = house.make(BankedForward(house.backbone, house.slabs))
    house.engine.start()
    pixels = [torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).numpy() for _ in range(12)]
    deadline = time.monotonic() + WAIT
    futures = [
        house.engine.submit(str(i % 6), str(i % 6), lambda i=i: house.packs[str(i % 6)], p, deadline)
        for i, p in enumerate(pixels)
    ]
    slabs = Slabs(house.backbone.layout, slots=1, rank=8, pages=1, dtype=torch.float32, device=torch.device("cpu"))
    answers = [f.result(WAIT).logits for f in futures]
    house.close()
    alone = BankedForward(house.backbone, slabs)
    for i, (p, found) in enumerate(zip(pixels, answers, strict=True)):
        slabs.write(1, [1], house.packs[str(i % 6)])
        expected = alone([Job(p, 1, (1,), house.packs[str(i % 6)].meta)])[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert PAGE >= 3


def wait_for(condition: Callable[[], bool]) -> bool:
    """Poll until true; the engine has no event for every inner state a test wants to see."""
    end = time.monotonic() + WAIT
    pause = threading.Event()
    while not condition() and time.monotonic() < end:
        pause.wait(0.002)
    return condition()
