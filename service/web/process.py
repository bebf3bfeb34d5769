"""The process of one front end: uvicorn on the server's listening socket. `python -m service.web.process DESCRIPTOR`.

It speaks HTTP to clients, and to engines and its supervisor over local sockets. It imports no torch.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import uvloop

from adapters.config import Size
from adapters.errors import AdaptError
from service import child
from service.engine import memory
from service.engine.fleet import Fleet
from service.engine.pixels import PixelMemory, array_of, row_bytes
from service.engine.remote import RemoteEngine
from service.engine.room import Room, cells_of
from service.limits import pixel_rows
from service.messages import JOB, VERSIONS, Call, Channel, Message, Reply, Told
from service.store.journal import Journal
from service.store.opening import open_repository
from service.watch.counts import Count, Counts
from service.watch.metrics import Metrics
from service.watch.versions import Ledger
from service.web.accepting import Share
from service.web.app import FrontEnd, front_end
from service.web.server import Server, server_config

TELL_S = 0.2
"""How often counts go to the supervisor, while there are any: so late may another front end know of them."""


class Supervision:
    """What a front end says to the supervisor and asks of it."""

    def __init__(self) -> None:
        self._channel: Channel | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._number = 0

    def connect(self, channel: Channel) -> None:
        """From now on it is there."""
        self._channel = channel

    async def ask(self, name: str, *arguments: Any) -> Any:
        """What it knows."""
        self._number += 1
        self._asked[self._number] = reply = asyncio.get_running_loop().create_future()
        self.send(Call(self._number, name, list(arguments)))
        return await reply

    def heard(self, reply: Reply) -> None:
        """What ``ask`` waits for."""
        asked = self._asked.pop(reply.number)
        if not asked.done():
            asked.set_result(reply.value)

    def send(self, message: Message) -> None:
        assert self._channel is not None, "nobody is served before the supervisor is connected"
        self._channel.send(message)


class SharedCounts:
    """Of all front ends together; the supervisor adds up."""

    def __init__(self, supervision: Supervision) -> None:
        self._own, self._supervision = Counts(), supervision
        self._timer: asyncio.TimerHandle | None = None

    def answered(self, tasks: Iterable[str]) -> None:
        self._own.answered(tasks)
        self._soon()

    def failed(self, tasks: Iterable[str]) -> None:
        self._own.failed(tasks)
        self._soon()

    def forget(self, task: str) -> None:
        self.tell()
        self._supervision.send(Told("forget", task))

    async def of(self, tasks: Sequence[str]) -> Mapping[str, Count]:
        self.tell()
        found = await self._supervision.ask("counts", list(tasks))
        return {task: (answered, failed) for task, (answered, failed) in found.items()}

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_S, self.tell)

    def tell(self) -> None:
        """Hand over what was counted since the last time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._supervision.send(Told("counted", list(self._own.take())))


def shared_ledger(supervision: Supervision) -> Ledger:
    """Of all front ends together; the supervisor adds up, and looks after the versions."""
    return Ledger(lambda news: supervision.send(Told(VERSIONS, news)), partial(supervision.ask, VERSIONS))


class _Server(Server):
    """Signals are the supervisor's; it begins to listen when that says so."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


class _Process:
    """One front end from its first word to its last."""

    def __init__(self, begun: child.Beginning) -> None:
        self._begun, self._settings = begun, begun.settings
        self._go, self._supervision = asyncio.Event(), Supervision()
        self._counts, self._ledger = SharedCounts(self._supervision), shared_ledger(self._supervision)
        self._server: _Server | None = None
        self._drain = False

    async def run(self) -> FrontEnd:
        """Serve until told to drain."""
        told, settings = self._begun.told, self._settings
        channel = await self._begun.listen(self._heard)
        owner = f"front-end-{told['number']}"
        self._supervision.connect(channel)
        repository = open_repository(settings, Journal(memory.mapped(told["journal"])), owner)
        await asyncio.to_thread(repository.load)
        engines = [self._engine(number, path) for number, path in enumerate(told["engines"])]
        await asyncio.gather(*(engine.connect() for engine in engines))
        fleet, metrics = Fleet(engines), Metrics(owner)
        pixels = self._pixels(fleet.facts.layout.input_size)
        added = partial(channel.send, Told(JOB, None))
        with front_end(settings, fleet, repository, pixels, self._counts, self._ledger, metrics, added) as front:
            listener = socket.socket(fileno=told["listener"])
            connections = cells_of(memory.mapped(told["connections"]))
            self._server = _Server(
                server_config(settings, front.served), on_started=lambda: channel.send(Told("up", {})),
                share=Share(connections, told["number"]) if len(connections) > 1 else None, pins=front.pins,
            )  # fmt: skip
            channel.send(Told("built", {}))
            await self._go.wait()
            child.freeze()
            if not self._drain:
                await self._server.serve([listener])
        self._counts.tell()
        self._ledger.tell()
        repository.close()
        for engine in engines:
            engine.close()
        channel.close()
        return front

    def _heard(self, message: Message) -> None:
        if isinstance(message, Reply):
            self._supervision.heard(message)
        elif isinstance(message, Told) and message.name == "go":
            self._go.set()
        elif isinstance(message, Told) and message.name == "drain":
            self._drain = True
            self._go.set()
            if self._server is not None:
                self._server.should_exit = True

    def _engine(self, number: int, path: str) -> RemoteEngine:
        settings, told = self._settings, self._begun.told
        room = Room.of(settings, told["cells"], number)
        return RemoteEngine(path, told["number"], room, settings.ready_timeout_s)

    def _pixels(self, size: Size) -> PixelMemory:
        descriptor = self._begun.told["pixels"]
        os.ftruncate(descriptor, pixel_rows(self._settings) * row_bytes(size))
        return PixelMemory(array_of(memory.mapped(descriptor), size))


def main() -> None:
    """Until the supervisor says so, or is gone."""
    begun = child.begin()
    try:
        front = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_Process(begun).run())
    except AdaptError as error:
        begun.refuse(error)
    else:
        child.leave(front.hanging)


if __name__ == "__main__":
    main()
