"""A device that computes by itself: the next batch is laid out meanwhile, if it is full, and failures stay apart."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from adapters.forward.banked import BankedForward, Job
from service.engine.engine import Engine
from service.engine.interface import Answer
from service.errors import ComputeFailed, Draining
from tests.devices import StandIn
from tests.engines import WAIT, House, wait_for


@dataclass
class Laid:
    """A batch in one of two buffers, as pinned memory is: the batch after the next one overwrites it."""

    buffer: list[int]
    values: list[int]


class ByItself:
    """Answers each job with its first pixel, once the gate is open; what is called when is in ``calls``."""

    overlaps = True

    def __init__(self) -> None:
        self.gate, self.entered = threading.Event(), threading.Event()
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.bad: dict[str, set[int]] = {"prepare": set(), "run": set(), "result": set()}
        self._buffers, self._turn = ([], []), 0

    def prepare(self, jobs: Sequence[Job]) -> Laid:
        self._turn ^= 1
        buffer, values = self._buffers[self._turn], [int(job.pixels.flatten()[0]) for job in jobs]
        buffer[:] = values
        self._note("prepare", values)
        return Laid(buffer, values)

    def run(self, laid: Laid) -> Running:
        self._note("run", laid.values)
        assert laid.buffer == laid.values, "overwritten by another batch"
        return Running(self, laid)

    def __call__(self, jobs: Sequence[Job]) -> list[NDArray[np.float32]]:
        raise AssertionError("the device is not waited for")

    def _note(self, call: str, values: Sequence[int]) -> None:
        self.calls.append((call, tuple(values)))
        if self.bad[call] & set(values):
            raise RuntimeError(f"{call} failed")


@dataclass
class Running:
    """Blocks on the gate, as on an event of the device."""

    forward: ByItself
    laid: Laid

    def result(self) -> list[NDArray[np.float32]]:
        self.forward.entered.set()
        assert self.forward.gate.wait(WAIT)
        self.forward._note("result", self.laid.values)
        return [np.array([value, 0], np.float32) for value in self.laid.buffer]

    def vectors(self) -> dict[int, NDArray[np.float32]]:
        return {}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "vit")
    made.forward = ByItself()  # type: ignore[assignment]
    made.engine = made.make(made.forward)
    made.bank.acquire("1", lambda: made.packs["1"], time.monotonic() + WAIT, WAIT).result(WAIT).release()
    yield made
    made.close()


def lay_out(house: House, values: Sequence[int]) -> tuple[ByItself, list[Future[Answer]]]:
    """Everything waits before the engine starts; a batch holds 8. Returns once the first one computes."""
    futures = [house.submit(value) for value in values]
    assert wait_for(lambda: house.engine._scheduler.waiting_rows == len(values))
    house.forward.gate.clear()
    house.engine.start()
    assert house.forward.entered.wait(WAIT)
    return house.forward, futures  # type: ignore[return-value]


FIRST, SECOND = tuple(range(1, 9)), tuple(range(11, 19))


def test_a_full_batch_is_laid_out_while_another_one_computes(house: House) -> None:
    forward, futures = lay_out(house, [*FIRST, *SECOND])
    assert forward.calls == [("prepare", FIRST), ("run", FIRST), ("prepare", SECOND)]
    assert house.engine.queued_rows == 16
    assert house.engine.busy_s > 0
    forward.gate.set()
    assert [f.result(WAIT).logits[0] for f in futures] == [*FIRST, *SECOND]
    assert forward.calls[3:] == [("result", FIRST), ("run", SECOND), ("result", SECOND)]
    assert wait_for(lambda: len(house.reports) == 2)
    assert [(report.rows, report.failed) for report in house.reports] == [(8, False)] * 2
    assert house.engine.drain(WAIT)
    assert (house.engine.queued_rows, house.engine.room.ready, house.engine.busy_s) == (0, 0, 0)
    assert wait_for(lambda: house.bank.stats().pinned == 0)


def test_a_batch_that_may_become_fuller_waits(house: House) -> None:
    forward, futures = lay_out(house, [*FIRST, 11, 12])
    late = house.submit(13)
    assert forward.calls == [("prepare", FIRST), ("run", FIRST)]
    forward.gate.set()
    assert [f.result(WAIT).logits[0] for f in (*futures, late)] == [*FIRST, 11, 12, 13]
    assert forward.calls[3] == ("prepare", (11, 12, 13))


@pytest.mark.parametrize("step", ["run", "result"])
def test_a_failure_touches_only_its_own_batch(house: House, step: str) -> None:
    house.forward.bad[step] = {3}  # type: ignore[attr-defined]
    futures = [house.submit(value) for value in (*FIRST, *SECOND)]
    house.forward.gate.set()
    house.engine.start()
    with pytest.raises(ComputeFailed):
        futures[2].result(WAIT)
    others = [future for future in futures if future is not futures[2]]
    assert [f.result(WAIT).logits[0] for f in others] == [v for v in (*FIRST, *SECOND) if v != 3]
    assert house.forward.calls.count(("run", SECOND)) == 1  # type: ignore[attr-defined]
    assert wait_for(lambda: len(house.reports) == 1 + 8 + 1)
    assert [r.rows for r in house.reports if r.failed] == [8, 1]
    assert house.engine.last_failure == f"RuntimeError: {step} failed"
    assert house.engine.busy_s == 0


def test_a_batch_that_cannot_be_laid_out_fails_in_its_own_turn(house: House) -> None:
    house.forward.bad["prepare"] = {13}  # type: ignore[attr-defined]
    forward, futures = lay_out(house, [*FIRST, *SECOND])
    assert forward.calls[-1] == ("prepare", SECOND)
    assert not house.reports
    forward.gate.set()
    with pytest.raises(ComputeFailed):
        futures[10].result(WAIT)
    others = [future for future in futures if future is not futures[10]]
    assert [f.result(WAIT).logits[0] for f in others] == [v for v in (*FIRST, *SECOND) if v != 13]
    assert [r.rows for r in house.reports if r.failed] == [8, 1]


def test_a_close_refuses_what_is_only_laid_out(house: House) -> None:
    forward, futures = lay_out(house, [*FIRST, *SECOND, 21])
    closing = threading.Thread(target=house.engine.close)
    closing.start()
    assert wait_for(lambda: not house.engine._running)
    forward.gate.set()
    closing.join(WAIT)
    assert not house.engine.alive
    assert [f.result(WAIT).logits[0] for f in futures[:8]] == [*FIRST]
    for future in futures[8:]:
        with pytest.raises(Draining):
            future.result(WAIT)
    assert ("run", SECOND) not in forward.calls
    assert (house.engine.queued_rows, house.bank.stats().pinned) == (0, 0)


def test_a_stop_does_not_wait_for_a_device_that_hangs_with_two_batches(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.engine.CLOSE_S", 0.05)
    forward, futures = lay_out(house, [*FIRST, *SECOND])
    house.engine.close()
    assert house.engine.alive
    for future in futures:
        with pytest.raises(Draining):
            future.result(WAIT)
    assert house.bank.stats().pinned == 1  # the device may still read it
    forward.gate.set()
    assert wait_for(lambda: not house.engine.alive)
    assert (house.engine.queued_rows, house.bank.stats().pinned) == (0, 0)


def test_a_drain_waits_for_both(house: House) -> None:
    forward, futures = lay_out(house, [*FIRST, *SECOND])
    assert not house.engine.drain(0.0)
    forward.gate.set()
    assert house.engine.drain(WAIT)
    assert all(future.done() for future in futures)


def test_batches_that_overlap_on_a_device_answer_as_alone(tmp_path: Path) -> None:
    """The real forward on a stand-in for CUDA: pinned memory in turns, graphs, streams."""
    made = House(tmp_path / "vit")
    device = StandIn()
    forward, alone = BankedForward(made.backbone, made.slabs, device=device), BankedForward(made.backbone, made.slabs)
    assert forward.overlaps
    assert not alone.overlaps
    made.engine = Engine(forward, made.bank, max_batch_rows=4, max_queue_rows=100, on_batch=made.reports.append)
    pictures = np.random.default_rng(0).integers(0, 256, (40, 1, 3, 32, 32), np.uint8)
    futures = [
        made.engine.submit(str(i % 3), str(i % 3), lambda i=i: made.packs[str(i % 3)], pixels, time.monotonic() + WAIT)  # type: ignore[misc]
        for i, pixels in enumerate(pictures)
    ]
    assert wait_for(lambda: made.engine._scheduler.waiting_rows == 40)
    made.engine.start()
    found = [future.result(WAIT).logits for future in futures]
    assert len(made.reports) == 10
    for i, logits in enumerate(found):
        lease = made.bank.pin(str(i % 3))
        assert lease is not None
        expected = alone([Job(pictures[i], lease.slot, lease.pages, lease.meta)])[0]
        lease.release()
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=2e-4)
    made.close()
