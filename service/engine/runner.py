"""Batches on the device: one computes, and where the device does so by itself, the next is laid out meanwhile.

It decides no order and knows no queue: what follows it asks for, what comes of a ticket it tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from adapters.errors import AdaptError
from adapters.forward.banked import BankedForward, Prepared
from adapters.forward.streams import Job
from service.engine.batch import BatchReport, Work
from service.engine.interface import Answer
from service.engine.room import Room
from service.engine.scheduler import Ticket
from service.errors import BadScores

Logits: TypeAlias = list[NDArray[np.float32]]
Vectors: TypeAlias = dict[int, NDArray[np.float32]]


@dataclass
class Batch:
    """Tickets that are computed together; the rest is there while they are."""

    tickets: Sequence[Ticket[Work]]
    jobs: list[Job] = field(default_factory=list)
    prepared: Prepared | None = None
    logits: Callable[[], Logits] | None = None
    vectors: Callable[[], Vectors] = dict
    begun: float = 0.0


class Runner:
    """Computes one batch after another, on one thread. A batch that fails is its members' failure alone."""

    def __init__(
        self,
        forward: BankedForward,
        *,
        clock: Callable[[], float],
        room: Room,
        on_batch: Callable[[BatchReport], None],
        done: Callable[[Ticket[Work], Answer | AdaptError], None],
        fault: Callable[[BaseException, str], AdaptError],
    ) -> None:
        """``done`` is told what comes of each ticket, ``fault`` what was raised; it says what callers are told."""
        self.forward, self.on_batch = forward, on_batch
        self.begun: float | None = None
        self.rows = 0  # of the batch that has begun
        """When the forward pass that runs now began."""
        self._clock, self._room, self._done, self._fault = clock, room, done, fault
        self._overlaps: bool = getattr(forward, "overlaps", False)

    def run(self, batch: Batch, following: Callable[[], Batch | None]) -> Batch | None:
        """Compute a batch; if that raises, each member once more alone, so that a bad one fails alone.

        ``following`` is asked for the next batch while the device computes this one by itself, and what it gives is
        laid out and returned, to be run next.
        """
        after: Batch | None = None
        failure = self._attempt(self._begin, batch)
        if failure is None:
            after = self._laid_out(following()) if self._overlaps else None
            failure = self._attempt(self._end, batch)
        if failure is None:
            return after
        # The error is gone by now, and with it the traceback that held the failed batch's tensors.
        if after is not None:
            after.prepared = None  # what is laid out now would go where this lies
        for ticket in [t for t in batch.tickets if not t.payload.future.done()]:
            alone = Batch([ticket])
            failure = self._attempt(self._begin, alone) or self._attempt(self._end, alone)
            if failure is not None:
                self._done(ticket, failure)
        return after

    def _laid_out(self, batch: Batch | None) -> Batch | None:
        if batch is None or not batch.tickets:
            return None
        with suppress(Exception):  # its own turn comes, and then it is told
            batch.jobs = _jobs(batch)
            batch.prepared = self.forward.prepare(batch.jobs)
        return batch

    def _attempt(self, step: Callable[[Batch], None], batch: Batch) -> AdaptError | None:
        """Take a step; what the batch's members are told if it raises."""
        try:
            try:
                step(batch)
            except Exception:
                self._ended(batch, failed=True)
                raise
        except Exception as error:
            return self._fault(error, f"the forward pass of {len(batch.tickets)} requests")
        return None

    def _begin(self, batch: Batch) -> None:
        """On the processor this is all; a CUDA device has only begun."""
        self.rows = _rows(batch)
        batch.begun = self.begun = self._clock()
        batch.jobs = batch.jobs or _jobs(batch)
        if self._overlaps or any(job.embed for job in batch.jobs):
            prepared, batch.prepared = batch.prepared or self.forward.prepare(batch.jobs), None
            running = self.forward.run(prepared)
            batch.logits, batch.vectors = running.result, running.vectors
        else:
            logits = self.forward(batch.jobs)
            batch.logits = lambda: logits

    def _end(self, batch: Batch) -> None:
        assert batch.logits is not None, "a batch ends that did not begin"
        logits, vectors = batch.logits(), batch.vectors()
        compute, rows = self._ended(batch, failed=False), _rows(batch)
        self._room.saw(rows, min(t.payload.submitted for t in batch.tickets), self._clock())
        for number, (ticket, values) in enumerate(zip(batch.tickets, logits, strict=True)):
            vector = vectors.get(number)
            if np.isfinite(values).all() and (vector is None or np.isfinite(vector).all()):
                self._done(ticket, Answer(values, batch.begun - ticket.payload.submitted, compute, rows, vector))
            else:
                who = f"task '{ticket.task}'" if ticket.task else "the backbone"
                self._done(ticket, BadScores(f"{who} computed scores that are not finite numbers"))

    def _ended(self, batch: Batch, *, failed: bool) -> float:
        """The device is through with a batch, or its members are: report it once, and hold no pixel for it.

        Returns how long it took, in seconds.
        """
        if self.begun is None:
            return 0.0
        compute, self.begun = self._clock() - self.begun, None
        adapters = len({job.slot for job in batch.jobs})
        batch.jobs, batch.prepared, batch.logits, batch.vectors = [], None, None, dict
        holders = Counter[str]()
        for ticket in batch.tickets:
            holders[ticket.holder] += ticket.rows
        self.on_batch(BatchReport(holders.total(), adapters, compute, failed, holders))
        return compute


def _jobs(batch: Batch) -> list[Job]:
    return [ticket.payload.job() for ticket in batch.tickets]


def _rows(batch: Batch) -> int:
    return sum(ticket.rows for ticket in batch.tickets)
