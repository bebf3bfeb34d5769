"""Health: did the device compute something lately? If not, ask it to, and wait no longer than a bound.

It knows the engine; it does not know HTTP. A batch of anybody's rows is as good a proof as a probe.
"""

from __future__ import annotations

import asyncio
import time

import torch

from adapters.errors import AdaptError
from service.engine import BatchReport, Engine
from service.errors import DeadlineExceeded, Draining, NotReady
from service.serving.caller import Caller


class Health:
    """``check`` returns the age of the last good forward pass in seconds, or raises NotReady or Draining."""

    def __init__(self, input_size: int, *, fresh_s: float, timeout_s: float) -> None:
        self._size, self._fresh_s, self._timeout_s = input_size, fresh_s, timeout_s
        self._last_good: float | None = None
        self._suspect = False  # the latest forward pass failed: whatever came before proves nothing
        self._probing = asyncio.Lock()

    def saw(self, report: BatchReport) -> None:
        """A batch ended; on the engine's thread."""
        self._suspect = report.failed
        if not report.failed:
            self._last_good = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the last good forward pass; infinite before the first."""
        return float("inf") if self._last_good is None else time.monotonic() - self._last_good

    @property
    def fresh(self) -> bool:
        return self.age <= self._fresh_s and not self._suspect

    def ask(self, engine: Engine, timeout_s: float) -> None:
        """One real forward; blocks. Raises what it raised, or TimeoutError."""
        probe = engine.probe(self._blank(), time.monotonic() + timeout_s)
        try:
            probe.result(timeout_s)
        finally:
            probe.cancel()

    async def check(self, engine: Engine) -> float:
        """Probe unless a forward succeeded lately; callers at the same time share one probe."""
        async with self._probing:
            if self.fresh:
                return self.age
            async with Caller(self._timeout_s) as caller:
                try:
                    await caller.wait([engine.probe(self._blank(), caller.deadline)], "computing")
                except Draining:
                    raise
                except DeadlineExceeded as error:
                    raise NotReady(
                        f"the device has not answered within {self._timeout_s:g} s; look at the server's log",
                        limit=self._timeout_s,
                    ) from error
                except AdaptError as error:
                    raise NotReady(f"the device does not compute: {error.message}") from error
            return self.age

    def _blank(self) -> torch.Tensor:
        return torch.zeros(1, 3, self._size, self._size, dtype=torch.uint8)
