"""History in a store that servers share: events in the objects of its log, and of old numbers in packs.

    log/<number>              the task, and on the next line its event
    history/<number>.jsonl    events up to that number, in order, of changes that were made and whose log is tidied away
    brought/<task>.jsonl      what the store had told from which the task was copied

No change costs a request more for it: the log's object is made anyway. ``service.store.past`` tells which events count.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Final

from service.store.events import TaskEvent
from service.store.files import safe_name
from service.store.objects import Missing, Preceded
from service.store.past import Way
from service.store.truth import NUMBER_DIGITS, Truth, entry

HISTORY, BROUGHT = "history", "brought"
READERS: Final = 8
PACKED: Final = 10_000
"""Numbers of the log that one pack is of."""


class SharedHistory:
    """See ``service.store.past.Announced``; ``seen`` says a number that was taken, to find the last one from."""

    def __init__(self, truth: Truth, seen: Callable[[], int] = lambda: 0) -> None:
        self._truth, self._seen = truth, seen
        self._pack: tuple[int, dict[int, bytes]] = 0, {}  # the last one that was read

    def read(self, numbers: Collection[int]) -> dict[int, TaskEvent]:
        with ThreadPoolExecutor(READERS) if len(numbers) > 1 else nullcontext() as pool:
            each = pool.map if pool is not None else map
            objects = dict(zip(numbers, each(self._object, numbers), strict=True))
        gone = [number for number, content in objects.items() if content is None]
        lines = {number: content for number, content in objects.items() if content} | self._packed(gone)
        found = dict[int, TaskEvent]()
        for number, line in lines.items():
            with suppress(ValueError):  # a server wrote it that knew no events
                found[number] = replace(TaskEvent.parse(line), number=number)
        return found

    def brought(self, task: str) -> list[TaskEvent]:
        try:
            content, _ = self._truth.objects.get(_brought(task))
            return [TaskEvent.parse(line) for line in content.splitlines()]
        except (Missing, ValueError):
            return []

    def bring(self, task: str, events: Iterable[TaskEvent]) -> None:
        """Keep what another store tells of a task, before its copy is announced."""
        self._truth.objects.put(_brought(task), b"".join(event.line() for event in events))

    def last(self) -> int:
        return self._truth.last(self._seen())

    def pack(self, numbers: Sequence[int]) -> Iterator[int]:
        """Have the events of these numbers in packs, so that the log may lose them; each number that is kept so.

        They are in order, and all settled: whoever announced them has made the change by now, or never will.
        """
        for start in range(0, len(numbers), PACKED):
            part = numbers[start : start + PACKED]
            kept = b"".join(event.line() for event in self._made(part))
            if kept:
                with suppress(Preceded):  # somebody else tidies too, and has done just this
                    self._truth.objects.create(f"{HISTORY}/{part[-1]:0{NUMBER_DIGITS}}.jsonl", kept)
            yield from part

    def _made(self, numbers: Sequence[int]) -> list[TaskEvent]:
        """A change was made if its manifest or any later event names it: that is of what was read in a manifest."""
        found = self.read(numbers)
        named = {number for event in found.values() for number in event.after}
        ways = dict[str, Way]()
        for event in found.values():
            if event.number not in named and event.task not in ways:
                task = self._truth.task(event.task)
                ways[event.task] = Way(self, task.log if task is not None else ())
        return [
            event for number, event in sorted(found.items()) if number in named or number in ways.get(event.task, ())
        ]

    def _object(self, number: int) -> bytes | None:
        """The line of an event; b"" where there is none in the object, None where there is no object."""
        try:
            content, _ = self._truth.objects.get(entry(number))
        except Missing:
            return None
        return content.partition(b"\n")[2]

    def _packed(self, numbers: Collection[int]) -> dict[int, bytes]:
        found = dict[int, bytes]()
        packs = self._packs() if numbers else []
        for number in sorted(numbers):
            at = bisect_left(packs, number)
            for last in packs[at : at + 2]:  # the second, where two have tidied at once
                lines = self._lines(last)
                if number in lines:
                    found[number] = lines[number]
                    break
        return found

    def _packs(self) -> list[int]:
        """The last number of each pack, in order."""
        keys = (one.key.removeprefix(f"{HISTORY}/").removesuffix(".jsonl") for one in self._truth.objects.list(HISTORY))
        return sorted(int(key) for key in keys if key.isdigit())

    def _lines(self, last: int) -> dict[int, bytes]:
        known, lines = self._pack
        if known != last:
            content, _ = self._truth.objects.get(f"{HISTORY}/{last:0{NUMBER_DIGITS}}.jsonl")
            lines = {_number(line): line for line in content.splitlines()}
            self._pack = last, lines
        return lines


def _number(line: bytes) -> int:
    """Of an event's line; 0 for what is none."""
    with suppress(ValueError):
        return TaskEvent.parse(line).number
    return 0


def _brought(task: str) -> str:
    return f"{BROUGHT}/{safe_name(task)}.jsonl"
