"""Several engines as one: one that hangs keeps nobody waiting, and gets no more than it answers."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.engine.fleet import Fleet
from service.engine.interface import Readiness
from service.engine.room import RATE, Room, cells_for, cells_of
from service.errors import EngineLost, NotReady


class Engine:
    """Says what it is given, or nothing."""

    def __init__(self, said: Readiness | Exception | None) -> None:
        self._said = said

    async def ready(self) -> Readiness:
        if self._said is None:
            await asyncio.Event().wait()
        if isinstance(self._said, Exception):
            raise self._said
        assert self._said is not None
        return self._said


def test_one_that_is_ready_is_enough_and_is_not_waited_for_behind_one_that_hangs() -> None:
    good = Readiness(0.1, 0.0)
    fleet = Fleet([Engine(None), Engine(EngineLost("it has ended")), Engine(good)])  # type: ignore[list-item]
    assert asyncio.run(asyncio.wait_for(fleet.ready(), 5)) == good


def test_if_none_is_ready_one_says_why() -> None:
    fleet = Fleet([Engine(EngineLost("it has ended")), Engine(EngineLost("it has ended"))])  # type: ignore[list-item]
    with pytest.raises(NotReady, match="it has ended"):
        asyncio.run(fleet.ready())


def test_rows_that_an_engine_has_not_heard_of_yet_count_as_its_backlog() -> None:
    cells = cells_of(bytearray(8 * cells_for(0)))
    room = Room(max_batch_rows=8, max_queue_rows=20, clock=time.monotonic, cells=cells).begin()
    cells[RATE] = 4.0
    assert (room.backlog_s(), room.backlog_s(2)) == (0.0, 0.5)
    room.enter(8, 0.0, "", always=True)
    assert (room.backlog_s(2), room.backlog_s(12)) == (2.0, 3.0)
    room.open = False
    assert room.backlog_s(2) == float("inf")
