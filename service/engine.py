"""The queue and the one thread that owns the device: tickets in, futures out.

It knows slots, rows and deadlines; it knows no HTTP and no files. Every accepted ticket ends in an answer or
a typed error, also when a batch fails, the caller goes away or the engine stops.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapters.bank import AdapterMeta, Bank, Lease, PackedAdapter
from adapters.errors import AdaptError
from adapters.forward import BankedForward, Job
from service import faults
from service.errors import BadScores, DeadlineExceeded, Draining, QueueFull
from service.pace import HOPE, Pace
from service.scheduler import Scheduler, Ticket

NOBODY = AdapterMeta("", "image", 1, 1, "softmax", "backbone", "frozen", {}, frozenset(), 0)
"""The bare backbone in slot 0, for health probes only."""


@dataclass(frozen=True)
class Answer:
    """Logits (classes,) float32 and where the time went, in seconds."""

    logits: NDArray[np.float32]
    queue_s: float
    compute_s: float
    batch_rows: int


@dataclass(frozen=True)
class BatchReport:
    """What one batch was, for metrics."""

    rows: int
    adapters: int
    compute_s: float
    failed: bool


@dataclass
class _Work:
    """A ticket's inside: what to compute, for whom, and the slot once there is one."""

    pixels: Tensor
    future: Future[Answer]
    submitted: float
    lease: Lease | None = None
    counted: bool = field(default=True)


class Engine:
    """Takes what waits when the device is free: any mix of tasks up to ``max_batch_rows``, no waiting for more."""

    def __init__(
        self,
        forward: BankedForward,
        bank: Bank,
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        on_batch: Callable[[BatchReport], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._forward, self._bank, self._clock = forward, bank, clock
        self._on_batch = on_batch or (lambda _: None)
        self._max_queue_rows = max_queue_rows
        self._scheduler: Scheduler[_Work] = Scheduler(max_batch_rows)
        self._wake = threading.Condition()
        self._queued_rows = 0  # accepted and not yet answered: waiting for a slot, for a turn, or running
        self._pace = Pace(max_batch_rows)
        self._accepting, self._running = True, True
        self._last_failure = ""
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def queued_rows(self) -> int:
        """Rows accepted and not yet answered."""
        return self._queued_rows

    @property
    def alive(self) -> bool:
        """Whether the thread runs: False before ``start`` and after the end, also an end by mistake."""
        return self._thread.is_alive()

    @property
    def last_failure(self) -> str:
        """What the latest forward pass or load that failed raised, in a line for the log; empty if none did."""
        return self._last_failure

    def submit(
        self, task: str, digest: str, load: Callable[[], PackedAdapter], pixels: Tensor, deadline: float
    ) -> Future[Answer]:
        """Queue one input, uint8 (frames, 3, size, size); never blocks. ``deadline`` is on the engine's clock.

        Raises as ``check_room`` does. The future's errors are ours; cancelling it drops the rows before the
        device sees them.
        """
        ticket = self._accept(task, pixels, deadline)
        try:
            self._bank.acquire(digest, load).add_done_callback(lambda lease: self._enqueue(ticket, lease))
        except BaseException as error:
            self._fail(ticket, error)
        return ticket.payload.future

    def check_room(self, rows: int, deadline: float) -> None:
        """Whether ``rows`` more would be taken now; ask before costly work. Raises QueueFull or Draining.

        QueueFull comes past ``max_queue_rows``, and also when the queue would hardly be through by the deadline.
        """
        with self._wake:
            self._check_room(rows, deadline)

    def probe(self, pixels: Tensor, deadline: float) -> Future[Answer]:
        """A real forward of the bare backbone through the same queue, for health checks; its logits mean nothing."""
        ticket = self._accept("", pixels, deadline)
        self._queue(ticket)
        return ticket.payload.future

    def drain(self, timeout: float) -> bool:
        """Refuse new tickets and wait until nothing waits or runs; False if ``timeout`` seconds were not enough."""
        with self._wake:
            self._accepting = False
            return self._wake.wait_for(lambda: self._queued_rows == 0, timeout)

    def close(self) -> None:
        """Stop the thread after the batch it is in; what waits gets Draining."""
        with self._wake:
            self._accepting = self._running = False
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _accept(self, task: str, pixels: Tensor, deadline: float) -> Ticket[_Work]:
        rows = pixels.shape[0]
        with self._wake:
            self._check_room(rows, deadline)
            self._queued_rows += rows
        ticket = Ticket(task, rows, deadline, _Work(pixels, Future(), self._clock()))
        ticket.payload.future.add_done_callback(lambda future: self._gone(ticket) if future.cancelled() else None)
        return ticket

    def _check_room(self, rows: int, deadline: float) -> None:
        if not self._accepting:
            raise Draining("the server is stopping and takes no new requests; try another one")
        queued, limit = self._queued_rows, self._max_queue_rows
        wait = self._pace.seconds(queued)
        if queued + rows > limit:
            raise QueueFull(
                f"the queue holds {queued} rows, the limit is {limit} (max_queue_rows); "
                f"try again in {wait or 1.0:.1f} s",
                retry_after=wait or 1.0, limit=limit, value=queued + rows,
            )  # fmt: skip
        left = deadline - self._clock()
        if wait is not None and wait > HOPE * left:
            raise QueueFull(
                f"the {queued} rows in the queue take about {wait:.1f} s, and this request has {max(0.0, left):.1f} s; "
                "try again later, or allow more time with the header X-Deadline-Ms",
                retry_after=wait, field="X-Deadline-Ms", value=round(wait, 3),
            )  # fmt: skip

    def _enqueue(self, ticket: Ticket[_Work], lease: Future[Lease]) -> None:
        """The slot is there, or it failed; on the caller's thread or the loader's."""
        error = lease.exception()
        if error is not None:
            ours = isinstance(error, AdaptError)
            self._fail(ticket, error if ours else self._fault(error, "bringing in the adapter"))
            return
        ticket.payload.lease = lease.result()
        self._queue(ticket)

    def _queue(self, ticket: Ticket[_Work]) -> None:
        with self._wake:
            stopped = not self._running
            if not stopped:
                self._scheduler.add(ticket)
                self._wake.notify_all()
        if stopped:
            self._fail(ticket, Draining("the server stopped before it could answer"))
        elif ticket.payload.future.cancelled():
            self._gone(ticket)

    def _gone(self, ticket: Ticket[_Work]) -> None:
        """The caller cancelled: take the rows out of the queue."""
        with self._wake:
            self._scheduler.remove(ticket)
        self._settle(ticket)

    def _settle(self, ticket: Ticket[_Work]) -> None:
        """Give back the ticket's share of the queue and its slot; safe to repeat."""
        work = ticket.payload
        with self._wake:
            if work.counted:
                work.counted = False
                self._queued_rows -= ticket.rows
                self._wake.notify_all()
        if work.lease is not None:
            work.lease.release()

    def _fail(self, ticket: Ticket[_Work], error: BaseException) -> None:
        self._settle(ticket)
        future = ticket.payload.future
        if future.done():
            return
        if future.running() or future.set_running_or_notify_cancel():
            future.set_exception(error)

    def _loop(self) -> None:
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._scheduler.waiting_rows or not self._running)
                    if not self._running:
                        return
                    batch, expired = self._scheduler.take(self._clock())
                for ticket in expired:
                    waited = self._clock() - ticket.payload.submitted
                    self._fail(ticket, DeadlineExceeded(f"waited {waited:.2f} s in the queue, past the deadline"))
                live = [t for t in batch if t.payload.future.set_running_or_notify_cancel()]
                if live:
                    self._run(live)
        finally:
            with self._wake:
                self._accepting = self._running = False
                left = self._scheduler.clear()
            for ticket in left:
                self._fail(ticket, Draining("the server stopped before it could answer"))

    def _run(self, batch: Sequence[Ticket[_Work]]) -> None:
        """Compute a batch; if it raises, each member once more alone, so that a bad one fails alone."""
        if self._attempt(batch) is None:
            return
        # The error is gone by now, and with it the traceback that held the failed batch's tensors.
        for ticket in [t for t in batch if not t.payload.future.done()]:
            failure = self._attempt([ticket])
            if failure is not None:
                self._fail(ticket, failure)

    def _attempt(self, batch: Sequence[Ticket[_Work]]) -> AdaptError | None:
        """Compute a batch and answer it; what its members are told if it raises."""
        try:
            self._answer(batch)
        except Exception as error:
            return self._fault(error, f"the forward pass of {len(batch)} requests")
        return None

    def _fault(self, error: BaseException, doing: str) -> AdaptError:
        self._last_failure = faults.one_line(error)
        return faults.told(error, doing)

    def _answer(self, batch: Sequence[Ticket[_Work]]) -> None:
        start = self._clock()
        rows = sum(t.rows for t in batch)
        jobs = [self._job(t) for t in batch]
        failed = True
        try:
            logits = self._forward(jobs)
            failed = False
        finally:
            compute = self._clock() - start
            self._on_batch(BatchReport(rows, len({job.slot for job in jobs}), compute, failed))
        self._pace.saw(rows, min(t.payload.submitted for t in batch), self._clock())
        for ticket, values in zip(batch, logits, strict=True):
            if not np.isfinite(values).all():
                self._fail(ticket, BadScores(f"task '{ticket.task}' computed scores that are not finite numbers"))
                continue
            self._settle(ticket)
            ticket.payload.future.set_result(Answer(values, start - ticket.payload.submitted, compute, rows))

    def _job(self, ticket: Ticket[_Work]) -> Job:
        lease = ticket.payload.lease
        if lease is None:
            return Job(ticket.payload.pixels, 0, (0,), NOBODY)
        return Job(ticket.payload.pixels, lease.slot, lease.pages, lease.meta)
