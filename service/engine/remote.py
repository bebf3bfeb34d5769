"""The engine of another process, as front ends see one: messages over a local socket, pixels through shared memory.

It lives on the event loop's thread. It knows no device, and does not start processes: it waits until one answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np

from adapters.errors import AdaptError
from service.engine.interface import Answer, Facts, Readiness
from service.engine.pixels import Held
from service.engine.room import Room
from service.errors import DeadlineExceeded, EngineLost, NotReady
from service.messages import (
    RESIDENTS,
    Answered,
    Ask,
    Call,
    Cancel,
    Channel,
    Failed,
    Hello,
    Item,
    Message,
    Reply,
    Told,
    error_of,
)  # fmt: skip
from service.watch.metrics import Snapshot

log = logging.getLogger(__name__)

AGAIN_S = 0.02
"""How long after a failure the next connection is tried: an engine that starts is there in a moment, or in minutes."""
GRACE_S = 1.0
PATIENCE_S = 5.0
"""How long an engine may take to answer what it always can, also while its device hangs."""


@dataclass
class _Asked:
    """An input that the engine has; its pixels are held until the last answer is there."""

    pixels: Held
    answers: list[asyncio.Future[Answer]]
    open: int

    @property
    def rows(self) -> int:
        """Of one answer."""
        return len(self.pixels)


class RemoteEngine:
    """See ``interface.Link``. ``connected`` says whether there is one now."""

    def __init__(self, path: str, front_end: int, room: Room, ready_s: float) -> None:
        """``path`` is that of the engine's socket, ``room`` has the cells that the engine writes.

        Within ``ready_s`` seconds the engine itself says whether its device computes.
        """
        self._path, self._front_end, self._room = path, front_end, room
        self._ready_s = ready_s + GRACE_S
        self._rows = 0  # asked for and not answered; the engine's own cells hear of them later
        self._ignored = 0  # calls that it left unanswered since its last word
        self._channel: Channel | None = None
        self._facts: Facts | None = None
        self._asked: dict[int, _Asked] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._residents: set[str] = set()
        self._number = 0
        self._finding: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Wait until the engine is there, and look for the next one whenever it is lost."""
        self._finding = asyncio.ensure_future(self._find())
        await asyncio.shield(self._finding)

    def close(self) -> None:
        """Leave. What is still asked for gets EngineLost."""
        if self._finding is not None:
            self._finding.cancel()
        if self._channel is not None:
            self._channel.close()

    @property
    def connected(self) -> bool:
        return self._channel is not None

    @property
    def facts(self) -> Facts:
        assert self._facts is not None, "connect first"
        return self._facts

    @property
    def backlog_s(self) -> float:
        return self._room.backlog_s(self._rows + self._ignored) if self.connected else float("inf")

    async def check_room(self, rows: int, deadline: float, digests: Sequence[str]) -> None:
        self._there()
        cold = [digest for digest in dict.fromkeys(digests) if digest not in self._residents]
        self._room.check(rows, deadline, cold=bool(cold))
        if cold:
            left = max(0.0, deadline - time.monotonic())
            try:
                await self._call("check_room", rows, deadline, cold, patience_s=left)
            except NotReady as error:
                if isinstance(error, EngineLost):
                    raise
                raise DeadlineExceeded(f"{error.message}, and the request's deadline has passed") from error

    def ask(
        self, items: Sequence[Item], pixels: Held, deadline: float, picture: bytes, *, embed: bool = False,
        background: bool = False,
    ) -> Sequence[asyncio.Future[Answer]]:  # fmt: skip
        channel, loop, number = self._there(), asyncio.get_running_loop(), self._next()
        answers: list[asyncio.Future[Answer]] = [loop.create_future() for _ in items]
        self._asked[number] = _Asked(pixels, answers, len(answers))
        self._rows += len(pixels) * len(answers)
        for place, answer in enumerate(answers):
            answer.add_done_callback(partial(self._left, number, place))
        channel.send(Ask(number, list(pixels.numbers), picture, deadline, list(items), embed, background))
        return answers

    async def try_file(self, file: str, digest: str, task: str, deadline: float) -> None:
        await self._call("try_file", file, digest, task, deadline)

    def forget(self, digest: str) -> None:
        self._residents.discard(digest)
        if self._channel is not None:
            self._channel.send(Told("forget", digest))

    async def tiers(self, digests: Sequence[str]) -> Sequence[str]:
        tiers: list[str] = await self._call("tiers", list(digests), patience_s=PATIENCE_S)
        return tiers

    async def ready(self) -> Readiness:
        return msgspec.convert(await self._call("ready", patience_s=self._ready_s), Readiness)

    async def snapshot(self) -> Snapshot:
        return msgspec.convert(await self._call("snapshot", patience_s=PATIENCE_S), Snapshot)

    async def _find(self) -> None:
        while self._channel is None:
            try:
                _, channel = await asyncio.get_running_loop().create_unix_connection(self._make, self._path)
            except OSError:  # none is listening yet
                await asyncio.sleep(AGAIN_S)
                continue
            try:
                await self._greet(channel)
            except AdaptError:  # it ended again
                await asyncio.sleep(AGAIN_S)

    async def _greet(self, channel: Channel) -> None:
        channel.send(Hello(self._front_end))
        facts = Facts.of(await self._call("facts", over=channel))
        if self._facts not in (None, facts):
            raise SystemExit("the engine that was started anew has another backbone or other slots")
        self._residents = set(await self._call("residents", over=channel))
        self._facts, self._channel = facts, channel

    def _make(self) -> Channel:
        def lost() -> None:
            self._lost(channel)

        channel = Channel(self._heard, lost)
        return channel

    def _lost(self, channel: Channel) -> None:
        """Nothing that was asked will be answered. The pixels are free: their reader is gone."""
        ours, self._residents = self._channel is channel, set()
        if ours:
            self._channel = None
        asked, calls = list(self._asked.values()), list(self._calls.values())
        self._asked.clear()
        self._calls.clear()
        self._rows = self._ignored = 0
        for answer in (*(answer for one in asked for answer in one.answers), *calls):
            if not answer.done():
                answer.set_exception(_lost("ended before it had answered"))
        if ours and self._finding is not None and not self._finding.cancelled():
            self._finding = asyncio.ensure_future(self._find())

    def _there(self) -> Channel:
        if self._channel is None:
            raise _lost("has ended")
        return self._channel

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def _call(
        self, name: str, *arguments: Any, patience_s: float | None = None, over: Channel | None = None
    ) -> Any:
        channel, number = over or self._there(), self._next()
        self._calls[number] = reply = asyncio.get_running_loop().create_future()
        channel.send(Call(number, name, list(arguments)))
        try:
            async with asyncio.timeout(patience_s):
                return await reply
        except TimeoutError as error:
            raise NotReady(f"the engine's process has not answered within {patience_s:g} s; see the log") from error
        finally:
            if self._calls.pop(number, None) is not None and not reply.done():
                channel.send(Cancel(number, 0))
                self._ignored += 1

    def _left(self, number: int, place: int, answer: asyncio.Future[Answer]) -> None:
        """Whoever waited has left; the engine says when it reads the pixels no more."""
        if answer.cancelled() and number in self._asked and self._channel is not None:
            self._channel.send(Cancel(number, place))

    def _heard(self, message: Message) -> None:
        self._ignored = 0
        if isinstance(message, Answered):
            logits = np.frombuffer(message.logits, np.float32)
            vector = np.frombuffer(message.vector, np.float32) if message.vector else None
            answer = Answer(logits, message.queue_s, message.compute_s, message.batch_rows, vector)
            self._ended(message.number, message.item, lambda future: future.set_result(answer))
        elif isinstance(message, Failed) and message.number in self._calls:
            self._settle(self._calls[message.number], lambda future: future.set_exception(error_of(message)))
        elif isinstance(message, Failed):
            self._ended(message.number, message.item, lambda future: future.set_exception(error_of(message)))
        elif isinstance(message, Reply) and message.number in self._calls:
            self._settle(self._calls[message.number], lambda future: future.set_result(message.value))
        elif isinstance(message, Told) and message.name == RESIDENTS:
            came, left = message.value
            self._residents.update(came)
            self._residents.difference_update(left)

    def _ended(self, number: int, place: int, settle: Callable[[asyncio.Future[Answer]], None]) -> None:
        asked = self._asked[number]
        self._settle(asked.answers[place], settle)
        asked.open -= 1
        self._rows -= asked.rows
        if not asked.open:
            del self._asked[number]

    def _settle(self, future: asyncio.Future[Any], settle: Callable[[asyncio.Future[Any]], None]) -> None:
        if not future.done():
            settle(future)


def _lost(how: str) -> EngineLost:
    return EngineLost(f"the engine's process {how}; another one is being started, try again in a moment")
