"""Which rows go next: deficit round robin over tasks, a clip's rows together, never more than a batch holds.

Background tickets wait until nothing else does.

Pure policy (Shreedhar and Varghese, 1995): no torch, no threads, no clock. The caller passes the time and
holds the lock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

P = TypeVar("P")

QUANTUM = 1
"""Rows that a task may send per turn. One row, so that a batch mixes as many tasks as it can."""
PATIENCE = 128
"""So many batches in a row may pass a background ticket over; it comes first in the next one, so that the 99th
percentile of the others' time does not know it."""


@dataclass(eq=False)
class Ticket(Generic[P]):
    """A request for ``rows`` rows of ``task``, worthless after ``deadline`` (the caller's clock, seconds).

    One in the ``background`` is for nobody who waits; some of one ``picture``, one after another, go together.
    """

    task: str
    rows: int
    deadline: float
    payload: P
    background: bool = False
    picture: object = None


class Scheduler(Generic[P]):
    """First in, first out within a task; between tasks, equal rows over time, as far as tickets fit.

    A ticket that has its turn but no room left in the batch goes first in the next one, so large clips are
    not passed over for ever. Others take the room that it had no use for, so that a task of clips that often do not
    fit may get fewer rows than one of pictures. Every ticket must fit an empty batch.

    Background tickets, first in, first out among themselves, make small batches of their own while nothing else waits:
    what comes meanwhile waits for such a batch, and rows that went along with others would make theirs longer. Only one
    that was passed over ``PATIENCE`` times goes along.
    """

    def __init__(self, max_batch_rows: int, background_rows: int = 1) -> None:
        """``background_rows``: of a batch of background tickets, or one ticket that has more."""
        self.max_batch_rows = max_batch_rows
        self.waiting_rows = 0
        """Without those in the background."""
        self._background: deque[Ticket[P]] = deque()
        self._background_rows, self._passed_over = background_rows, 0
        self._ring: deque[str] = deque()
        self._queues: dict[str, deque[Ticket[P]]] = {}
        self._credit: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._background) + sum(len(queue) for queue in self._queues.values())

    @property
    def waits(self) -> bool:
        """Whether there is anything for a batch."""
        return bool(self.waiting_rows or self._background)

    def add(self, ticket: Ticket[P]) -> None:
        """Queue a ticket. Raises ValueError if it can never fit."""
        if not 1 <= ticket.rows <= self.max_batch_rows:
            raise ValueError(f"{ticket.rows} rows do not fit a batch of {self.max_batch_rows}")
        if ticket.background:
            self._background.append(ticket)
            return
        if ticket.task not in self._queues:
            self._queues[ticket.task] = deque()
            self._credit[ticket.task] = 0
            self._ring.append(ticket.task)
        self._queues[ticket.task].append(ticket)
        self.waiting_rows += ticket.rows

    def remove(self, ticket: Ticket[P]) -> bool:
        """Take back a ticket that still waits; False if it is not here."""
        queue = self._background if ticket.background else self._queues.get(ticket.task)
        if queue is None or ticket not in queue:
            return False
        queue.remove(ticket)
        if not ticket.background:
            self.waiting_rows -= ticket.rows
        return True

    def take(self, now: float) -> tuple[list[Ticket[P]], list[Ticket[P]]]:
        """The next batch, and the tickets found past their deadline on the way. Both empty: nothing waits."""
        batch: list[Ticket[P]] = []
        expired: list[Ticket[P]] = []
        if self._background:
            self._take_background(now, batch, expired)
        room = self.max_batch_rows - sum(ticket.rows for ticket in batch)
        blocked: list[str] = []
        while self._ring and room:
            task = self._ring.popleft()
            queue = self._queues[task]
            self._credit[task] += QUANTUM
            while queue and (queue[0].deadline <= now or queue[0].rows <= min(self._credit[task], room)):
                ticket = self._pop(task)
                if ticket.deadline <= now:
                    expired.append(ticket)
                    continue
                self._credit[task] -= ticket.rows
                room -= ticket.rows
                batch.append(ticket)
            if not queue:
                del self._queues[task], self._credit[task]
            elif queue[0].rows <= self._credit[task]:
                blocked.append(task)
            else:
                self._ring.append(task)
        self._ring.extendleft(reversed(blocked))
        return batch, expired

    def clear(self) -> list[Ticket[P]]:
        """Everything that waits, for a caller that is going to refuse it."""
        left = [ticket for queue in (*self._queues.values(), self._background) for ticket in queue]
        self._background.clear()
        self._ring.clear()
        self._queues.clear()
        self._credit.clear()
        self.waiting_rows = 0
        return left

    def _take_background(self, now: float, batch: list[Ticket[P]], expired: list[Ticket[P]]) -> None:
        """As many as may go now, in front of whatever else goes."""
        alone = not self.waiting_rows
        if not alone and self._passed_over < PATIENCE:
            self._passed_over += 1
            return
        self._passed_over, rows = 0, 0
        while self._background:
            ticket = self._background[0]
            if ticket.deadline > now and batch:
                same = ticket.picture is not None and ticket.picture == batch[-1].picture
                most = self.max_batch_rows if same else self._background_rows
                if not alone or rows + ticket.rows > most:
                    return
            self._background.popleft()
            if ticket.deadline <= now:
                expired.append(ticket)
                continue
            batch.append(ticket)
            rows += ticket.rows

    def _pop(self, task: str) -> Ticket[P]:
        ticket = self._queues[task].popleft()
        self.waiting_rows -= ticket.rows
        return ticket
