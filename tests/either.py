"""A client of either kind, plain or from asyncio, used in one way; a test with these fixtures runs with both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from inspect import isasyncgen, isawaitable
from typing import Any

import httpx
import pytest

from adaptserve_client import AsyncClient, Client

KINDS: list[type[Client] | type[AsyncClient]] = [Client, AsyncClient]


class Either:
    """A client of one kind, used as the plain one: what is awaited or iterated there is a value or a list here."""

    def __init__(self, kind: type[Client] | type[AsyncClient], *given: Any, **more: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self.client = kind(*given, **more)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            made = getattr(self.client, name)(*given, **more)
            if isasyncgen(made):
                return self._loop.run_until_complete(_listed(made))
            if isawaitable(made):
                return self._loop.run_until_complete(made)
            return list(made) if isinstance(made, Iterator) else made

        return call

    def end(self) -> None:
        self.close()
        self._loop.close()


async def _listed(made: Any) -> list[Any]:
    return [one async for one in made]


@pytest.fixture(params=KINDS, ids=["plain", "asyncio"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def clients(kind: Any) -> Iterator[Callable[..., Either]]:
    """Makes clients of the kind at hand."""
    made: list[Either] = []

    def make(*given: Any, **more: Any) -> Either:
        made.append(Either(kind, *given, **more))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
def of_made(clients: Any) -> Callable[..., Either]:
    """A client of a made-up server."""

    def make(made: Callable[[httpx.Request], httpx.Response], retries: int = 3) -> Either:
        found: Either = clients("http://made", transport=httpx.MockTransport(made), retries=retries)
        return found

    return make
