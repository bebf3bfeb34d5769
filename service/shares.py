"""Who is next of those who share: start-time fair queueing (Goyal, Vin and Cheng, 1996), of holders and of their tasks.

Pure policy, without threads or a clock. Times here are virtual: rows, by the weight of whose they are.

Each flow has a tag: the time at which its next ticket may begin. The flow with the least tag is next, and a ticket of r
rows moves it on by r / weight. One that comes anew begins at the time of those that are being served, so rest is not
saved up; one that has had more than its share goes on from its tag, also where it was empty for a moment. Tags lie in
a heap, and an empty flow is forgotten when its tag is passed: what a turn costs grows with the logarithm of how many
wait, and not with those that do not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Generic, Protocol, TypeVar

LAG = 2
"""Batches, at the pace of the lightest, that a flow may fall behind because its clips found no room.

So many it makes good; what could not be had for longer than that is lost, or it would shut all others out one day.
"""


class Waiting(Protocol):
    """What a ticket is here."""

    @property
    def rows(self) -> int: ...

    @property
    def deadline(self) -> float: ...


T = TypeVar("T", bound=Waiting)


class Line(Generic[T]):
    """The tickets of a task, of one holder and one priority: first in, first out."""

    __slots__ = ("tag", "task", "tickets", "weight")

    def __init__(self, task: str, weight: float, tag: float) -> None:
        self.task, self.weight, self.tag = task, weight, tag
        self.tickets: deque[T] = deque()


class Rank(Generic[T]):
    """A holder's tasks of one priority, by their weights; it lasts while anything waits in it."""

    __slots__ = ("_heap", "_lightest", "_lines", "_serial", "_time", "aside", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self._lines: dict[str, Line[T]] = {}
        self._heap: list[tuple[float, int, Line[T]]] = []
        self.aside: list[tuple[float, int, Line[T]]] = []
        """Those that were passed over."""
        self._serial, self._time, self._lightest = count(), 0.0, float("inf")

    def add(self, ticket: T, task: str, weight: float) -> None:
        line = self._lines.get(task)
        if line is None:
            line = self._lines[task] = Line(task, weight, self._time)
            self._lightest = min(self._lightest, weight)
            heappush(self._heap, (line.tag, next(self._serial), line))
        elif not line.tickets:
            line.tag = max(line.tag, self._time)
        line.tickets.append(ticket)
        self.waiting += 1

    def remove(self, ticket: T, task: str) -> bool:
        line = self._lines.get(task)
        if line is None or ticket not in line.tickets:
            return False
        line.tickets.remove(ticket)
        self.waiting -= 1
        return True

    def next(self, room: int, now: float, expired: list[T], looks: int) -> T | None:
        """The next ticket of at most ``room`` rows. Tasks whose first has more are passed over, at most ``looks``."""
        heap = self._heap
        while heap:
            tag, _, line = heap[0]
            tickets = line.tickets
            if not tickets:
                heappop(heap)
                del self._lines[line.task]
                continue
            ticket = tickets[0]
            if ticket.deadline <= now:
                expired.append(tickets.popleft())
                self.waiting -= 1
            elif tag < line.tag:  # it was empty, and others went on
                heapreplace(heap, (line.tag, next(self._serial), line))
            elif ticket.rows > room:
                if not looks:
                    return None
                looks -= 1
                self.aside.append(heappop(heap))
            else:
                tickets.popleft()
                self.waiting -= 1
                self._time = max(tag, self._time)
                line.tag = tag = tag + ticket.rows / line.weight
                heapreplace(heap, (tag, next(self._serial), line))
                return ticket
        return None

    def restore(self, batch_rows: int) -> None:
        """Those that were set aside are here again, and first of all."""
        least = self._time - LAG * batch_rows / self._lightest
        for tag, serial, line in self.aside:
            line.tag = max(tag, least)
            heappush(self._heap, (line.tag, serial, line))
        self.aside.clear()

    def left(self) -> list[T]:
        """All that waits."""
        return [ticket for line in self._lines.values() for ticket in line.tickets]


class Holder(Generic[T]):
    """One of those who share the device: its tickets, the highest priority first."""

    __slots__ = ("_order", "_ranks", "aside", "name", "serial", "tag", "turn", "weight")

    def __init__(self, name: str, weight: float, tag: float) -> None:
        self.name, self.weight, self.tag = name, weight, tag
        self.turn: float | None = None
        """The tag at which it had its turn and its ticket no room: with that it is in line, until the ticket went."""
        self.serial = -1
        """Of its place in line; others are left from before."""
        self.aside = 0
        """How many of its tasks were passed over, for want of room."""
        self._ranks: dict[int, Rank[T]] = {}
        self._order: list[int] = []

    @property
    def waits(self) -> bool:
        return bool(self._ranks)

    def add(self, ticket: T, task: str, weight: float, priority: int) -> None:
        """``weight`` is the task's."""
        rank = self._ranks.get(priority)
        if rank is None:
            rank = self._ranks[priority] = Rank()
            self._order = sorted(self._ranks, reverse=True)
        rank.add(ticket, task, weight)

    def remove(self, ticket: T, task: str, priority: int) -> bool:
        """Take a ticket back; False if it is not here."""
        rank = self._ranks.get(priority)
        if rank is None or not rank.remove(ticket, task):
            return False
        if not rank.waiting:
            self._end(priority)
        return True

    def next(self, room: int, now: float, expired: list[T], looks: int) -> T | None:
        """As ``Rank.next``, of the highest priority that has one."""
        for priority in self._order:
            rank = self._ranks[priority]
            aside = len(rank.aside)
            found = rank.next(room, now, expired, looks)
            if aside := len(rank.aside) - aside:
                looks -= aside
                self.aside += aside
            if not rank.waiting:
                self._end(priority)
            if found is not None:
                return found
        return None

    def restore(self, batch_rows: int) -> None:
        """As ``Rank.restore``."""
        self.aside = 0
        for rank in self._ranks.values():
            rank.restore(batch_rows)

    def left(self) -> list[T]:
        """All that waits."""
        return [ticket for rank in self._ranks.values() for ticket in rank.left()]

    def _end(self, priority: int) -> None:
        del self._ranks[priority]
        self._order = sorted(self._ranks, reverse=True)


class Shares(Generic[T]):
    """All that waits: the holders by their weights, and each one's tasks by theirs. Whoever is not named weighs 1."""

    def __init__(self, holders: Mapping[str, float], tasks: Mapping[str, float]) -> None:
        self._weights, self._task_weights = holders, tasks
        self._holders: dict[str, Holder[T]] = {}
        self._line: list[tuple[float, int, Holder[T]]] = []
        self._serial, self._time, self._lightest = count(), 0.0, float("inf")

    def add(self, ticket: T, holder: str, task: str, priority: int) -> None:
        """Queue a ticket."""
        flow = self._holders.get(holder)
        if flow is None:
            weight = self._weights.get(holder, 1.0)
            flow = self._holders[holder] = Holder(holder, weight, self._time)
            self._lightest = min(self._lightest, weight)
            self._enter(flow, flow.tag)
        elif not flow.waits:
            flow.tag, flow.turn = max(flow.tag, self._time), None
        flow.add(ticket, task, self._task_weights.get(task, 1.0), priority)

    def remove(self, ticket: T, holder: str, task: str, priority: int) -> bool:
        """Take a ticket back; False if it is not here."""
        flow = self._holders.get(holder)
        return flow is not None and flow.remove(ticket, task, priority)

    def take(self, room: int, now: float, expired: list[T], looks: int, batch_rows: int) -> list[T]:
        """Tickets of at most ``room`` rows together, in their order; past their deadline on the way: ``expired``.

        One that has its turn but no room keeps it, while others take what is left; at most ``looks`` are passed over.
        """
        taken: list[T] = []
        passed: list[Holder[T]] = []
        line, over = self._line, 0
        while line and room:
            key, serial, flow = line[0]
            if serial != flow.serial:
                heappop(line)
                continue
            if not flow.waits or (key < flow.tag and flow.turn is None):  # it was empty, and others went on
                self._pass_by(flow, key)
                continue
            aside = flow.aside
            ticket = flow.next(room, now, expired, looks - over)
            if ticket is not None and not flow.aside:
                flow.turn = None
            elif not aside and flow.waits:  # its turn is now, and it has none that fits, or another than the first
                flow.turn = key
                passed.append(flow)
            over += flow.aside - aside
            if ticket is None:
                if flow.waits:
                    heappop(line)
                continue
            taken.append(ticket)
            room -= ticket.rows
            self._time = max(key, self._time)
            flow.tag = tag = flow.tag + ticket.rows / flow.weight
            flow.serial = serial = next(self._serial)
            heapreplace(line, (tag, serial, flow))
        least = self._time - LAG * batch_rows / self._lightest
        for flow in passed:
            flow.restore(batch_rows)
            assert flow.turn is not None, "who was passed over has a turn left"
            flow.turn = max(flow.turn, least)
            flow.tag = max(flow.tag, flow.turn)
            self._enter(flow, flow.turn)
        return taken

    def left(self) -> list[T]:
        """All that waits."""
        return [ticket for flow in self._holders.values() for ticket in flow.left()]

    def clear(self) -> None:
        """Nothing waits, and nobody has had anything."""
        self._holders.clear()
        self._line.clear()
        self._time, self._lightest = 0.0, float("inf")

    def _pass_by(self, flow: Holder[T], key: float) -> None:
        """The one in front waits for nothing, or is here too early: with nothing to wait for it is forgotten."""
        heappop(self._line)
        if flow.tag > key:
            flow.turn = None
            self._enter(flow, flow.tag)
        else:
            del self._holders[flow.name]

    def _enter(self, flow: Holder[T], key: float) -> None:
        """Its place in line."""
        flow.serial = next(self._serial)
        heappush(self._line, (key, flow.serial, flow))
