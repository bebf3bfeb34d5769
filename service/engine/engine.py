"""The queue and the one thread that owns the device: tickets in, futures out.

It knows slots, rows and deadlines; it knows no HTTP and no files. Every accepted ticket ends in an answer or
a typed error, also when a batch fails, the caller goes away or the engine stops.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future

from adapters.bank import Bank, Lease, Loader
from adapters.errors import AdaptError, LoadsBehind
from adapters.forward.banked import BankedForward
from adapters.media import Pixels
from adapters.meta import AdapterMeta
from service.engine import faults
from service.engine.batch import BatchReport, Work
from service.engine.interface import Answer
from service.engine.room import Room
from service.engine.runner import Batch, Runner
from service.engine.scheduler import Scheduler, Ticket
from service.errors import DeadlineExceeded, Draining
from service.pace import HOPE

CLOSE_S = 2.0
"""How long ``close`` waits for the batch in progress; a device that hangs is left behind on its thread."""


class Engine:
    """Takes what waits when the device is free: any mix of tasks up to ``max_batch_rows``, no waiting for more."""

    def __init__(
        self, forward: BankedForward, bank: Bank, *, max_batch_rows: int, max_queue_rows: int,
        on_batch: Callable[[BatchReport], None] | None = None, last_step: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic, room: Room | None = None, background_rows: int = 1,
    ) -> None:  # fmt: skip
        """``room`` has these bounds, and cells that others read. ``last_step`` says when a block was last computed.

        On CUDA that is when it was queued, or never where a graph is replayed. ``background_rows``: of Scheduler.
        """
        self._bank, self._clock = bank, clock
        self.last_step = last_step
        self._scheduler: Scheduler[Work] = Scheduler(max_batch_rows, background_rows)
        self._wake = threading.Condition()
        self.room = (room or Room(max_batch_rows=max_batch_rows, max_queue_rows=max_queue_rows, clock=clock)).begin()
        self.runner = Runner(
            forward, clock=clock, room=self.room, on_batch=on_batch or (lambda _: None), done=self._done,
            fault=self._fault,
        )  # fmt: skip
        self._coming: Batch | None = None  # is laid out while the latest batch computes
        self._live: list[Ticket[Work]] = []  # of both
        self._running = True
        self.last_failure = ""
        """What the latest forward pass or load that failed raised, in a line for the log; empty if none did."""
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def queued_rows(self) -> int:
        """Rows accepted and not yet answered."""
        return self.room.queued

    @property
    def alive(self) -> bool:
        """Whether the thread runs: False before ``start`` and after the end, also an end by mistake."""
        return self._thread.is_alive()

    @property
    def busy_s(self) -> float:
        """How long the batch that runs now has run; 0 when none does."""
        begun = self.runner.begun
        return 0.0 if begun is None else self._clock() - begun

    def submit(
        self, task: str, digest: str, load: Loader, pixels: Pixels, deadline: float, *,
        picture: bytes | None = None, admitted: bool = False, embed: bool = False, background: bool = False,
    ) -> Future[Answer]:  # fmt: skip
        """Queue one input, uint8 (frames, 3, height, width); never blocks. ``deadline`` is on the engine's clock.

        Inputs of one ``picture`` are equal. ``admitted``: ``check_room`` has just let all versions of a request in, so
        one's load does not count against another. Raises as ``check_room`` does, and MediaTooLarge for more frames than
        a batch holds, BrokenMedia for none. Cancelling drops the rows, and the load if nobody else waits for it.
        ``background``: while no other rows wait; such rows take nobody else's room.
        """
        cold = not self._bank.resident(digest)
        ticket = self._accept(task, pixels, deadline, cold=cold, background=background)
        work = ticket.payload
        work.picture, work.embed, work.lease = picture, embed, self._bank.pin(digest)
        if work.lease is None:
            self._bring(ticket, digest, load, math.inf if admitted else HOPE * (deadline - work.submitted))
        else:
            self._queue(ticket)
        return work.future

    def embed(
        self, pixels: Pixels, deadline: float, bare: AdapterMeta, picture: bytes, *, background: bool = False
    ) -> Future[Answer]:
        """Queue one input for the bare backbone's pooled vector, pictures seen as ``bare`` says. As ``submit``."""
        ticket = self._accept("", pixels, deadline, background=background)
        ticket.picture, work = picture, ticket.payload
        work.picture, work.embed, work.bare = picture, True, bare
        self._queue(ticket)
        return work.future

    def check_room(self, rows: int, deadline: float, digests: Collection[str] = ()) -> None:
        """Whether ``rows`` more, of these versions, would be taken now; ask before costly work.

        Raises Draining, or QueueFull: past ``max_queue_rows``, and also when the queue, or the loads before those
        that these versions need, would hardly be through by the deadline.
        """
        cold = [digest for digest in dict.fromkeys(digests) if not self._bank.resident(digest)]
        with self._wake:
            self.room.check(rows, deadline, cold=bool(cold))
        if cold:
            try:
                self._bank.check(cold, deadline, HOPE * (deadline - self._clock()))
            except LoadsBehind as error:
                raise self.room.behind(error, deadline) from None

    def probe(self, pixels: Pixels, deadline: float) -> Future[Answer]:
        """A real forward of the bare backbone, for health checks, however full the queue is. Raises Draining."""
        ticket = self._accept("", pixels, deadline, always=True)
        self._queue(ticket)
        return ticket.payload.future

    def drain(self, timeout: float) -> bool:
        """Refuse new tickets and wait until nothing waits or runs; False if ``timeout`` seconds were not enough."""
        with self._wake:
            self.room.open = False
            return self._wake.wait_for(lambda: self.room.queued == 0, timeout)

    def close(self) -> None:
        """Stop the thread after the batch it is in, waiting at most ``CLOSE_S``; what waits gets Draining."""
        with self._wake:
            self.room.open = self._running = False
            left = self._scheduler.clear()
            self._wake.notify_all()
        for ticket in left:
            self._fail(ticket, _stopped())
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)
        for future in [t.payload.future for t in self._live if not t.payload.future.done()]:
            future.set_exception(_stopped())  # its slot stays pinned: the device may still read it

    def _accept(
        self, task: str, pixels: Pixels, deadline: float, *, cold: bool = False, always: bool = False,
        background: bool = False,
    ) -> Ticket[Work]:  # fmt: skip
        rows = pixels.shape[0]
        self.room.check_size(rows)
        with self._wake:
            if always:
                self.room.check_open()
            elif not background:
                self.room.check(rows, deadline, cold=cold)
            self.room.enter(rows, background=background)
        ticket = Ticket(task, rows, deadline, Work(pixels, Future(), self._clock()), background)
        ticket.payload.future.add_done_callback(lambda future: self._gone(ticket) if future.cancelled() else None)
        return ticket

    def _bring(self, ticket: Ticket[Work], digest: str, load: Loader, hope_s: float) -> None:
        work = ticket.payload
        try:
            work.coming = self._bank.acquire(digest, load, ticket.deadline, hope_s)
        except LoadsBehind as error:
            self._settle(ticket)
            raise self.room.behind(error, ticket.deadline) from None
        except BaseException as error:
            self._fail(ticket, error)
        else:
            work.coming.add_done_callback(lambda lease: self._enqueue(ticket, lease))

    def _enqueue(self, ticket: Ticket[Work], coming: Future[Lease]) -> None:
        """The slot is there, or it failed, or the caller left; on the caller's thread or the loader's."""
        if coming.cancelled():
            return
        error = coming.exception()
        if error is None:
            with self._wake:
                ticket.payload.lease, ticket.payload.coming = coming.result(), None
            self._queue(ticket)
        elif isinstance(error, LoadsBehind):
            self._fail(ticket, self.room.behind(error, ticket.deadline))
        elif isinstance(error, AdaptError):
            self._fail(ticket, error.copy())  # others may wait for the same load, and each adds its own facts
        else:
            self._fail(ticket, self._fault(error, "bringing in the adapter"))

    def _queue(self, ticket: Ticket[Work]) -> None:
        """Let the scheduler have it, unless the engine has stopped or the caller has left."""
        try:
            with self._wake:
                stopped = not self._running
                if not stopped:
                    if not ticket.background:
                        self.room.ready += ticket.rows
                        ticket.payload.ready = True
                    self._scheduler.add(ticket)
                    self._wake.notify_all()
        except Exception as error:
            self._fail(ticket, self._fault(error, "queueing the rows"))
            return
        if stopped:
            self._fail(ticket, _stopped())
        elif ticket.payload.future.cancelled():
            self._gone(ticket)

    def _gone(self, ticket: Ticket[Work]) -> None:
        """The caller cancelled: take the rows out of the queue."""
        with self._wake:
            self._scheduler.remove(ticket)
        self._settle(ticket)

    def _settle(self, ticket: Ticket[Work]) -> None:
        """Give back the ticket's share of the queue, its slot, its claim to one, and its pixels; safe to repeat."""
        work = ticket.payload
        with self._wake:
            if work.pixels is not None:
                work.pixels = None
                self.room.leave(ticket.rows, background=ticket.background)
                self._wake.notify_all()
            if work.ready:
                work.ready = False
                self.room.ready -= ticket.rows
            lease, work.lease = work.lease, None
            coming, work.coming = work.coming, None
        if lease is not None:
            lease.release()
        if coming is not None:
            coming.cancel()

    def _fail(self, ticket: Ticket[Work], error: BaseException) -> None:
        self._settle(ticket)
        future = ticket.payload.future
        if not future.done() and (future.running() or future.set_running_or_notify_cancel()):
            future.set_exception(error)

    def _done(self, ticket: Ticket[Work], outcome: Answer | AdaptError) -> None:
        if isinstance(outcome, Answer):
            self._settle(ticket)
            if ticket.payload.future.done():
                return  # refused by ``close``, which did not wait for the device any longer
            ticket.payload.future.set_result(outcome)
        else:
            self._fail(ticket, outcome)

    def _fault(self, error: BaseException, doing: str) -> AdaptError:
        self.last_failure = faults.one_line(error)
        return faults.told(error, doing)

    def _loop(self) -> None:
        try:
            while (batch := self._next()) is not None:
                if batch.tickets:
                    self._coming = self.runner.run(batch, self._next_if_full)
                    if self._running:  # else the end settles what ``close`` has answered
                        self._live = [*self._coming.tickets] if self._coming else []
        finally:
            with self._wake:
                self.room.open = self._running = False
                left = self._scheduler.clear()
            for ticket in (*self._live, *left):  # a batch that was laid out, or, if this thread ends by mistake, any
                self._fail(ticket, _stopped())

    def _next(self) -> Batch | None:
        """The batch that is laid out, or of what waits, once something does; None at the end."""
        with self._wake:
            self._wake.wait_for(lambda: self._coming or self._scheduler.waits or not self._running)
            if not self._running:
                return None
            if self._coming is None:
                taken = self._scheduler.take(self._clock())
        return self._coming or self._batch_of(*taken)

    def _next_if_full(self) -> Batch | None:
        """What would be the next batch anyway, whoever comes meanwhile; for a device that computes by itself."""
        with self._wake:
            if not self._running or self._scheduler.waiting_rows < self._scheduler.max_batch_rows:
                return None
            taken = self._scheduler.take(self._clock())
        return self._batch_of(*taken)

    def _batch_of(self, taken: Sequence[Ticket[Work]], expired: Sequence[Ticket[Work]]) -> Batch:
        """Those that are still wanted; from here on ``close`` knows of them."""
        for ticket in expired:
            waited = self._clock() - ticket.payload.submitted
            self._fail(ticket, DeadlineExceeded(f"waited {waited:.2f} s in the queue, past the deadline"))
        batch = [t for t in taken if t.payload.future.set_running_or_notify_cancel()]
        self._live = [*self._live, *batch]
        return Batch(batch)


def _stopped() -> Draining:
    return Draining("the server stopped before it could answer")
