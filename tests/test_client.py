"""adaptserve_client against real servers, plain and from asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adaptserve_client import (
    AsyncClient,
    AuthenticationError,
    BadRequestError,
    BatchOutcome,
    BrokenAdapterError,
    Client,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    ProblemError,
    UnknownTaskError,
    UnknownVersionError,
    UnprocessableError,
    UnsupportedError,
)
from service.keys import create, dump
from tests.either import Either, clients, kind, of_made
from tests.houses import CLIP, House, Kit, house, photograph
from tests.media_samples import clip

__all__ = ["clients", "kind", "of_made"]


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings = kit.settings(data_dir=tmp_path_factory.mktemp("data"), page_items=2, max_items_per_batch=8)
    with house(settings) as made:
        for number, task in enumerate(("pets", "birds", "cars")):
            made.put(task, kit.file(number)[0]).raise_for_status()
        made.put("moves", kit.file(9, CLIP)[0]).raise_for_status()
        yield made


@pytest.fixture
def client(home: House, clients: Any) -> Either:
    found: Either = clients(home.url)
    return found


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
