"""adaptserve_client where the server misbehaves or is none: what is asked again, and what its errors say."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

from adaptserve_client import (
    BadAddressError,
    BatchOutcome,
    NoAnswerError,
    OverloadedError,
    ProblemError,
    TimedOutError,
    TooLargeError,
    UnavailableError,
    UnexpectedAnswerError,
    UnprocessableError,
)
from adaptserve_client.errors import refusal_of
from adaptserve_client.retries import Attempts
from tests.either import clients, kind, of_made
from tests.houses import photograph

__all__ = ["clients", "kind", "of_made"]


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://[::1", "host name"])
def test_an_address_that_cannot_be_used(kind: Any, url: str) -> None:
    with pytest.raises(BadAddressError, match="write it like"):
        kind(url)


def test_no_server(clients: Any) -> None:
    client = clients("http://127.0.0.1:9", retries=0)
    with pytest.raises(NoAnswerError) as caught:
        client.predict(photograph(), task="pets")
    assert caught.value.url == "http://127.0.0.1:9/v1/tasks/pets/predict"
    assert not caught.value.sent
    assert not client.health()
    assert not client.ready()
    with pytest.raises(NoAnswerError):
        client.batch([("a", b"b")], task="pets")


class Made:
    """A server of batches that answers each item with its size, and does what ``does`` says in its next answers."""

    def __init__(self, *does: Callable[[list[bytes]], httpx.Response]) -> None:
        self.does, self.asked = list(does), list[list[bytes]]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        with tarfile.open(fileobj=io.BytesIO(request.content)) as tar:
            files = [tar.extractfile(entry) for entry in tar]
            items = [file.read() for file in files if file]
        self.asked.append(items)
        return self.does.pop(0)(items) if self.does else self.good(items)

    @staticmethod
    def line(place: int, item: bytes) -> dict[str, Any]:
        label = {"label": f"\u2028{len(item)}", "index": 0, "score": 1.0, "why": "new"}
        return {
            "index": place, "name": "x", "task": "t", "version": 1, "digest": "d", "modality": "image",
            "predictions": [label], "later": [1, 2],
        }  # fmt: skip

    @classmethod
    def good(cls, items: Sequence[bytes], *bad: int, status: int = 503, upto: int | None = None) -> httpx.Response:
        """All answers; those in ``bad`` with a problem. It ends in the middle of the line of ``upto``."""
        lines = [cls.line(place, item) for place, item in enumerate(items)]
        for place in bad:
            problem = {"status": status, "title": "T", "detail": "as made", "type": "about:blank"}
            lines[place] = {"index": place, "name": "x", "problem": problem}
        text = [json.dumps(line, ensure_ascii=False) for line in [*lines, {"done": True, "items": 0, "failed": 0}]]
        whole = "\n".join(text[:upto]) + ("\n" if upto is None else "\n" + text[upto][:20])
        return httpx.Response(200, content=whole.encode())


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Tries follow each other at once; what would be waited is noted."""
    noted: list[float] = []
    really = Attempts.pause_after

    def at_once(self: Attempts, error: Any, **given: Any) -> float | None:
        pause = really(self, error, **given)
        if pause is not None:
            noted.append(pause)
        return None if pause is None else 0.0

    monkeypatch.setattr(Attempts, "pause_after", at_once)
    return noted


ITEMS = [("x", bytes(n)) for n in range(1, 11)]


def sizes(outcomes: Sequence[BatchOutcome]) -> list[str | None]:
    assert [one.index for one in outcomes] == list(range(len(outcomes)))
    return [one.answer.predictions[0].label if one.answer else None for one in outcomes]


def test_what_a_cut_short_stream_left_is_asked_again(of_made: Any) -> None:
    made = Made(lambda items: Made.good(items, upto=4), lambda items: Made.good(items, upto=0), Made.good)
    outcomes = of_made(made).batch(ITEMS, task="t")
    assert sizes(outcomes) == [f"\u2028{n}" for n in range(1, 11)]
    assert [len(items) for items in made.asked] == [10, 6, 6]
    answer = outcomes[0].answer
    assert answer is not None
    assert answer.extra == {"later": [1, 2]}
    assert answer.predictions[0].extra == {"why": "new"}


def test_a_stream_that_gives_nothing_any_more_is_an_error_after_all_tries(of_made: Any) -> None:
    made = Made(lambda items: Made.good(items, upto=4), *[lambda items: Made.good(items, upto=0)] * 10)
    client = of_made(made)
    with pytest.raises(NoAnswerError, match="ended before"):
        client.batch(ITEMS, task="t")
    assert len(made.asked) == 1 + 3


def test_a_server_that_leaves_an_item_out_is_not_asked_for_ever(of_made: Any) -> None:
    def silent(items: list[bytes]) -> httpx.Response:
        return httpx.Response(200, content=b"\n".join(Made.good(items).content.splitlines()[1:]) + b"\n")

    made = Made(*[silent] * 40)
    with pytest.raises(NoAnswerError, match="ended before"):
        of_made(made).batch(ITEMS, task="t")
    assert len(made.asked) == 1 + 3


def test_a_server_that_says_why_it_cuts_short(of_made: Any) -> None:
    def stops(items: list[bytes]) -> httpx.Response:
        whole = Made.good(items, upto=3).content.rpartition(b"\n")[0]
        problem = {"status": 503, "title": "Draining", "detail": "it stops", "type": "urn:adaptserve:problem:draining"}
        return httpx.Response(
            200, content=whole + b"\n" + json.dumps({"done": False, "problem": problem}).encode() + b"\n"
        )

    made = Made(stops)
    assert sizes(of_made(made).batch(ITEMS, task="t")) == [f"\u2028{n}" for n in range(1, 11)]
    made = Made(*[stops] * 9)
    with pytest.raises(UnavailableError, match="it stops"):
        of_made(made, retries=0).batch(ITEMS, task="t")


def test_items_of_a_busy_server_are_asked_again_and_bad_ones_are_not(of_made: Any) -> None:
    made = Made(lambda items: Made.good(items, 2, 5), lambda items: Made.good(items, 1, status=422))
    outcomes = of_made(made).batch(ITEMS, task="t")
    assert [len(items) for items in made.asked] == [10, 2]
    assert [one.index for one in outcomes if one.error] == [5]
    assert isinstance(outcomes[5].error, UnprocessableError)


@pytest.mark.parametrize(("status", "ends"), [(503, True), (429, True), (504, False)])
def test_an_item_that_stays_refused(of_made: Any, status: int, ends: bool) -> None:
    """A deadline is the item's own, after some tries; that the server has no room would be said of all others too."""
    made = Made(*[lambda items: Made.good(items, len(items) - 1, status=status)] * 9)
    client = of_made(made, retries=2)
    if ends:
        with pytest.raises(ProblemError, match="as made"):
            client.batch(ITEMS, task="t")
    else:
        outcomes = client.batch(ITEMS, task="t")
        assert [one.index for one in outcomes if one.error] == [9]
    assert [len(items) for items in made.asked] == [10, 1, 1]


def test_requests_are_divided_where_the_server_takes_less(of_made: Any) -> None:
    def too_large(items: list[bytes]) -> httpx.Response:
        return Made.good(items) if sum(map(len, items)) <= 12 else httpx.Response(413, json={"detail": "too large"})

    made = Made(*[too_large] * 40)
    outcomes = of_made(made).batch([*ITEMS, ("x", bytes(13)), *ITEMS], task="t")
    assert [one.index for one in outcomes if one.error] == [10]
    assert isinstance(outcomes[10].error, TooLargeError)


def answers(*given: httpx.Response | Exception) -> Callable[[httpx.Request], httpx.Response]:
    left = list(given)

    def handle(request: httpx.Request) -> httpx.Response:
        answer = left.pop(0)
        if isinstance(answer, httpx.HTTPError):
            raise answer
        assert isinstance(answer, httpx.Response)
        return answer

    return handle


GOOD = {"task": "t", "version": 1, "digest": "d", "modality": "image", "predictions": []}


def full(retry_after: str = "2", status: int = 429) -> httpx.Response:
    return httpx.Response(status, headers={"Retry-After": retry_after}, json={"detail": "full", "title": "Full"})


def test_tries_follow_what_the_server_asks(of_made: Any, pauses: list[float]) -> None:
    made = answers(full(), full("0", 503), httpx.ConnectError("refused"), httpx.Response(200, json=GOOD))
    assert of_made(made).predict(b"x", task="t").best is None
    assert 2 <= pauses[0] <= 2.5
    assert 0.25 <= pauses[1] <= 0.5
    assert 0.5 <= pauses[2] <= 1


def test_tries_end(of_made: Any) -> None:
    with pytest.raises(OverloadedError) as caught:
        of_made(answers(full(), full(), full("7")), retries=2).predict(b"x", task="t")
    assert caught.value.retry_after == 7
    with pytest.raises(OverloadedError):
        of_made(answers(full("3600"))).predict(b"x", task="t")


@pytest.mark.parametrize("error", [httpx.ReadTimeout("late"), httpx.ReadError("broke")])
def test_what_may_have_been_done_is_not_done_twice(of_made: Any, error: httpx.HTTPError) -> None:
    with pytest.raises(NoAnswerError):
        of_made(answers(error)).delete("t")
    if isinstance(error, httpx.ReadTimeout):
        with pytest.raises(TimedOutError):
            of_made(answers(error)).predict(b"x", task="t")
    else:
        assert of_made(answers(error, httpx.Response(200, json=GOOD))).predict(b"x", task="t").task == "t"


@pytest.mark.parametrize(
    "answer",
    [
        {"text": "<html>hello</html>"},
        {"json": []},
        {"json": {"task": "t"}},
        {"json": GOOD | {"predictions": 3}},
        {"json": GOOD | {"predictions": [3]}},
    ],
)
def test_another_server_is_told_apart(of_made: Any, answer: dict[str, Any]) -> None:
    with pytest.raises(UnexpectedAnswerError):
        of_made(answers(httpx.Response(200, **answer))).predict(b"x", task="t")


def test_a_proxys_refusal_is_one_too() -> None:
    request = httpx.Request("GET", "http://made/x")
    plain = refusal_of(httpx.Response(502, text="<html>", request=request))
    assert (plain.status, plain.title, plain.retry_after) == (502, "Bad Gateway", None)
    assert "http://made/x" in plain.detail
    dated = httpx.Response(503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, request=request)
    assert refusal_of(dated).retry_after == 0
    assert refusal_of(httpx.Response(503, headers={"Retry-After": "soon"}, request=request)).retry_after is None
    odd = refusal_of(httpx.Response(599, json={"status": "x", "detail": 3, "title": None}, request=request))
    assert (odd.status, odd.title) == (599, "unknown status")
