"""Health: did the device compute something lately? If not, ask it to, and wait no longer than a bound.

It knows the engine; it does not know HTTP. A batch of anybody's rows is as good a proof as a probe.
"""

from __future__ import annotations

import asyncio
import time

import numpy as np

from adapters.config import Size
from adapters.errors import AdaptError
from adapters.media import Pixels
from service.engine.batch import BatchReport
from service.engine.engine import Engine
from service.errors import DeadlineExceeded, Draining, NotReady
from service.pool import heard

POLL_S = 0.1
"""How often a probe that waits behind a slow batch looks whether that one gets on."""


class Health:
    """``check`` returns the age of the last good forward pass in seconds, or raises NotReady or Draining.

    A batch that has run for long is no fault while block after block is computed: a slow device is ready.
    """

    def __init__(self, input_size: Size, *, fresh_s: float, timeout_s: float, frames: int = 1) -> None:
        """``frames``: rows of a probe, which a backbone of clips sees together."""
        self._size, self._fresh_s, self._timeout_s, self._frames = input_size, fresh_s, timeout_s, frames
        self._last_good: float | None = None
        self._suspect = False  # the latest forward pass failed: whatever came before proves nothing
        self._probe: asyncio.Task[None] | None = None

    def saw(self, report: BatchReport) -> None:
        """A batch ended; on the engine's thread."""
        self._suspect = report.failed
        if not report.failed:
            self._last_good = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the last good forward pass; infinite before the first."""
        return float("inf") if self._last_good is None else time.monotonic() - self._last_good

    def ready(self, engine: Engine) -> bool:
        """Whether a forward pass lately succeeded, or got on and is under way; and the latest one did not fail."""
        gets_on = engine.busy_s > 0 and time.monotonic() - engine.last_step() <= self._fresh_s
        return (self.age <= self._fresh_s or gets_on) and not self._suspect

    def ask(self, engine: Engine, timeout_s: float) -> None:
        """One real forward; blocks. Raises what it raised, or TimeoutError."""
        probe = engine.probe(self._blank(), time.monotonic() + timeout_s)
        try:
            probe.result(timeout_s)
        finally:
            probe.cancel()

    async def check(self, engine: Engine) -> float:
        """Probe unless the device is known to be ready. All who ask while a probe runs share it and its outcome."""
        if self.ready(engine):
            return self.age
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._ask_within(engine))
            self._probe.add_done_callback(heard)
        try:
            await asyncio.shield(self._probe)
        except AdaptError as error:
            raise error.copy() from None
        return self.age

    async def _ask_within(self, engine: Engine) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._ask(engine)
        except Draining:
            raise
        except (TimeoutError, DeadlineExceeded) as error:
            raise NotReady(
                f"the device has not answered within {self._timeout_s:g} s; look at the server's log",
                limit=self._timeout_s,
            ) from error
        except AdaptError as error:
            raise NotReady(f"the device does not compute: {error.message}") from error

    async def _ask(self, engine: Engine) -> None:
        """Until the probe has its answer, or the batch before it is seen to get on."""
        probe = asyncio.wrap_future(engine.probe(self._blank(), time.monotonic() + self._timeout_s))
        try:
            while not probe.done():
                await asyncio.wait({probe}, timeout=POLL_S)
                if self.ready(engine):
                    return
            probe.result()
        finally:
            probe.cancel()

    def _blank(self) -> Pixels:
        return np.zeros((self._frames, 3, *self._size), np.uint8)
