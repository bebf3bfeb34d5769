"""The process that owns one device: an engine behind a local socket. `python -m service.engine.process DESCRIPTOR`.

It speaks to front ends and to the supervisor; it knows no HTTP.
"""

from __future__ import annotations

import gc

if __name__ == "__main__":
    gc.disable()  # while it imports torch: to look through what that makes, again and again, is a sixth of a start

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvloop

from adapters.errors import AdaptError
from adapters.media import Pixels
from service import child
from service.engine import memory
from service.engine.heap import keep_freed_memory
from service.engine.interface import Answer
from service.engine.local import LocalEngine, local_engine
from service.engine.pixels import array_of, gathered
from service.engine.room import Room
from service.engine.watchdog import watching
from service.exits import DEVICE_LOST
from service.messages import (
    RESIDENTS,
    Answered,
    Ask,
    Call,
    Cancel,
    Channel,
    Failed,
    Hello,
    Message,
    Reply,
    Told,
    failed,
)  # fmt: skip
from service.watch.metrics import Metrics


@dataclass(frozen=True)
class Lent:
    """The rows of an input that came; the front end holds them until it is answered."""

    rows: Pixels
    numbers: Sequence[int]

    @property
    def array(self) -> Pixels:
        return gathered(self.rows, self.numbers)


class Desk:
    """The engine's side of all connections, on the event loop's thread."""

    def __init__(self, engine: LocalEngine, pixels: Sequence[int]) -> None:
        """``pixels`` are the descriptors of each front end's."""
        self.engine, self._pixels = engine, pixels
        self._visits: set[_Visit] = set()
        self._residents: set[str] = set()

    def connection(self) -> Channel:
        """For the event loop's server."""
        return _Visit(self).channel

    def pixels(self, front_end: int) -> Pixels:
        """As large as they are now: a front end gives them their size before it asks anything."""
        return array_of(memory.mapped(self._pixels[front_end]), self.engine.facts.layout.input_size)

    def enter(self, visit: _Visit) -> None:
        self._visits.add(visit)

    def leave(self, visit: _Visit) -> None:
        self._visits.discard(visit)

    def tell_residents(self) -> None:
        """A slot was filled or given up: every front end hears which."""
        now = set(self.engine.bank.residents)
        if now != self._residents:
            news = Told(RESIDENTS, [list(now - self._residents), list(self._residents - now)])
            self._residents = now
            for visit in self._visits:
                visit.channel.send(news)


class _Visit:
    """One front end's connection: what it asked and was not answered yet."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._engine = desk, desk.engine
        self.channel = Channel(self._heard, self._lost)
        self._loop = asyncio.get_running_loop()
        self._front_end = 0
        self._rows: Pixels | None = None
        self._asked: dict[tuple[int, int], Future[Answer]] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._out: deque[Message] = deque()
        self._called = False
        desk.enter(self)

    def _heard(self, message: Message) -> None:
        if isinstance(message, Ask):
            self._ask(message)
        elif isinstance(message, Cancel):
            self._cancel(message)
        elif isinstance(message, Call):
            task = self._loop.create_task(self._answer(message))
            self._calls[message.number] = task
            task.add_done_callback(lambda _: self._calls.pop(message.number, None))
        elif isinstance(message, Hello):
            self._front_end = message.front_end
        elif isinstance(message, Told):
            self._engine.forget(message.value)
            self._desk.tell_residents()

    def _ask(self, ask: Ask) -> None:
        if self._rows is None:  # it has given them their size by now
            self._rows = self._desk.pixels(self._front_end)
        try:
            pixels = Lent(self._rows, ask.rows)
            answers = self._engine.ask(
                ask.items, pixels, ask.deadline, ask.picture, embed=ask.embed, background=ask.background
            )
        except AdaptError as error:
            for item in range(len(ask.items)):
                self.channel.send(failed(ask.number, item, error))
            return
        for item, answer in enumerate(answers):
            self._asked[ask.number, item] = answer
            answer.add_done_callback(partial(self._answered, ask.number, item))

    def _cancel(self, cancel: Cancel) -> None:
        if call := self._calls.get(cancel.number):
            call.cancel()
        if asked := self._asked.get((cancel.number, cancel.item)):
            asked.cancel()  # one that is being computed is answered like any other

    def _answered(self, number: int, item: int, answer: Future[Answer]) -> None:
        """On the engine's thread, or the loader's, or this one; a batch's answers go out together."""
        self._out.append(_message(number, item, answer))
        if not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        self._called = False
        messages = []
        while self._out:
            message = self._out.popleft()
            assert isinstance(message, Answered | Failed)
            self._asked.pop((message.number, message.item), None)
            messages.append(message)
        self.channel.send(*messages)

    async def _answer(self, call: Call) -> None:
        engine, value = self._engine, None
        calls: dict[str, Any] = {
            "check_room": engine.check_room, "try_file": engine.try_file, "tiers": engine.tiers,
            "ready": engine.ready, "snapshot": engine.snapshot, "facts": self._facts, "residents": self._residents,
        }  # fmt: skip
        try:
            made: Coroutine[Any, Any, Any] = calls[call.name](*call.arguments)
            value = await made
        except AdaptError as error:
            self.channel.send(failed(call.number, 0, error))
            return
        self.channel.send(Reply(call.number, value))

    async def _facts(self) -> dict[str, Any]:
        return self._engine.facts.told()

    async def _residents(self) -> list[str]:
        return list(self._engine.bank.residents)

    def _lost(self) -> None:
        """The front end ended: nobody waits any more."""
        self._desk.leave(self)
        for call in list(self._calls.values()):
            call.cancel()
        for answer in list(self._asked.values()):
            answer.cancel()


def _message(number: int, item: int, answer: Future[Answer]) -> Answered | Failed:
    if answer.cancelled():
        return Failed(number, item, "", {})
    error = answer.exception()
    if isinstance(error, AdaptError):
        return failed(number, item, error)
    found = answer.result()
    vector = b"" if found.vector is None else found.vector.tobytes()
    return Answered(number, item, found.logits.tobytes(), found.queue_s, found.compute_s, found.batch_rows, vector)


async def _serve(begun: child.Beginning, engine: LocalEngine) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    desk = Desk(engine, begun.told["pixels"])

    def loaded() -> None:
        loop.call_soon_threadsafe(desk.tell_residents)

    engine.on_loaded = loaded
    server = await loop.create_unix_server(desk.connection, begun.told["path"])

    def heard(message: Message) -> None:
        if isinstance(message, Told) and message.name == "stop":
            stop.set()

    control = await begun.listen(heard)
    control.send(Told("up", engine.facts.told()))
    await stop.wait()
    server.close()


def main() -> None:
    """Until the supervisor says so, or is gone."""
    gc.enable()
    keep_freed_memory()
    begun = child.begin()
    settings, told = begun.settings, begun.told
    room = Room.shared(settings, told["cells"], told["number"])
    try:
        metrics = Metrics(f"engine-{told['number']}")
        with local_engine(settings, told["device"], metrics, room, len(told["pixels"])) as engine:
            lost = partial(child.end, code=DEVICE_LOST)
            with watching(engine.engine, engine.health, settings.device_lost_s, lost):
                child.freeze()
                asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_serve(begun, engine))
    except AdaptError as error:
        begun.refuse(error)
    else:
        child.leave(engine.hanging)


if __name__ == "__main__":
    main()
