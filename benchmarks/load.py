"""A load generator that costs little: raw HTTP/1.1 over kept-alive connections, in a closed loop or an open one.

It knows requests as bytes and answers as a status and bytes; what they mean is the caller's. A latency of the open loop
counts from the moment at which the request was due, so that a server that stalls is not asked less for it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httptools
import numpy as np

PATIENCE_S = 10.0
"""An answer that takes longer is none."""
MOST_CONNECTIONS = 512
"""More requests than this under way at once, and the next one fails here."""
GOOD_SHARE = 0.99


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    body: bytes


@dataclass
class Outcome:
    """What a run saw: seconds to each answer with status 200, ``inf`` for all others, and how long it took."""

    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def answered(self) -> int:
        return sum(math.isfinite(taken) for taken in self.latencies)

    @property
    def rate(self) -> float:
        """Answers with status 200 a second."""
        return self.answered / self.seconds


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all values do not exceed; ``inf`` is a value like others."""
    return sorted(values)[max(0, math.ceil(round(share * len(values), 9)) - 1)]


def zipf(count: int, exponent: float = 1.0) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Shares (count,) of the first, second, ... most popular: 1, 1/2, 1/3 ... of the first, and 1 in sum."""
    shares = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    found: np.ndarray[tuple[int], np.dtype[np.float64]] = shares / shares.sum()
    return found


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds at which requests are due: ``rate * seconds`` of them, with exponential gaps of mean 1 / rate."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(1, round(rate * seconds)))
    return [float(due) for due in np.cumsum(gaps)]


def highest(
    passes: Callable[[float], bool], guess: float, step: float = 1.3, close: float = 1.08, most: int = 8
) -> float:
    """The highest rate seen to pass: from the guess by steps until one passes and one fails, then between them.

    At most ``most`` rates are tried; 0 says that none of them passed.
    """
    low, high, rate = 0.0, math.inf, guess
    for _ in range(most):
        if passes(rate):
            low = max(low, rate)
        else:
            high = min(high, rate)
        if low and high / low <= close:
            break
        if not low:
            rate = high / step
        elif math.isinf(high):
            rate = low * step
        else:
            rate = math.sqrt(low * high)
    return low


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, leave: Callable[[Connection], None]) -> None:
        self._leave = leave
        self._wanted: asyncio.Future[Answer] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        self._wanted = asyncio.get_running_loop().create_future()
        self._parser, self._body = httptools.HttpResponseParser(self), []
        self._transport.write(request)
        return self._wanted

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and self._wanted and not self._wanted.done():
            self._wanted.set_result(Answer(status, b"".join(self._body)))

    def connection_lost(self, error: Exception | None) -> None:
        self._leave(self)
        self._fail(error or ConnectionError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        if self._wanted and not self._wanted.done():
            self._wanted.set_exception(error)


class Clients:
    """Connections to one port of this machine; as many as there are requests under way."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []
        self._count = 0

    async def ask(self, request: bytes) -> Answer:
        """Raises OSError where the server cannot be reached or hangs up, TimeoutError where it is too slow."""
        connection = self._idle.pop() if self._idle else await self._open()
        try:
            answer = await asyncio.wait_for(connection.ask(request), PATIENCE_S)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return answer

    async def timed(self, request: bytes, due: float) -> float:
        """Seconds from ``due`` until the answer, ``inf`` where it is not one with status 200."""
        try:
            answer = await self.ask(request)
        except (OSError, TimeoutError, httptools.HttpParserError):
            return math.inf
        return time.perf_counter() - due if answer.status == 200 else math.inf

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

    async def _open(self) -> Connection:
        if self._count >= MOST_CONNECTIONS:
            raise ConnectionError(f"{MOST_CONNECTIONS} requests are under way")
        self._count += 1
        loop = asyncio.get_running_loop()
        try:
            _, made = await loop.create_connection(lambda: Connection(self._left), "127.0.0.1", self._port)
        except OSError:
            self._count -= 1
            raise
        return made

    def _left(self, connection: Connection) -> None:
        self._count -= 1
        if connection in self._idle:
            self._idle.remove(connection)


async def closed(port: int, requests: Iterator[bytes], clients: int, seconds: float) -> Outcome:
    """Each client asks again as soon as it has its answer."""
    outcome, pool = Outcome(), Clients(port)
    start = time.perf_counter()

    async def run() -> None:
        while (now := time.perf_counter()) < start + seconds:
            outcome.latencies.append(await pool.timed(next(requests), now))

    await asyncio.gather(*(run() for _ in range(clients)))
    outcome.seconds = time.perf_counter() - start
    pool.close()
    return outcome


async def poisson(port: int, requests: Iterator[bytes], due: Sequence[float], limit_s: float) -> Outcome:
    """Send each request when it is due, whatever became of the others.

    It ends early, with ``inf`` for what was not sent, once more than the share allowed is later than ``limit_s``.
    """
    outcome, pool, loop = Outcome(), Clients(port), asyncio.get_running_loop()
    spare = len(due) - math.ceil(round(GOOD_SHARE * len(due), 9))
    late, lost = 0, asyncio.Event()
    running: set[asyncio.Task[None]] = set()
    start = time.perf_counter()

    def miss() -> None:
        nonlocal late
        late += 1
        if late > spare:
            lost.set()

    async def one(when: float) -> None:
        timer = loop.call_later(when + limit_s - time.perf_counter(), miss)
        taken = await pool.timed(next(requests), when)
        outcome.latencies.append(taken)
        if taken > limit_s and not timer.cancelled() and timer.when() > loop.time():
            miss()  # refused at once, for example
        timer.cancel()

    for after in due:
        await asyncio.sleep(start + after - time.perf_counter())
        if lost.is_set():
            break
        task = asyncio.create_task(one(start + after))
        running.add(task)
        task.add_done_callback(running.discard)
    end, rest = asyncio.create_task(lost.wait()), asyncio.gather(*running, return_exceptions=True)
    either: list[asyncio.Future[Any]] = [end, rest]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    for left in [end, *running]:
        left.cancel()
    for ended in await rest:
        if isinstance(ended, Exception):
            raise ended
    outcome.seconds = time.perf_counter() - start
    outcome.latencies += [math.inf] * (len(due) - len(outcome.latencies))
    pool.close()
    return outcome


def good(outcome: Outcome, limit_s: float) -> bool:
    """99 % of all requests got their answer within the limit."""
    return percentile(outcome.latencies, GOOD_SHARE) <= limit_s
