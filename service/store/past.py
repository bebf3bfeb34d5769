"""The past of tasks: which of the events that were announced were made, newest first, a page at a time.

A task's manifest names its last changes by their numbers, and each event those before it: what is on that way was made,
what is beside it was not. It knows neither a disk nor a store; ``Announced`` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final, NamedTuple, Protocol

from service.errors import BadRequest
from service.store.events import COPIED, TaskEvent
from service.store.index import Index
from service.store.manifest import TaskInfo
from service.store.staging import disk_errors

AT_ONCE: Final = 64
"""Events that are read together."""


class Announced(Protocol):
    """Events by the numbers under which they were announced, of changes that were made and of others."""

    def read(self, numbers: Collection[int]) -> dict[int, TaskEvent]:
        """Those that are there. Blocks, and raises what the disk or the store raises."""
        ...

    def brought(self, task: str) -> list[TaskEvent]:
        """What another store had told of a task that was copied from there, oldest first."""
        ...

    def last(self) -> int:
        """The last number that was announced; 0 for none."""
        ...


class EventPage(NamedTuple):
    """A page of events, newest first; ``next`` is the id to go on after, None at the end."""

    events: Sequence[TaskEvent]
    next: str | None


class Past:
    """What was done to the tasks of an index. Blocks, and raises a storage error, or StoreAway and StoreRefused."""

    def __init__(self, announced: Announced, index: Index) -> None:
        self._announced, self._index = announced, index

    def of(self, name: str, after: str | None, limit: int) -> EventPage:
        """To one task, deleted or not. Raises UnknownTask, and BadRequest for an ``after`` that is no event's id."""
        with disk_errors():
            return _page(made(self._announced, self._index.ever(name), _place(after)), limit)

    def of_all(self, after: str | None, limit: int) -> EventPage:
        """To any task, without what a copied one had behind it. Raises BadRequest."""
        place = _place(after)
        with disk_errors():
            return _page(_all_made(self._announced, self._index, None if place is None else place[0] - 1), limit)


def _page(events: Iterator[TaskEvent], limit: int) -> EventPage:
    found = list(islice(events, limit + 1))
    return EventPage(found[:limit], found[limit - 1].id if len(found) > limit else None)


def _place(after: str | None) -> tuple[int, int] | None:
    if after is None:
        return None
    match = re.fullmatch(r"([0-9]{1,16})(?:\.([0-9]{1,9}))?", after)
    if match is None:
        raise BadRequest(f"after is the id of an event that an answer had; '{after[:40]}' came", field="after")
    return int(match[1]), int(match[2] or 0)


def made(announced: Announced, task: TaskInfo, after: tuple[int, int] | None = None) -> Iterator[TaskEvent]:
    """A task's events, newest first; after that number and part, of one that came with a copy."""
    numbers = task.log
    if after is not None:
        last = announced.read([after[0]]).get(after[0])
        if last is None or last.task != task.name:
            return
        numbers = last.after
        if last.what == COPIED:
            yield from _brought(announced, last, after[1])
    while numbers:
        found = announced.read(numbers)
        events = [found[number] for number in sorted(found, reverse=True) if found[number].task == task.name]
        for event in events:
            yield event
            if event.what == COPIED:
                yield from _brought(announced, event)
        numbers = events[-1].after if events else ()


def _brought(announced: Announced, copied: TaskEvent, before: int = 0) -> Iterator[TaskEvent]:
    """What was told of the task before it was copied; its own numbers were another store's."""
    events = announced.brought(copied.task)
    for part in range(before - 1 if before else len(events), 0, -1):
        if part <= len(events):
            yield replace(events[part - 1], number=copied.number, part=part)


def _all_made(announced: Announced, index: Index, last: int | None) -> Iterator[TaskEvent]:
    ways = dict[str, Way]()
    last = announced.last() if last is None else last
    while last > 0:
        found = announced.read(range(max(1, last - AT_ONCE + 1), last + 1))
        if not found:
            return
        for number in sorted(found, reverse=True):
            event = found[number]
            if event.task not in ways:
                ways[event.task] = Way(announced, index.log_of(event.task))
            if number in ways[event.task]:
                yield event
        last -= AT_ONCE


def wrong(announced: Announced, task: TaskInfo) -> str:
    """What is wrong with a task's history; "" where nothing is. The oldest may be gone, but none between."""
    lost, oldest, numbers = set[int](), 0, task.log
    while numbers:
        found = announced.read(numbers)
        for number, event in found.items():
            if event.task != task.name:
                return f"its history is mixed up: change {number} is of '{event.task}'"
            known = task.versions.get(event.version or 0)
            if known is not None and event.digest not in (None, known.digest):
                return f"its history has another digest for version {known.number}: change {number}"
        lost |= set(numbers) - found.keys()
        oldest = min(found, default=oldest)
        numbers = found[oldest].after if found else ()
    between = sorted(number for number in lost if number > oldest > 0)
    return f"its history has lost {len(between)} changes, the last of them {between[-1]}" if between else ""


class Way:
    """The numbers of a task's changes, as far back as they were asked for."""

    def __init__(self, announced: Announced, log: Sequence[int]) -> None:
        self._announced, self._numbers = announced, set(log)
        self._first = min(log, default=0)

    def __contains__(self, number: int) -> bool:
        while number < self._first:
            event = self._announced.read([self._first]).get(self._first)
            before = event.after if event is not None else ()
            self._numbers.update(before)
            self._first = min(before, default=0)
        return number in self._numbers
