"""Counts: predictions per task since the start, for the task list.

It does not know Prometheus, whose labels must be bounded; here a task's counts go when the task does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class Counts:
    """Only the event loop's thread changes them, after the task was looked up; any thread may read."""

    def __init__(self) -> None:
        self._answered: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    def answered(self, tasks: Iterable[str]) -> None:
        self._answered.update(tasks)

    def failed(self, tasks: Iterable[str]) -> None:
        self._failed.update(tasks)

    def of(self, task: str) -> tuple[int, int]:
        """(answered, failed)"""
        return self._answered[task], self._failed[task]

    def forget(self, task: str) -> None:
        self._answered.pop(task, None)
        self._failed.pop(task, None)
