"""adaptserve_client against real servers, plain and from asyncio; against a made-up one that misbehaves."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from inspect import isasyncgen, isawaitable
from pathlib import Path
from typing import Any

import httpx
import pytest

from adaptserve_client import (
    AsyncClient,
    AuthenticationError,
    BadAddressError,
    BadRequestError,
    BatchOutcome,
    BrokenAdapterError,
    Client,
    ConflictError,
    ForbiddenError,
    NoAnswerError,
    NotFoundError,
    OverloadedError,
    ProblemError,
    TimedOutError,
    TooLargeError,
    UnavailableError,
    UnexpectedAnswerError,
    UnknownTaskError,
    UnknownVersionError,
    UnprocessableError,
    UnsupportedError,
)
from adaptserve_client.errors import refusal_of
from adaptserve_client.retries import Attempts
from service.keys import create, dump
from tests.houses import CLIP, House, Kit, house, photograph
from tests.media_samples import clip

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


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings = kit.settings(data_dir=tmp_path_factory.mktemp("data"), page_items=2, max_items_per_batch=8)
    with house(settings) as made:
        for number, task in enumerate(("pets", "birds", "cars")):
            made.put(task, kit.file(number)[0]).raise_for_status()
        made.put("moves", kit.file(9, CLIP)[0]).raise_for_status()
        yield made


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
def client(home: House, clients: Any) -> Either:
    found: Either = clients(home.url)
    return found


@pytest.fixture
def of_made(clients: Any) -> Callable[..., Either]:
    """A client of a made-up server."""

    def make(made: Callable[[httpx.Request], httpx.Response], retries: int = 3) -> Either:
        found: Either = clients("http://made", transport=httpx.MockTransport(made), retries=retries)
        return found

    return make


def test_one_picture_as_path_bytes_and_open_file(home: House, client: Either, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(photograph())
    wanted = home.client.post("/v1/tasks/pets/predict", content=photograph(), params={"top_k": 3}).json()
    with path.open("rb") as opened:
        for file in (path, str(path), path.read_bytes(), memoryview(path.read_bytes()), opened):
            answer = client.predict(file, task="pets", top_k=3, deadline=20)
            assert answer.raw == wanted
    assert [(p.label, p.index, p.score) for p in answer.predictions] == [
        (p["label"], p["index"], p["score"]) for p in wanted["predictions"]
    ]
    assert (answer.best, answer.task, answer.version) == (answer.predictions[0], "pets", 1)
    assert answer.timing.keys() == {"decode", "queue", "compute"}
    both = client.predict_many(path, tasks=["birds", "pets"], top_k=1)
    assert [(one.task, len(one.predictions)) for one in both] == [("birds", 1), ("pets", 1)]


def test_vectors_and_windows(home: House, client: Either) -> None:
    bare = client.embed(photograph())
    assert (len(bare.embedding), bare.modality, bare.frames) == (home.local.backbone.layout.width, "image", 1)
    assert bare.embedding == tuple(home.client.post("/v1/embed", content=photograph()).json()["embedding"])
    assert client.embed(clip(count=24), frames=2).frames == 2
    seen = client.predict(photograph(), task="pets", embedding=True, abstain=0.0, min_score=1.0)
    assert (len(seen.embedding or ()), seen.accepted, seen.best) == (len(bare.embedding), True, None)
    parts = client.predict(clip(count=24), task="moves", window=0.4).windows or ()
    assert [one.start for one in parts] == pytest.approx([0.4 * i for i in range(len(parts))])
    assert len(parts) > 1
    assert all(len(one.predictions) for one in parts)


def test_a_tasks_life(kit: Kit, client: Either, kind: Any, tmp_path: Path) -> None:
    task, path = f"life-{kind.__name__.lower()}", tmp_path / "first.safetensors"
    path.write_bytes(kit.file(20)[0])
    first = client.upload(path, task=task)
    assert (first.version, first.active, first.new, first.labels) == (1, True, True, client.task(task).labels)
    assert not client.upload(path.read_bytes(), task=task).new
    (tmp_path / "second").write_bytes(b"before" + kit.file(21)[0])
    with (tmp_path / "second").open("rb") as opened:
        opened.seek(len(b"before"))
        second = client.upload(opened, task=task, activate=False)
    assert (second.version, second.active) == (2, False)
    assert client.download(task, 2) == kit.file(21)[0]
    client.upload(kit.file(22)[0], task=task, activate=False)
    assert [one.version for one in client.versions(task)] == [1, 2, 3], "from two pages"
    assert client.activate(task, 2).version == 2
    assert client.predict(photograph(), task=task).version == 2
    assert client.predict(photograph(), task=task, version=3).version == 3
    with pytest.raises(ConflictError):
        client.delete(task, 2)
    client.delete(task, 3)
    with pytest.raises(UnknownVersionError):
        client.version(task, 3)
    assert client.version(task, 1).created <= client.version(task, 2).created
    client.deactivate(task)
    assert client.task(task).version is None
    with pytest.raises(NotFoundError):
        client.predict(photograph(), task=task)
    client.delete(task)
    with pytest.raises(UnknownTaskError):
        client.task(task)


def test_what_the_server_is(home: House, client: Either) -> None:
    names = [task.task for task in client.tasks()]
    assert names == sorted(names)
    assert {"birds", "cars", "moves", "pets"} <= set(names), "from several pages"
    assert [task.task for task in client.tasks("p")] == ["pets"]
    found = client.server()
    assert (found.backbone, found.dtype) == (str(home.front.app.state.engine.facts.layout.model), "float32")
    assert client.health()
    assert client.ready()
    assert "adaptserve_requests_total" in client.metrics()


@pytest.mark.parametrize(
    ("wrong", "file", "given"),
    [
        (UnknownTaskError, photograph(), {"task": "none"}),
        (BadRequestError, photograph(), {"task": "../../livez"}),
        (BadRequestError, photograph(), {"task": "pets", "top_k": 0}),
        (BadRequestError, photograph(), {"task": "pets", "deadline": 9999}),
        (UnsupportedError, b"no picture", {"task": "pets"}),
        (UnprocessableError, b"", {"task": "pets"}),
        (UnprocessableError, photograph(), {"task": "moves"}),
        (UnknownVersionError, photograph(), {"task": "pets", "version": 7}),
        (FileNotFoundError, "no/such.jpg", {"task": "pets"}),
        (TypeError, photograph(), {"task": "pets", "topk": 3}),
        (ValueError, photograph(), {"task": "pets", "deadline": float("inf")}),
    ],
)
def test_what_is_wrong_has_its_class(client: Either, wrong: type[Exception], file: Any, given: dict[str, Any]) -> None:
    with pytest.raises(wrong) as caught:
        client.predict(file, **given)
    if isinstance(caught.value, ProblemError):
        error = caught.value
        assert error.type.startswith("urn:adaptserve:problem:")
        assert error.status == error.members["status"]
        assert error.request_id
        assert error.detail in str(error)


def test_a_bad_adapter_is_named(client: Either, kit: Kit) -> None:
    with pytest.raises(UnsupportedError):
        client.upload(b"x" * 100, task="pets")
    with pytest.raises(BrokenAdapterError):
        client.upload(kit.file(1)[0][:-8], task="pets")


SECRET, KEY = create("reader", "predict")


@pytest.fixture(scope="module")
def guarded(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("guarded"), keys=dump([KEY]))) as made:
        yield made


def test_keys(guarded: House, clients: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADAPTSERVE_KEY", raising=False)
    monkeypatch.setenv("ADAPTSERVE_URL", guarded.url)
    with pytest.raises(AuthenticationError):
        clients().task("pets")
    monkeypatch.setenv("ADAPTSERVE_API_KEY", f"{SECRET}\n")
    for given in ([], [None, SECRET]):
        client = clients(*given)
        assert client.server().count == 0
        with pytest.raises(ForbiddenError):
            client.delete("pets")


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


def test_a_batch_in_order_with_bad_ones(home: House, client: Either, tmp_path: Path) -> None:
    """More than the server takes in one request, one that is no picture, one that is none, one too large to be held."""
    paths = [tmp_path / f"{n}.jpg" for n in range(20)]
    for n, path in enumerate(paths):
        path.write_bytes(photograph(n))
    paths[5].write_bytes(b"no picture")
    paths[7].unlink()
    paths[11].write_bytes(photograph(11, "BMP", (300, 300)))
    items = [*paths[:10], ("named", photograph(50)), *map(str, paths[11:])]
    outcomes: list[BatchOutcome] = client.batch(items, task="pets", top_k=100, max_bytes=100_000)
    assert [one.index for one in outcomes] == list(range(20))
    assert [one.name for one in outcomes] == [*map(str, paths[:10]), "named", *map(str, paths[11:])]
    assert isinstance(outcomes[5].error, UnsupportedError)
    assert isinstance(outcomes[7].error, FileNotFoundError)
    for one in outcomes:
        if one.index not in (5, 7):
            body = photograph(50) if one.name == "named" else Path(one.name).read_bytes()
            assert one.error is None
            assert one.answer is not None
            wanted = home.ask("pets", body).json()
            assert one.answer.raw["predictions"] == [
                p | {"score": pytest.approx(p["score"], abs=1e-6)} for p in wanted["predictions"]
            ]


def test_a_batch_of_nothing_and_for_no_task(client: Either) -> None:
    assert client.batch([], task="pets") == []
    assert [type(one.error) for one in client.batch(["no/such.jpg"], task="pets")] == [FileNotFoundError]
    with pytest.raises(UnknownTaskError):
        client.batch([("a", photograph())], task="none")
    with pytest.raises(TypeError, match="deadline"):
        client.batch([], task="pets", deadline=3)


def test_priorities(client: Either, of_made: Callable[..., Either]) -> None:
    assert client.predict(photograph(), task="pets", priority=9).version == 1
    assert [one.error for one in client.batch([("a", photograph())], task="pets", priority=0)] == [None]
    with pytest.raises(BadRequestError, match="X-Priority"):
        client.predict(photograph(), task="pets", priority=10)
    asked: list[str | None] = []

    def made(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("x-priority"))
        return httpx.Response(403, json={"detail": "no"})

    for options in ({}, {"priority": 3}, {"priority": None}):
        with pytest.raises(ForbiddenError):
            of_made(made, 0).predict_many(photograph(), tasks=["pets"], **options)
    assert asked == [None, "3", None]


def test_whoever_stops_early_leaves_nothing_running(home: House) -> None:
    with Client(home.url) as client:
        made = client.batch((("x", photograph(n)) for n in range(200)), task="pets", max_items=8)
        assert next(made).index == 0
        made.close()
        assert client.health()

    async def first() -> int:
        async with AsyncClient(home.url) as client:
            made = client.batch((("x", photograph(n)) for n in range(200)), task="pets", max_items=8)
            async for outcome in made:
                await made.aclose()
                return outcome.index
        return -1

    assert asyncio.run(first()) == 0


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


def test_examples(client: Either, tmp_path: Path) -> None:
    """A folder of folders, one picture, a list, and what is wrong with some."""
    for number in range(7):
        path = tmp_path / ("cat" if number % 2 else "dög") / ("deep" if number % 3 else "") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photograph(number))
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    told = client.add_examples(tmp_path, task="taught")
    assert (told.added, told.counts) == (7, {"cat": 3, "dög": 4})
    ((name, problem),) = told.rejected
    assert (name.startswith("cat/"), name.endswith("notes.txt"), problem.status) == (True, True, 415)
    assert client.add_examples(photograph(0), task="taught", label="cat").moved == 1
    told = client.add_examples([tmp_path / "cat" / "3.jpg", ("../x", photograph(20))], task="taught", label="new")
    assert (told.added, told.moved, told.counts["new"]) == (1, 1, 2)
    assert [e.label for e in client.examples("taught")].count("new") == 2  # from pages of two
    kept = list(client.examples("taught", "new"))
    assert kept[0].media_type == "image/jpeg"
    assert kept[0].time.tzinfo
    client.delete_examples("taught", digest=kept[0].digest)
    client.delete_examples("taught", label="cat")
    told = client.feedback(photograph(30), task="taught", label="right")
    assert told.counts == {"dög": 3, "new": 1, "right": 1}
    with pytest.raises(NotFoundError, match="keep_recent"):
        client.feedback(task="taught", label="right", request_id="x")
    with pytest.raises(TypeError):
        client.feedback(task="taught", label="right")
    with pytest.raises(FileNotFoundError):
        client.add_examples([], task="taught")
    client.delete_examples("taught")
    assert list(client.examples("taught")) == []
