"""Caller: how long somebody waits for an answer, and whether they still do.

It knows futures and the monotonic clock; it does not know HTTP, and what is computed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from service.errors import ClientGone, DeadlineExceeded
from service.pool import heard

T = TypeVar("T")


class Caller:
    """Waits for futures until the deadline or until the client leaves; what is not wanted any more is cancelled.

    The time runs from the construction, or from ``restart``. Use it as ``async with``, so that the watch for the client
    ends too.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._made = time.monotonic()
        self.deadline = self._made + seconds
        self._task: asyncio.Task[None] | None = None

    def restart(self) -> None:
        """Let the whole time begin now: what was asked for has only just come."""
        self.deadline = time.monotonic() + self.seconds

    def watch(self, gone: Coroutine[Any, Any, None]) -> None:
        """Heed ``gone``, which returns when the client has left."""
        self._task = asyncio.ensure_future(gone)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()

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
        waiting = [asyncio.wrap_future(future) for future in futures]
        everything = asyncio.gather(*waiting)
        everything.add_done_callback(heard)
        race: set[asyncio.Future[Any]] = {everything}
        if self._task is not None:
            race.add(self._task)
        try:
            await asyncio.wait(race, timeout=self.left, return_when=asyncio.FIRST_COMPLETED)
            if everything.done():
                return list(everything.result())
            if self._task is not None and self._task.done():
                raise ClientGone(f"the client left while the server was {doing}")
            raise self.too_late(doing)
        finally:
            everything.cancel()
            for future in waiting:
                future.cancel()

    def too_late(self, doing: str) -> DeadlineExceeded:
        """The error for a deadline that passed while the server was ``doing`` something."""
        return DeadlineExceeded(
            f"the deadline of {self.seconds:g} s passed while the server was {doing}; "
            "ask again later, or allow more time with the header X-Deadline-Ms",
            field="X-Deadline-Ms", limit=self.seconds,
        )  # fmt: skip
