"""Sole: what is so simple about a store that one server has alone; ``service.store.mirror`` has the other answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from service.store.manifest import VersionInfo

T = TypeVar("T")


class Sole:
    """All files are at hand, and nobody else changes anything."""

    follows = False
    """Whether several servers share it, so that one may know what this one does not yet."""

    async def run(self, work: Callable[[], T]) -> T:
        """Do what changes something, which blocks, off the event loop."""
        return await asyncio.to_thread(work)

    async def bring(self, info: VersionInfo) -> bool:  # noqa: ARG002
        """Have a version's file at hand; True if it was not. A folder has all."""
        return False

    def bring_now(self, info: VersionInfo) -> None:
        """``bring`` for a thread that may wait."""

    def doubt(self, digest: str) -> None:
        """Somebody found a version's bytes wrong: where there are others, they are to be fetched."""

    def look(self, name: str) -> None:
        """See a task as it is this moment, where that takes more than ``follow``. Blocks."""

    def see(self, generation: int) -> None:
        """See every change up to that one, where that takes more than ``follow``. Blocks."""

    def sees(self, generation: int) -> bool:  # noqa: ARG002
        """Whether ``see`` has nothing to do."""
        return True

    def generation(self, name: str) -> int | None:  # noqa: ARG002
        """The number of the task's last change, by which other servers know it; None where there are no others."""
        return None

    @property
    def store_age(self) -> float:
        """Seconds since what several servers share was last heard of; 0 for a folder."""
        return 0.0

    @property
    def store_seen(self) -> int:
        """Every change up to that number is known here; 0 for a folder."""
        return 0
