"""What was done to tasks: what is sent, how it is read, and both clients' methods for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptserve_client.calls import Request, page_of, task_path


@dataclass(frozen=True)
class Change:
    """One change of a task. ``what``: published, staged, activated, deleted, rolled_back, and others.

    ``by`` is the name of the key, ``origin`` by which way it came, ``why`` the reason of what the server did by itself;
    ``time`` is ISO 8601 by the clock of ``server``.
    """

    id: str
    time: str
    task: str
    what: str
    version: int | None = None
    digest: str | None = None
    by: str | None = None
    origin: str = ""
    why: str | None = None
    server: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


class HistoryMethods:
    """Those of ``Client``."""

    _pages: Callable[[Callable[[Any], Request[Any]]], Iterator[Any]]

    def history(self, task: str | None = None, *, limit: int | None = None) -> Iterator[Change]:
        """What was done to a task, also one that was deleted, or to all; newest first, in pages of ``limit``."""
        return self._pages(lambda after: changes(task, after, limit))


class AsyncHistoryMethods:
    """Those of ``AsyncClient``; arguments and answers are the same."""

    _pages: Callable[[Callable[[Any], Request[Any]]], AsyncIterator[Any]]

    def history(self, task: str | None = None, *, limit: int | None = None) -> AsyncIterator[Change]:
        """What was done to a task, also one that was deleted, or to all; newest first, in pages of ``limit``."""
        return self._pages(lambda after: changes(task, after, limit))


def changes(task: str | None, after: Any, limit: int | None) -> Request[tuple[list[Change], Any]]:
    """A page of the history, and where it goes on."""
    path = "/v1/history" if task is None else task_path(task, "history")
    return page_of(path, "events", Change, {"after": after, "limit": limit})
