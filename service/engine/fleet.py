"""Fleet: several engines as one; what comes goes to the one whose queue is through first.

It knows what an engine answers, and not where it runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

from adapters.errors import AdaptError
from service.engine.interface import Answering, Facts, Link, Readiness
from service.engine.pixels import Held
from service.messages import Item
from service.pool import heard
from service.watch.metrics import Snapshot

_TIERS = ("device", "host", "disk")


class Fleet:
    """See ``interface.Link``. All engines hold the same backbone."""

    def __init__(self, engines: Sequence[Link]) -> None:
        self._engines = tuple(engines)

    @property
    def facts(self) -> Facts:
        return self._engines[0].facts

    @property
    def backlog_s(self) -> float:
        return self._next.backlog_s

    @property
    def _next(self) -> Link:
        """The shortest queue in seconds."""
        return min(self._engines, key=lambda engine: engine.backlog_s)

    async def check_room(self, rows: int, deadline: float, digests: Sequence[str]) -> None:
        await self._next.check_room(rows, deadline, digests)

    def ask(
        self, items: Sequence[Item], pixels: Held, deadline: float, picture: bytes, *, embed: bool = False,
        background: bool = False,
    ) -> Sequence[Answering]:  # fmt: skip
        return self._next.ask(items, pixels, deadline, picture, embed=embed, background=background)

    async def try_file(self, file: str, digest: str, task: str, deadline: float) -> None:
        await self._next.try_file(file, digest, task, deadline)

    def forget(self, digest: str) -> None:
        for engine in self._engines:
            engine.forget(digest)

    async def tiers(self, digests: Sequence[str]) -> Sequence[str]:
        """The nearest one of each; ``disk`` where no engine is there to ask."""
        told = await self._all("tiers", digests)
        return [min(tiers, key=_TIERS.index) for tiers in zip(*told, strict=True)] or ["disk"] * len(digests)

    async def ready(self) -> Readiness:
        """Of the first that is: one that hangs keeps nobody waiting. If none is, what the first to answer says."""
        asked = [asyncio.ensure_future(engine.ready()) for engine in self._engines]
        failures = list[AdaptError]()
        try:
            for first in asyncio.as_completed(asked):
                try:
                    return await first
                except AdaptError as error:
                    failures.append(error)
        finally:
            for one in asked:
                one.add_done_callback(heard)
                one.cancel()
        raise failures[0]

    async def snapshot(self) -> Snapshot:
        """Added up over those that are there."""
        return reduce(add, await self._all("snapshot"), Snapshot.nothing())

    async def _all(self, name: str, *arguments: object) -> list[Any]:
        told = await asyncio.gather(
            *(getattr(engine, name)(*arguments) for engine in self._engines), return_exceptions=True
        )
        for wrong in (one for one in told if isinstance(one, BaseException) and not isinstance(one, AdaptError)):
            raise wrong
        return [one for one in told if not isinstance(one, BaseException)]
