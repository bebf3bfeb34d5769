"""What processes say to each other: whole messages out of any pieces, and errors that arrive as what they were."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import AdaptError, LoadsBehind
from service.errors import KINDS, BadRange, QueueFull, status_of
from service.messages import (
    Answered,
    Ask,
    Call,
    Cancel,
    Channel,
    Failed,
    Item,
    Message,
    Reply,
    Told,
    error_of,
    failed,
    framed,
    taken,
)  # fmt: skip

NUMBERS = st.integers(0, 2**40)
ITEMS = st.builds(Item, st.text(max_size=64), st.text(max_size=64), st.lists(st.text(), max_size=3).map(tuple))
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Ask, NUMBERS, st.lists(NUMBERS, max_size=8), st.binary(max_size=32), st.floats(0, 1e9),
              st.lists(ITEMS, max_size=3)),
    st.builds(Cancel, NUMBERS, NUMBERS),
    st.builds(Call, NUMBERS, st.text(), st.lists(st.integers(0, 9) | st.text(), max_size=3)),
    st.builds(Answered, NUMBERS, NUMBERS, st.binary(max_size=300), st.floats(0, 9), st.floats(0, 9), NUMBERS),
    st.builds(Reply, NUMBERS, st.none() | st.text()),
    st.builds(Told, st.text(), st.lists(st.text(), max_size=3)),
)  # fmt: skip


@given(st.lists(MESSAGES, max_size=6), st.lists(st.integers(1, 200), min_size=1, max_size=50))
def test_messages_come_whole_out_of_any_pieces(messages: list[Message], cuts: list[int]) -> None:
    wire, buffer, found = b"".join(map(framed, messages)), bytearray(), list[Message]()
    start = 0
    for turn in range(len(wire) + 1):
        step = cuts[turn % len(cuts)]
        buffer += wire[start : start + step]
        start += step
        found += taken(buffer)
        if start >= len(wire):
            break
    assert found == messages
    assert buffer == b""


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind not in (QueueFull, BadRange, LoadsBehind)])
def test_each_error_arrives_as_what_it_was(kind: type[AdaptError]) -> None:
    try:
        sent = kind("what is wrong", field="x", limit=3, got=[1, 2])
    except TypeError:  # one with something more to say
        sent = kind("what is wrong", retry_after=2.0, field="x", limit=3, got=[1, 2])
    same(sent)


@pytest.mark.parametrize(
    "sent", [QueueFull("full", retry_after=1.5, limit=9), BadRange("none", size=7), LoadsBehind("behind", wait_s=3.5)]
)
def test_what_an_error_has_beside_its_facts_arrives_too(sent: AdaptError) -> None:
    same(sent)


def same(sent: AdaptError) -> None:
    buffer = bytearray(framed(failed(1, 0, sent)))
    (message,) = taken(buffer)
    assert isinstance(message, Failed)
    came = error_of(message)
    assert type(came) is type(sent)
    assert vars(came) == vars(sent)
    assert (str(came), status_of(came)) == (str(sent), status_of(sent))


def test_facts_that_no_message_can_hold_go_as_text() -> None:
    sent = AdaptError("odd", path=KINDS, number=math.pi)
    came = error_of(failed(1, 0, sent))
    assert came.facts["number"] == math.pi
    assert isinstance(came.facts["path"], dict | str)


def test_what_one_turn_of_the_loop_sends_comes_in_one_piece_and_in_order() -> None:
    """Each piece wakes the other process."""
    sent: list[Message] = [Told("a", number) for number in range(5)]

    class Transport(asyncio.Transport):
        def __init__(self) -> None:
            super().__init__()
            self.written: list[bytes] = []

        def write(self, data: bytes | bytearray | memoryview) -> None:
            self.written.append(bytes(data))

        def close(self) -> None:
            self.written.append(b"closed")

    async def run() -> list[bytes]:
        channel, transport = Channel(lambda _: None, lambda: None), Transport()
        channel.connection_made(transport)
        channel.send(*sent[:2])
        for message in sent[2:4]:
            channel.send(message)
        await asyncio.sleep(0)
        channel.send(sent[4])
        channel.close()
        await asyncio.sleep(0)
        return transport.written

    first, last, end = asyncio.run(run())
    assert (list(taken(bytearray(first))), list(taken(bytearray(last))), end) == (sent[:4], sent[4:], b"closed")
