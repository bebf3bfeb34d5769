"""Counts: predictions per task since the start, for the task list.

It does not know Prometheus, whose labels must be bounded; here a task's counts go when the task does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

Count = tuple[int, int]
"""Answered and failed."""


class Counting(Protocol):
    """Of this process, or of several together; only the event loop's thread calls."""

    def answered(self, tasks: Iterable[str]) -> None: ...

    def failed(self, tasks: Iterable[str]) -> None: ...

    def forget(self, task: str) -> None: ...

    async def of(self, tasks: Sequence[str]) -> Mapping[str, Count]: ...


class Counts:
    """Of one process."""

    def __init__(self) -> None:
        self._answered: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    def answered(self, tasks: Iterable[str]) -> None:
        self._answered.update(tasks)

    def failed(self, tasks: Iterable[str]) -> None:
        self._failed.update(tasks)

    def forget(self, task: str) -> None:
        self._answered.pop(task, None)
        self._failed.pop(task, None)

    async def of(self, tasks: Sequence[str]) -> Mapping[str, Count]:
        return self.now(tasks)

    def now(self, tasks: Iterable[str]) -> dict[str, Count]:
        """Answered and failed of each."""
        return {task: (self._answered[task], self._failed[task]) for task in tasks}

    def take(self) -> tuple[dict[str, int], dict[str, int]]:
        """All, and begin anew: what one process hands to whoever adds up."""
        taken = dict(self._answered), dict(self._failed)
        self._answered.clear()
        self._failed.clear()
        return taken

    def add(self, answered: Mapping[str, int], failed: Mapping[str, int]) -> None:
        """What another one took."""
        self._answered.update(answered)
        self._failed.update(failed)
