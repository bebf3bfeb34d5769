"""An open-loop client on raw sockets: it sends on time whether or not answers come, as the world does.

It knows HTTP/1.1 as far as this server speaks it; what the answers should be is for the tests to say.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np

LATE_S = 30.0


@dataclass
class Answers:
    """Seconds from the moment a request was due to its last byte, by status; 0 is a connection that broke."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    retry_after: list[int] = field(default_factory=list)

    def add(self, status: int, seconds: float) -> None:
        self.seconds.setdefault(status, []).append(seconds)

    @property
    def counts(self) -> Counter[int]:
        return Counter({status: len(taken) for status, taken in sorted(self.seconds.items())})

    def quantile(self, status: int, q: float) -> float:
        return float(np.quantile(self.seconds.get(status) or [0.0], q))


class Client:
    """Keeps connections open and reuses the free ones; one request on each at a time. It sends the bodies in turn."""

    def __init__(self, url: str, task: str, bodies: Sequence[bytes], deadline_ms: int) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._address = (host, int(port))
        head = f"POST /v1/tasks/{task}/predict HTTP/1.1\r\nHost: {host}\r\nX-Deadline-Ms: {deadline_ms}\r\n"
        self._requests = cycle([f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies])
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.answers = Answers()

    async def closed_loop(self, clients: int, seconds: float) -> float:
        """Answers (200) a second that ``clients`` get who each wait for their answer: the capacity."""
        end = time.perf_counter() + seconds

        async def run() -> None:
            while time.perf_counter() < end:
                await self.ask(time.perf_counter())

        start = time.perf_counter()
        await asyncio.gather(*(run() for _ in range(clients)))
        return len(self.answers.seconds.get(200, [])) / (time.perf_counter() - start)

    async def open_loop(self, per_second: float, seconds: float) -> None:
        """Send at that rate for so long, then wait for what is still out."""
        start, sent, out = time.perf_counter(), 0, set[asyncio.Task[None]]()
        while (now := time.perf_counter() - start) < seconds:
            while sent < now * per_second:
                task = asyncio.create_task(self.ask(start + sent / per_second))
                out.add(task)
                task.add_done_callback(out.discard)
                sent += 1
            await asyncio.sleep(0.002)
        await asyncio.gather(*out)

    async def ask(self, due: float) -> None:
        try:
            async with asyncio.timeout(LATE_S):
                status = await self._ask()
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            status = 0
        self.answers.add(status, time.perf_counter() - due)

    async def _ask(self) -> int:
        reader, writer = self._kept() or await asyncio.open_connection(*self._address)
        try:
            writer.write(next(self._requests))
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            await reader.readexactly(int(fields["content-length"]))
        except BaseException:
            writer.close()
            raise
        if fields.get("connection") == "close":
            writer.close()
        else:
            self._free.append((reader, writer))
        if "retry-after" in fields:
            self.answers.retry_after.append(int(fields["retry-after"]))
        return int(head.split()[1])

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A free connection; those that the server closed after they had rested for long are no answer of its."""
        while self._free:
            reader, writer = self._free.pop()
            if not (reader.at_eof() or writer.is_closing()):
                return reader, writer
            writer.close()
        return None

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()
        self._free.clear()
