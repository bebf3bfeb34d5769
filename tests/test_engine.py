"""Every ticket ends in an answer or a typed error: in mixes, failures, overload and stops."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters.bank import PAGE, Slabs
from adapters.errors import AdaptError, BrokenMedia, MediaTooLarge
from adapters.forward.banked import BankedForward, Job
from service.engine.engine import BatchReport
from service.errors import BadScores, ComputeFailed, DeadlineExceeded, Draining, QueueFull
from tests.engines import WAIT, House, house, wait_for

__all__ = ["house"]


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
