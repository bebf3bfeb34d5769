"""A batch cut into requests, and the answers of each put back into order. It sends nothing.

A request is a tar whose members are named by their places, so that no name of a file leaves this machine.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from adaptserve_client.answers import BatchOutcome, Classification, read
from adaptserve_client.errors import AdaptServeError, NoAnswerError, ProblemError, problem_of
from adaptserve_client.retries import Attempts

MAX_ITEMS = 128
MAX_BYTES = 16 * 2**20
AGAIN = (429, 503, 504)
"""An item that is refused so is asked about again: the server had too much to do, or lost its device."""
OF_THE_ITEM = (408, 413, 415, 422, 500, 504)
"""What an item may be refused with in the end; others say that no item would be answered."""

Item = Union[str, "os.PathLike[str]", tuple[str, bytes]]
"""A path, or a name and the bytes."""


@dataclass
class Terms:
    """Of all requests of one batch: whom they go to, tries, and bounds, which shrink where the server takes less."""

    url: str
    retries: int
    max_items: int = MAX_ITEMS
    max_bytes: int = MAX_BYTES


@dataclass(frozen=True)
class Loaded:
    """An item that is ready to be sent; a path where it is too large to be held."""

    index: int
    name: str
    content: bytes | Path


class Portion:
    """What one request asks, and asks again until each item has its outcome; these come out in order."""

    def __init__(self, items: list[Loaded], unreadable: dict[int, BatchOutcome], terms: Terms) -> None:
        """``unreadable``: outcomes that are known already, by the item's index."""
        self._items = {item.index: item for item in items}
        self._order = sorted([*self._items, *unreadable])
        self._done, self._terms = unreadable, terms
        self._out, self._most, self._rest = 0, len(items), b""
        self._attempts = Attempts(terms.retries, repeatable=True)
        self._begin([])

    @property
    def alone(self) -> Loaded | None:
        """The one item that is too large to be held, and goes by itself."""
        return next((item for item in self._items.values() if isinstance(item.content, Path)), None)

    @property
    def left(self) -> list[Loaded]:
        """Items without an outcome."""
        return [item for index, item in self._items.items() if index not in self._done]

    def body(self) -> bytes:
        """The tar of what is asked now: what is left, or a part of it where the server takes less at once."""
        self._begin(self.left[: self._most])
        parts = []
        for place, item in enumerate(self._asked):
            content = item.content
            assert isinstance(content, bytes)
            entry = tarfile.TarInfo(f"{place:06}")
            entry.size = len(content)
            parts += [entry.tobuf(tarfile.USTAR_FORMAT), content, bytes(-len(content) % tarfile.BLOCKSIZE)]
        return b"".join([*parts, bytes(2 * tarfile.BLOCKSIZE)])

    def take(self, data: bytes) -> None:
        """Some bytes of the answer. Raises NoAnswerError for a line that cannot be read."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.strip():
                self._line(line)

    def settle(
        self, item: Loaded, *, answer: Classification | None = None, error: ProblemError | OSError | None = None
    ) -> None:
        """The outcome of one item."""
        self._done[item.index] = BatchOutcome(item.index, item.name, answer, error)
        self._attempts.progress()

    def fail(self, item: Loaded, error: ProblemError | OSError) -> None:
        """The same for an item that was asked by itself. Raises ``error`` where it is not the item's own fault."""
        if isinstance(error, ProblemError) and error.status not in OF_THE_ITEM:
            raise error
        self.settle(item, error=error)

    def ready(self) -> Iterator[BatchOutcome]:
        """Outcomes whose turn it is."""
        while self._out < len(self._order) and (outcome := self._done.get(self._order[self._out])):
            self._out += 1
            yield outcome

    def after(self, error: AdaptServeError | None) -> float | None:
        """What follows the end of a request: seconds until the next one, or None when all is done.

        Raises ``error``, or that the stream was cut short, where asking again does not help.
        """
        if isinstance(error, ProblemError) and self._divided(error):
            return 0.0 if self.left else None
        if not self.left:
            return None
        silent = any(item.index not in self._done and item.index not in self._refused for item in self._asked)
        cut = error is None and (silent or not self._complete)
        if cut:
            told = "the answers ended before the last item's"
            error = self._why or NoAnswerError(told, url=self._terms.url, sent=True)
        if error is None and not self._refused:
            return 0.0  # what was asked is answered; the rest goes into another request
        pause = self._attempts.pause_after(error or next(iter(self._refused.values())), worthwhile=cut or error is None)
        if pause is None and error:
            raise error
        if pause is None:
            for index, problem in self._refused.items():
                self.fail(self._items[index], problem)
            return 0.0 if self.left else None
        return pause

    def _begin(self, asked: list[Loaded]) -> None:
        self._asked, self._complete = asked, False
        self._rest = b""
        self._refused: dict[int, ProblemError] = {}
        self._why: ProblemError | None = None

    def _line(self, line: bytes) -> None:
        try:
            document: dict[str, Any] = json.loads(line)
            problem = problem_of(document["problem"]) if "problem" in document else None
            if "done" in document:
                self._complete, self._why = bool(document["done"]), problem
                return
            item = self._asked[document["index"]]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            told = f"a line of the answer cannot be read: {line[:80]!r}"
            raise NoAnswerError(told, url=self._terms.url, sent=True) from error
        if problem is None:
            inner = {name: value for name, value in document.items() if name not in ("index", "name")}
            self.settle(item, answer=read(Classification, inner))
        elif problem.status in AGAIN:
            self._refused[item.index] = problem
        else:
            self.settle(item, error=problem)

    def _divided(self, error: ProblemError) -> bool:
        """True when a smaller request may be taken where this one was not; one item alone keeps the refusal."""
        if error.status != 413:
            return False
        if len(self._asked) < 2:
            for item in self._asked:
                self.settle(item, error=error)
            return True
        self._most = len(self._asked) // 2
        limit = error.members.get("limit")
        if error.members.get("field") == "max_items_per_batch" and isinstance(limit, int) and limit > 0:
            self._most = self._terms.max_items = min(limit, len(self._asked) - 1)
        else:
            size = sum(len(item.content) for item in self._asked if isinstance(item.content, bytes))
            self._terms.max_bytes = min(self._terms.max_bytes, max(1, size // 2))
        return True


def portions(items: Iterable[Item], terms: Terms) -> Iterator[Portion]:
    """The items in order, read from disk as far as they go into one request, which is held in memory."""
    taken: list[Loaded] = []
    unreadable: dict[int, BatchOutcome] = {}
    size = 0
    for index, item in enumerate(items):
        name, content = _named(item)
        try:
            length = content.stat().st_size if isinstance(content, Path) else len(content)
            full = len(taken) + len(unreadable) >= terms.max_items
            if full or (taken and size + length > terms.max_bytes):
                yield Portion(taken, unreadable, terms)
                taken, unreadable, size = [], {}, 0
            if isinstance(content, Path) and length <= terms.max_bytes:
                content = content.read_bytes()
            elif isinstance(content, Path):
                with content.open("rb"):  # it can be read
                    pass
        except OSError as error:
            unreadable[index] = BatchOutcome(index, name, error=error)
            continue
        taken.append(Loaded(index, name, content))
        size += length
        if isinstance(content, Path):
            yield Portion(taken, unreadable, terms)
            taken, unreadable, size = [], {}, 0
    if taken or unreadable:
        yield Portion(taken, unreadable, terms)


def _named(item: Item) -> tuple[str, bytes | Path]:
    if isinstance(item, tuple):
        name, content = item
        return name, bytes(content)
    path = Path(item)
    return str(path), path
