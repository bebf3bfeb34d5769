"""The pool: bounded, counted exactly, and nothing that was cancelled or has failed is kept."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import BadRequest, Draining, QueueFull
from service.pool import Pool
from tests.houses import WAIT, until


class Body(bytearray):
    """Bytes that can be watched."""


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool("test", workers=2, max_waiting=80, setting="max_jobs")
    yield made
    made.close()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """What must be gone must be gone without the collector of cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def occupy(pool: Pool, gate: threading.Event) -> list[Future[bool]]:
    running = [threading.Event() for _ in range(2)]

    def work(number: int) -> bool:
        running[number].set()
        return gate.wait(WAIT)

    futures = [pool.submit(lambda number=number: work(number)) for number in range(2)]  # type: ignore[misc]
    assert all(event.wait(WAIT) for event in running)
    return futures


@pytest.mark.usefixtures("uncollected")
def test_cancelled_jobs_are_gone_at_once_with_what_they_hold(pool: Pool) -> None:
    gate = threading.Event()
    occupy(pool, gate)
    bodies = []
    for turn in range(3):  # more than the queue holds, if places were not given back
        waiting = []
        for _ in range(80):
            body = Body(1000)
            bodies.append(weakref.ref(body))
            waiting.append(pool.submit(lambda body=body: len(body)))  # type: ignore[misc]
            del body
        assert pool.held == 82, turn
        with pytest.raises(QueueFull, match="82 jobs are at the test workers, the limit is 82"):
            pool.submit(lambda: 0)
        assert all(future.cancel() for future in waiting)
        assert pool.held == 2
        assert [ref() for ref in bodies if ref() is not None] == []
    gate.set()
    assert pool.submit(lambda: 7).result(WAIT) == 7
    assert until(lambda: pool.held == 0)


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("kind", [None, BadRequest, ValueError])
def test_jobs_that_ended_hold_nothing(pool: Pool, kind: type[Exception] | None) -> None:
    body = Body(1000)
    gone = weakref.ref(body)

    def work(body: Body) -> int:
        if kind is not None:
            raise kind("no")
        return len(body)

    future: Future[int] | None = pool.submit(lambda body=body: work(body))  # type: ignore[misc]
    del body
    assert future is not None
    assert until(future.done)
    if kind is ValueError:
        future = None  # a foreign error keeps its traceback for the log, for as long as it lives itself
    assert until(lambda: gone() is None)
    assert pool.held == 0


def test_whoever_leaves_a_running_job_gets_its_place_back_when_it_ends(pool: Pool) -> None:
    gate = threading.Event()
    running = occupy(pool, gate)
    assert not any(future.cancel() for future in running)
    assert pool.held == 2
    gate.set()
    assert until(lambda: pool.held == 0)


def test_a_closed_pool_refuses_and_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.pool.CLOSE_S", 0.05)
    pool, gate = Pool("test", workers=2, max_waiting=4, setting="max_jobs"), threading.Event()
    running = occupy(pool, gate)
    waiting = pool.submit(lambda: True)
    pool.close()
    assert waiting.cancelled()
    assert pool.alive
    with pytest.raises(Draining, match="stopping"):
        pool.submit(lambda: True)
    gate.set()
    assert all(future.result(WAIT) for future in running)
    assert until(lambda: not pool.alive)


def test_closing_ends_what_is_there() -> None:
    pool = Pool("test", workers=1, max_waiting=10, setting="max_jobs")
    futures = [pool.submit(lambda number=number: number) for number in range(10)]  # type: ignore[misc]
    pool.close()
    assert [future.result(0) for future in futures] == list(range(10))
    assert not pool.alive


@given(st.lists(st.tuples(st.sampled_from(["submit", "cancel", "open", "shut"]), st.integers(0, 20)), max_size=40))
@settings(max_examples=30, deadline=None)
def test_counts_are_exact_whatever_callers_do(moves: list[tuple[str, int]]) -> None:
    pool, gate, jobs = (
        Pool("test", workers=2, max_waiting=3, setting="max_jobs"),
        threading.Event(),
        list[Future[bool]](),
    )
    try:
        for kind, number in moves:
            if kind == "submit":
                try:
                    jobs.append(pool.submit(lambda: gate.wait(WAIT)))
                except QueueFull:
                    assert pool.held == 5 or gate.is_set() or sum(not job.done() for job in jobs) <= 5
            elif kind == "cancel" and jobs:
                jobs[number % len(jobs)].cancel()
            elif kind == "open":
                gate.set()
            elif kind == "shut":
                gate.clear()
            assert 0 <= pool.held <= 5
        gate.set()
        assert until(lambda: pool.held == 0)
        assert all(job.cancelled() or job.result(0) for job in jobs)
    finally:
        gate.set()
        pool.close()
