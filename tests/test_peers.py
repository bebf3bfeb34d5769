"""The load generator: its arithmetic, and what it sees of a server that answers, refuses, stalls or hangs up."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load import Outcome, arrivals, closed, good, highest, percentile, poisson, zipf
from benchmarks.peers.report import Row, markdown, summary

Handler = Callable[[bytes], Awaitable[bytes]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"


@given(st.lists(st.floats(0, 10) | st.just(math.inf), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(v <= found for v in values) >= share * len(values) - 1e-9
    assert sum(v < found for v in values) < share * len(values)


def test_a_failure_is_as_late_as_can_be() -> None:
    assert good(Outcome([0.1] * 99 + [math.inf]), 0.5)
    assert not good(Outcome([0.1] * 98 + [math.inf] * 2), 0.5)
    assert not good(Outcome([0.1] * 98 + [0.6] * 2), 0.5)


def test_popularity_falls_with_the_rank() -> None:
    shares = zipf(4)
    assert shares.sum() == pytest.approx(1)
    assert shares / shares[0] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


def test_arrivals_are_of_poisson() -> None:
    due = np.array(arrivals(50, 100, seed=1))
    gaps = np.diff(due, prepend=0)
    assert len(due) == 5000
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05)
    assert arrivals(50, 100, seed=1) == due.tolist() != arrivals(50, 100, seed=2)


@given(st.floats(0.5, 500), st.floats(0.5, 500))
def test_the_highest_rate_is_found(limit: float, guess: float) -> None:
    tried: list[float] = []

    def passes(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    found = highest(passes, guess, most=60)
    assert limit / 1.08 <= found <= limit
    assert len(tried) < 40


def test_the_search_is_bounded() -> None:
    tried: list[float] = []
    assert highest(lambda rate: bool(tried.append(rate)), 10, most=5) == 0
    assert len(tried) == 5
    assert highest(lambda rate: True, 10, step=2, most=3) == 40


def against(handler: Handler, run: Callable[[int], Awaitable[Outcome]]) -> Outcome:
    """A server whose answer to each request of four bytes the handler gives; an empty one hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while answer := await handler(await reader.readexactly(4)):
                writer.write(answer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async def all_of_it() -> Outcome:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            return await asyncio.wait_for(run(server.sockets[0].getsockname()[1]), 30)

    return asyncio.run(all_of_it())


@pytest.mark.parametrize("answer", [OK, CHUNKED])
def test_the_closed_loop_counts_answers(answer: bytes) -> None:
    async def handler(_: bytes) -> bytes:
        return answer

    seen = against(handler, lambda port: closed(port, itertools.repeat(b"ask!"), 3, 0.2))
    assert seen.answered == len(seen.latencies) > 3
    assert seen.rate == pytest.approx(seen.answered / seen.seconds)


@pytest.mark.parametrize("answer", [BUSY, b""], ids=["refuses", "hangs up"])
def test_what_is_not_200_is_no_answer(answer: bytes) -> None:
    async def handler(_: bytes) -> bytes:
        return answer

    seen = against(handler, lambda port: poisson(port, itertools.repeat(b"ask!"), arrivals(200, 5, 0), 0.5))
    assert seen.answered == 0
    assert len(seen.latencies) == 1000
    assert seen.seconds < 4  # it ended when it was lost


def test_all_arrivals_are_sent_whatever_becomes_of_others() -> None:
    count = itertools.count()

    async def handler(_: bytes) -> bytes:
        if next(count) == 3:
            await asyncio.sleep(0.3)
        return OK

    seen = against(handler, lambda port: poisson(port, itertools.repeat(b"ask!"), arrivals(300, 1, 0), 0.2))
    assert seen.answered == 300
    assert sum(taken > 0.25 for taken in seen.latencies) == 1  # on a connection of its own
    assert good(seen, 0.2)


def test_a_server_that_stalls_is_lost_before_it_answers() -> None:
    async def handler(_: bytes) -> bytes:
        await asyncio.sleep(20)
        return OK

    seen = against(handler, lambda port: poisson(port, itertools.repeat(b"ask!"), arrivals(100, 1, 0), 0.1))
    assert seen.answered == 0
    assert seen.seconds < 10


def test_ratios_are_of_rounds_and_against_the_best() -> None:
    def row(says: str, dtype: str, *goodput: float) -> Row:
        memory = {n: {"pss": 10**8 + n * 10**6, "rss": 0, "processes": 1} for n in (16, 64)}
        return Row(
            says, dtype, goodput=list(goodput), closed=[1.0], closed_p99_s=[math.inf], new_task_s=[0.1], memory=memory
        )

    rows = {
        "ours": row("AdaptServe", "bfloat16", 30, 60, 40),
        "a": row("A", "float32", 10, 10, 20),
        "b": row("B", "float32", 15, 5, 0),
        "c": row("C", "bfloat16", 30, 30, 30),
    }
    assert summary(rows) == {
        "AdaptServe in bfloat16 over the best peer in float32": "2.00 (2.00 to 6.00)",
        "AdaptServe in bfloat16 over the best peer in any dtype": "1.33 (1.00 to 2.00)",
    }
    assert rows["a"].per_task() == 1e6
    assert rows["a"].told()["closed_p99_s"] == [None]
    assert "| A | float32 | 10.0 | 10.0 to 20.0 | 1.0 | inf | 1.00 | 116 | 100 | 0.0 | 0e+00 |" in markdown(rows)
