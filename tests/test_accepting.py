"""Accepting: connections one at a time, and left for a moment to whoever has fewer."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.engine.room import Cells, cells_of
from service.web.accepting import DEFER_S, Acceptor, Share
from tests.houses import WAIT


def cells(*numbers: float) -> Cells:
    made = cells_of(bytearray(8 * len(numbers)))
    for place, number in enumerate(numbers):
        made[place] = number
    return made


class One(asyncio.Protocol):
    """A connection that counts itself, as uvicorn's do."""

    def __init__(self, share: Share) -> None:
        self._share = share

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._share.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._share.discard(self)


def listening() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    return listener


async def become(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def run(step: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """On asyncio's own loop: uvloop's was seen to wait for ever in its close, where no test's timeout helps."""
    asyncio.run(asyncio.wait_for(step(), WAIT))


def test_a_share_tells_its_number_while_it_accepts() -> None:
    shared = cells(0, 3)
    share = Share(shared, 0)
    assert list(shared) == [math.inf, 3]
    share.begin()
    assert list(shared) == [0, 3]
    assert not share.larger
    ones = [One(share) for _ in range(4)]
    for one in ones:
        share.add(one)
    assert list(shared) == [4, 3]
    assert share.larger
    share.discard(ones[0])
    share.discard(ones[0])
    assert list(shared) == [3, 3]
    assert not share.larger
    share.end()
    share.discard(ones[1])
    assert list(shared) == [math.inf, 3]


@pytest.mark.parametrize("at_once", [False, True])
def test_two_on_one_socket_take_as_many(at_once: bool) -> None:
    async def step() -> None:
        listener, shared = listening(), cells(0, 0)
        shares = [Share(shared, own) for own in range(2)]
        acceptors = [Acceptor(listener.dup(), share, lambda s=share: One(s)) for share in shares]  # type: ignore[misc]
        clients = []
        for number in range(1, 33):
            clients.append(socket.create_connection(listener.getsockname()))
            await become(lambda n=number: at_once or sum(map(len, shares)) == n)
        await become(lambda: sum(map(len, shares)) == 32)
        assert min(map(len, shares)) >= 15
        for acceptor in acceptors:
            acceptor.close()
            acceptor.close()
            await acceptor.wait_closed()
            assert acceptor.sockets == ()
        for client in clients:
            client.close()
        await become(lambda: not any(shares))
        listener.close()

    run(step)


def test_who_has_fewer_and_takes_nothing_holds_nobody_up() -> None:
    async def step() -> None:
        listener, shared = listening(), cells(0, 0)  # the second is dead, or busy
        share = Share(shared, 0)
        acceptor = Acceptor(listener, share, lambda: One(share))
        loop = asyncio.get_running_loop()
        start = loop.time()
        clients = [socket.create_connection(listener.getsockname()) for _ in range(5)]
        await become(lambda: len(share) == 5)
        assert loop.time() - start >= 4 * DEFER_S
        acceptor.close()
        for client in clients:
            client.close()
        await become(lambda: not share)

    run(step)


def test_without_a_file_to_spare_it_tries_again(caplog: pytest.LogCaptureFixture) -> None:
    class Full:
        """A listener for which the system has no file at first."""

        def __init__(self, inner: socket.socket) -> None:
            self.inner, self.tries = inner, 0

        def accept(self) -> tuple[socket.socket, object]:
            self.tries += 1
            if self.tries == 1:
                raise OSError(24, "Too many open files")
            return self.inner.accept()

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    async def step() -> None:
        full, share = Full(listening()), Share(cells(0), 0)
        acceptor = Acceptor(full, share, lambda: One(share))  # type: ignore[arg-type]
        client = socket.create_connection(full.inner.getsockname())
        await become(lambda: len(share) > 0)
        assert full.tries == 2
        acceptor.close()
        client.close()
        await become(lambda: not share)

    run(step)
    assert "Too many open files" in caplog.text
