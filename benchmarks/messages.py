"""What a message between processes costs: the server's own channel over a unix socket, against ZeroMQ.

`python -m benchmarks.messages` has another process answer requests of the size that the server's have, one at a time
and sixteen under way, and prints round trips a second and the processor time of each. ZeroMQ is measured where pyzmq
is installed (the extra `peers` brings it).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import torch
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.common import machine
from service.messages import Answered, Ask, Channel, Item, Message

Trip = Callable[[int], Awaitable[None]]
ASK = Ask(1, [7], bytes(32), 1e6, [Item("digits", "0" * 64, ("data/tasks/digits/versions/1.safetensors",))])
LOGITS = bytes(40)


class Ours:
    """One end that asks; answers come by number."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._channel = Channel(self._heard, lambda: None)

    async def connect(self, path: str) -> Trip:
        """A way to ask whoever listens there."""
        while True:
            try:
                await asyncio.get_running_loop().create_unix_connection(lambda: self._channel, path)
                return self._ask
            except OSError:
                await asyncio.sleep(0.01)

    async def _ask(self, number: int) -> None:
        self._waiting[number] = asyncio.get_running_loop().create_future()
        self._channel.send(msgspec.structs.replace(ASK, number=number))
        await self._waiting[number]

    def _heard(self, message: Message) -> None:
        assert isinstance(message, Answered)
        self._waiting.pop(message.number).set_result(None)


async def answer_ours(path: str) -> None:
    """The other end: as many connections as come."""

    def made() -> Channel:
        def heard(message: Message) -> None:
            assert isinstance(message, Ask)
            channel.send(Answered(message.number, 0, LOGITS, 0.0, 0.0, 1))

        channel = Channel(heard, lambda: None)
        return channel

    server = await asyncio.get_running_loop().create_unix_server(made, path)
    await server.serve_forever()


class Zero:
    """The same messages, encoded in the same way, over DEALER and ROUTER."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def connect(self, path: str) -> Trip:
        """A way to ask whoever listens there."""
        zmq: Any = importlib.import_module("zmq.asyncio")
        self._socket = zmq.Context.instance().socket(importlib.import_module("zmq").DEALER)
        self._socket.connect(f"ipc://{path}")
        self._listening = asyncio.ensure_future(self._listen())
        return self._ask

    async def _ask(self, number: int) -> None:
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(msgspec.msgpack.encode(msgspec.structs.replace(ASK, number=number)))
        await self._waiting[number]

    async def _listen(self) -> None:
        while True:
            message = msgspec.msgpack.decode(await self._socket.recv(), type=Answered)
            self._waiting.pop(message.number).set_result(None)


async def answer_zero(path: str) -> None:
    """The other end."""
    zmq: Any = importlib.import_module("zmq.asyncio")
    socket = zmq.Context.instance().socket(importlib.import_module("zmq").ROUTER)
    socket.bind(f"ipc://{path}")
    while True:
        who, content = await socket.recv_multipart()
        message = msgspec.msgpack.decode(content, type=Ask)
        answer = Answered(message.number, 0, LOGITS, 0.0, 0.0, 1)
        await socket.send_multipart([who, msgspec.msgpack.encode(answer)])


WAYS: dict[str, tuple[type[Ours] | type[Zero], Callable[[str], Coroutine[Any, Any, None]]]] = {
    "unix socket, asyncio": (Ours, answer_ours), "ZeroMQ, pyzmq": (Zero, answer_zero),
}  # fmt: skip


async def measure(way: str, path: str, seconds: float, under_way: int) -> tuple[float, float]:
    """Round trips a second, and microseconds of this process's time for each."""
    trip = await WAYS[way][0]().connect(path)
    await trip(0)
    end, count, before = time.perf_counter() + seconds, 0, time.process_time()

    async def ask(first: int) -> None:
        nonlocal count
        number = first
        while time.perf_counter() < end:
            await trip(number)
            number, count = number + under_way, count + 1

    start = time.perf_counter()
    await asyncio.gather(*(ask(1 + n) for n in range(under_way)))
    return count / (time.perf_counter() - start), 1e6 * (time.process_time() - before) / count


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.messages", description=__doc__)
    parser.add_argument("--answer", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    given = parser.parse_args()
    if given.answer:
        asyncio.Runner(loop_factory=uvloop.new_event_loop).run(WAYS[given.answer][1](given.path))
        return
    ways = [way for way in WAYS if way != "ZeroMQ, pyzmq" or importlib.util.find_spec("zmq")]
    where = machine(torch.device("cpu"))
    table = Table(title=f"{where['device']}, {where['date']}, {given.rounds} rounds of {given.seconds:g} s")
    for column in ("way", "under way", "round trips a second, median", "us of the asking process"):
        table.add_column(column, justify="left" if column == "way" else "right")
    with tempfile.TemporaryDirectory() as folder:
        for under_way in (1, 16):
            found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for turn in range(given.rounds):
                for way in ways:
                    path = str(Path(folder) / f"{turn}{under_way}{ways.index(way)}")
                    command = [sys.executable, "-m", "benchmarks.messages", "--answer", way, "--path", path]
                    with subprocess.Popen(command, env=os.environ) as other:
                        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
                        found[way].append(runner.run(measure(way, path, given.seconds, under_way)))
                        other.kill()
            for way, values in found.items():
                rate, used = (statistics.median(column) for column in zip(*values, strict=True))
                table.add_row(way, str(under_way), f"{rate:.0f}", f"{used:.0f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
