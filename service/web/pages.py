"""Pages: one stretch of a sorted list, and where the next one begins.

A page starts after a key, not at a position: what comes and goes meanwhile moves nothing else on or off a page.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", str, int)


@dataclass(frozen=True)
class Page(Generic[Key]):
    """``next`` is the last key here, to ask on after; None where nothing follows. ``count`` is of all pages."""

    items: Sequence[Key]
    count: int
    next: Key | None


def page(keys: Sequence[Key], after: Key | None, limit: int) -> Page[Key]:
    """At most ``limit`` of the ascending ``keys``, from the first that is greater than ``after``."""
    start = 0 if after is None else bisect_right(keys, after)
    items = keys[start : start + limit]
    return Page(items, len(keys), items[-1] if start + limit < len(keys) else None)


def starting_with(names: Sequence[str], prefix: str) -> Sequence[str]:
    """Those of the ascending ``names`` that start with ``prefix``."""
    if not prefix:
        return names
    start = bisect_left(names, prefix)
    end = bisect_left(names, True, lo=start, key=lambda name: not name.startswith(prefix))
    return names[start:end]
