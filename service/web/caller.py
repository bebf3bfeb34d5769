"""Caller: how long somebody waits for an answer, whether they still do, and for whom it counts.

It knows futures and the monotonic clock; it does not know HTTP, and what is computed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Generic, TypeVar

from service.errors import ClientGone, DeadlineExceeded, Draining
from service.messages import NOBODY, Asker

T = TypeVar("T")


class _Race(Generic[T]):
    """One wake-up for some futures: ``over`` has the number of the first that failed, or of the last of all.

    None: it was given up. It holds no future: they keep what they call for ever, and would be a ring that holds pixels
    until it is collected.
    """

    def __init__(self, futures: Sequence[Future[T] | asyncio.Future[T]]) -> None:
        self.loop, self._missing = asyncio.get_running_loop(), len(futures)
        self.over: asyncio.Future[int | None] = self.loop.create_future()
        for number, future in enumerate(futures):
            if isinstance(future, Future):
                future.add_done_callback(partial(self._ended_elsewhere, number))
            else:
                future.add_done_callback(partial(self._ended, number))

    def give_up(self, _: object = None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def _ended(self, number: int, future: Future[T] | asyncio.Future[T]) -> None:
        self._missing -= 1
        wrong = future.cancelled() or future.exception() is not None  # looked at, or asyncio logs it as lost
        if not self.over.done() and (wrong or not self._missing):
            self.over.set_result(number)

    def _ended_elsewhere(self, number: int, future: Future[T]) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._ended, number, future)


def _cancel(futures: Sequence[Future[T] | asyncio.Future[T]]) -> None:
    for future in futures:
        future.cancel()


class Caller:
    """Waits for futures until the deadline or until the client leaves; what is not wanted any more is cancelled.

    The time runs from the construction, or from ``restart``. ``asker`` is for whom the engine computes.
    """

    def __init__(self, seconds: float, asker: Asker = NOBODY) -> None:
        self.seconds, self.asker = seconds, asker
        self._made = time.monotonic()
        self.deadline = self._made + seconds
        self._gone: asyncio.Future[None] | None = None

    def restart(self) -> None:
        """Let the whole time begin now: what was asked for has only just come."""
        self.deadline = time.monotonic() + self.seconds

    def watch(self, gone: asyncio.Future[None]) -> None:
        """Heed ``gone``, which is done when the client has left."""
        self._gone = gone

    @property
    def left(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def spent(self) -> float:
        """Seconds since the construction."""
        return time.monotonic() - self._made

    async def wait(self, futures: Sequence[Future[T] | asyncio.Future[T]], doing: str) -> list[T]:
        """All results, in order; the first error of any. Raises DeadlineExceeded or ClientGone and cancels all."""
        race = _Race(futures)
        timer = race.loop.call_later(self.left, race.give_up)
        if self._gone is not None:
            self._gone.add_done_callback(race.give_up)
        try:
            number = await race.over
            if number is None:
                raise self._nobody(doing)
            if futures[number].cancelled():
                raise Draining("the server is stopping and does no more for this request; try another one")
            futures[number].result()  # raises, if it is not the last of all
            return [future.result() for future in futures]
        finally:
            timer.cancel()
            if self._gone is not None:
                self._gone.remove_done_callback(race.give_up)
            _cancel(futures)
            del futures  # the traceback of an error holds this frame, and one of them the error

    def _nobody(self, doing: str) -> ClientGone | DeadlineExceeded:
        if self._gone is not None and self._gone.done():
            return ClientGone(f"the client left while the server was {doing}")
        return self.too_late(doing)

    def too_late(self, doing: str) -> DeadlineExceeded:
        """The error for a deadline that passed while the server was ``doing`` something."""
        return DeadlineExceeded(
            f"the deadline of {self.seconds:g} s passed while the server was {doing}; "
            "ask again later, or allow more time with the header X-Deadline-Ms",
            field="X-Deadline-Ms", limit=self.seconds,
        )  # fmt: skip
