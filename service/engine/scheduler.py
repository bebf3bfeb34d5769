"""Which rows go next: fair between holders and between tasks by their weights, a clip's rows together.

Never more than a batch holds. Background tickets wait until nothing else does.

Pure policy: no torch, no threads, no clock. The caller passes the time and holds the lock. ``shares`` has the turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.shares import Shares

P = TypeVar("P")

PRIORITY = 5
"""That of a ticket which names none, of 0 to 9."""
LOOKS = 256
"""Tasks whose clips have no room in a batch, until no more is looked for what has."""
PATIENCE = 128
"""So many batches in a row may pass a background ticket over; it comes first in the next one, so that the 99th
percentile of the others' time does not know it."""


@dataclass(eq=False)
class Ticket(Generic[P]):
    """A request for ``rows`` rows of ``task``, worthless after ``deadline`` (the caller's clock, seconds).

    One in the ``background`` is for nobody who waits; some of one ``picture``, one after another, go together.
    ``priority``: the holder's own tickets with a higher one go first; to others it makes no difference.
    """

    task: str
    rows: int
    deadline: float
    payload: P
    background: bool = False
    picture: object = None
    holder: str = ""
    priority: int = PRIORITY


class Scheduler(Generic[P]):
    """First in, first out within a task; between holders, and between a holder's tasks, rows over time by weight.

    A ticket that has its turn but no room left in the batch goes first in the next one, so large clips are
    not passed over for ever. Others take the room that it had no use for, and have it deducted, so that a task of
    clips gets as many rows as one of pictures, as far as clips fill a batch: of 24 frames in a batch of 32 they get
    three quarters at most, whatever their weight. Every ticket must fit an empty batch.

    Background tickets, first in, first out among themselves, make small batches of their own while nothing else waits:
    what comes meanwhile waits for such a batch, and rows that went along with others would make theirs longer. Only one
    that was passed over ``PATIENCE`` times goes along.
    """

    def __init__(
        self, max_batch_rows: int, background_rows: int = 1, holders: Mapping[str, float] | None = None,
        tasks: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        """``background_rows``: of a batch of background tickets, or one ticket that has more.

        ``holders`` and ``tasks``: their weights; 1 where there is none.
        """
        self.max_batch_rows = max_batch_rows
        self.waiting_rows = 0
        """Without those in the background."""
        self._background: deque[Ticket[P]] = deque()
        self._background_rows, self._passed_over = background_rows, 0
        self._shares: Shares[Ticket[P]] = Shares(holders or {}, tasks or {})

    def __len__(self) -> int:
        return len(self._background) + len(self._shares.left())

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
        self._shares.add(ticket, ticket.holder, ticket.task, ticket.priority)
        self.waiting_rows += ticket.rows

    def remove(self, ticket: Ticket[P]) -> bool:
        """Take back a ticket that still waits; False if it is not here."""
        if ticket.background:
            if ticket not in self._background:
                return False
            self._background.remove(ticket)
            return True
        found = self._shares.remove(ticket, ticket.holder, ticket.task, ticket.priority)
        if found:
            self.waiting_rows -= ticket.rows
        return found

    def take(self, now: float) -> tuple[list[Ticket[P]], list[Ticket[P]]]:
        """The next batch, and the tickets found past their deadline on the way. Both empty: nothing waits."""
        batch: list[Ticket[P]] = []
        expired: list[Ticket[P]] = []
        if self._background:
            self._take_background(now, batch, expired)
        room = self.max_batch_rows - sum(ticket.rows for ticket in batch)
        if self.waiting_rows:
            late = len(expired)
            taken = self._shares.take(room, now, expired, LOOKS, self.max_batch_rows)
            batch += taken
            self.waiting_rows -= sum(ticket.rows for ticket in taken) + sum(ticket.rows for ticket in expired[late:])
            if not self.waiting_rows:
                self._shares.clear()
        return batch, expired

    def clear(self) -> list[Ticket[P]]:
        """Everything that waits, for a caller that is going to refuse it."""
        left = [*self._shares.left(), *self._background]
        self._background.clear()
        self._shares.clear()
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
