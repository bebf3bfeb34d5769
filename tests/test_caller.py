"""Waiting: results, deadlines and clients that leave, on futures alone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from concurrent.futures import Future

import pytest

from service.errors import ClientGone, DeadlineExceeded, Draining
from service.web.caller import Caller


def waited(seconds: float, futures: list[Future[int]], leave: bool = False) -> list[int]:
    async def run() -> list[int]:
        caller = Caller(seconds)
        if leave:
            caller.watch(asyncio.ensure_future(asyncio.sleep(0)))
        try:
            return await caller.wait(futures, "testing")
        finally:
            await asyncio.sleep(0)

    return asyncio.run(run())


def done(value: int) -> Future[int]:
    future: Future[int] = Future()
    future.set_result(value)
    return future


def test_results_come_in_order() -> None:
    assert waited(10, [done(1), done(2)]) == [1, 2]


@pytest.mark.parametrize(("leave", "error"), [(False, DeadlineExceeded), (True, ClientGone)])
def test_a_wait_given_up_cancels_and_leaves_no_noise(
    leave: bool, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    futures = [done(1), Future[int]()]
    with pytest.raises(error, match="testing"):
        waited(60 if leave else 0.01, futures, leave)
    gc.collect()  # asyncio logs what nobody looked at when it is collected
    assert futures[1].cancelled()
    assert caplog.records == []


def test_the_first_error_is_raised_and_the_rest_cancelled() -> None:
    broken, waiting = Future[int](), Future[int]()
    broken.set_exception(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        waited(10, [broken, waiting])
    assert waiting.cancelled()


def test_a_job_that_was_dropped_is_an_error_with_a_type() -> None:
    dropped = Future[int]()
    dropped.cancel()
    with pytest.raises(Draining, match="stopping"):
        waited(10, [dropped])


class Pixels:
    """What a result is, as far as memory goes."""


@pytest.mark.parametrize("fails", [False, True])
def test_a_result_is_held_by_nobody_after_the_wait(fails: bool) -> None:
    """Without a collection: there is room for so many pixels, and a collection may be long in coming."""
    held = weakref.WeakSet[Pixels]()

    async def run() -> None:
        done, broken = Future[Pixels](), Future[Pixels]()
        pixels = Pixels()
        held.add(pixels)
        done.set_result(pixels)
        broken.set_exception(ValueError("broken"))
        given = [[done, broken] if fails else [done]]
        del done, broken, pixels
        with contextlib.suppress(ValueError):
            await Caller(10).wait(given.pop(), "testing")

    gc.collect()
    gc.disable()
    try:
        asyncio.run(run())
        assert len(held) == 0
    finally:
        gc.enable()


def test_results_of_threads_and_of_the_loop_come_together() -> None:
    async def run() -> list[int]:
        loop, other = asyncio.get_running_loop(), Future[int]()
        own: asyncio.Future[int] = loop.create_future()
        threading.Timer(0.01, other.set_result, [1]).start()
        loop.call_later(0.005, own.set_result, 2)
        return await Caller(10).wait([other, own], "testing")

    assert asyncio.run(run()) == [1, 2]


def test_who_has_left_before_is_heard_of_at_once() -> None:
    async def run() -> None:
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        gone.set_result(None)
        caller = Caller(60)
        caller.watch(gone)
        await caller.wait([Future[int]()], "testing")

    with pytest.raises(ClientGone):
        asyncio.run(run())
