"""The pace of a device: learned under load, never locked in, and what a queue refuses by it."""

from __future__ import annotations

import threading

import pytest

from service.errors import QueueFull
from service.pace import Pace, seconds
from service.pool import Pool
from tests.houses import WAIT, until


def test_nothing_is_known_before_a_batch_was_half_full() -> None:
    pace = Pace(8)
    pace.saw(3, 0.0, 1.0)
    assert seconds(10, pace.rows_per_s) is None
    pace.saw(4, 1.0, 2.0)
    assert seconds(8, pace.rows_per_s) == pytest.approx(2.0)
    assert seconds(0, pace.rows_per_s) == 0


def test_time_without_work_does_not_count() -> None:
    pace = Pace(8)
    pace.saw(8, 0.0, 1.0)
    pace.saw(8, 100.0, 101.0)
    assert seconds(8, pace.rows_per_s) == pytest.approx(1.0)


def test_back_to_back_batches_count_from_end_to_end() -> None:
    pace = Pace(8)
    pace.saw(8, 0.0, 1.0)
    for end in range(2, 50):
        pace.saw(8, 0.0, 2.0 * end - 1)  # all came long ago; each batch takes two seconds
    assert seconds(8, pace.rows_per_s) == pytest.approx(2.0, rel=0.01)


def test_one_stall_is_forgotten_through_small_batches_too() -> None:
    pace = Pace(8)
    pace.saw(8, 0.0, 100.0)
    assert seconds(8, pace.rows_per_s) == pytest.approx(100)
    for i in range(60):  # so few rows are let in now that no batch is ever half full again
        pace.saw(2, 101.0 + i, 101.1 + i)
    assert seconds(8, pace.rows_per_s) < 1


def test_a_pool_refuses_what_would_come_too_late() -> None:
    pool, gate = Pool("test", workers=1, max_waiting=100, setting="max_jobs"), threading.Event()
    try:
        pool.submit(lambda: gate.wait(0.2)).result(WAIT)
        for _ in range(10):
            pool.submit(lambda: gate.wait(WAIT))
        pool.check_room(60)
        with pytest.raises(QueueFull, match="2.0 s") as refused:
            pool.submit(lambda: True, 1.0)
        assert 1.9 < refused.value.retry_after < 2.5
        gate.set()
        assert until(lambda: pool.held == 0)
        assert pool.submit(lambda: True, 1.0).result(WAIT) is True
    finally:
        gate.set()
        pool.close()
