"""Which rows go next: deficit round robin over tasks, a clip's rows together, never more than a batch holds.

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


@dataclass(eq=False)
class Ticket(Generic[P]):
    """A request for ``rows`` rows of ``task``, worthless after ``deadline`` (the caller's clock, seconds)."""

    task: str
    rows: int
    deadline: float
    payload: P


class Scheduler(Generic[P]):
    """First in, first out within a task; between tasks, equal rows over time, as far as tickets fit.

    A ticket that has its turn but no room left in the batch goes first in the next one, so large clips are
    not passed over for ever. Others take the room that it had no use for, so that a task of clips that often do not
    fit may get fewer rows than one of pictures. Every ticket must fit an empty batch.
    """

    def __init__(self, max_batch_rows: int) -> None:
        self.max_batch_rows = max_batch_rows
        self.waiting_rows = 0
        self._ring: deque[str] = deque()
        self._queues: dict[str, deque[Ticket[P]]] = {}
        self._credit: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def add(self, ticket: Ticket[P]) -> None:
        """Queue a ticket. Raises ValueError if it can never fit."""
        if not 1 <= ticket.rows <= self.max_batch_rows:
            raise ValueError(f"{ticket.rows} rows do not fit a batch of {self.max_batch_rows}")
        if ticket.task not in self._queues:
            self._queues[ticket.task] = deque()
            self._credit[ticket.task] = 0
            self._ring.append(ticket.task)
        self._queues[ticket.task].append(ticket)
        self.waiting_rows += ticket.rows

    def remove(self, ticket: Ticket[P]) -> bool:
        """Take back a ticket that still waits; False if it is not here."""
        queue = self._queues.get(ticket.task)
        if queue is None or ticket not in queue:
            return False
        queue.remove(ticket)
        self.waiting_rows -= ticket.rows
        return True

    def take(self, now: float) -> tuple[list[Ticket[P]], list[Ticket[P]]]:
        """The next batch, and the tickets found past their deadline on the way. Both empty: nothing waits."""
        batch: list[Ticket[P]] = []
        expired: list[Ticket[P]] = []
        room = self.max_batch_rows
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
        left = [ticket for queue in self._queues.values() for ticket in queue]
        self._ring.clear()
        self._queues.clear()
        self._credit.clear()
        self.waiting_rows = 0
        return left

    def _pop(self, task: str) -> Ticket[P]:
        ticket = self._queues[task].popleft()
        self.waiting_rows -= ticket.rows
        return ticket
