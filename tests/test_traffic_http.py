"""Traffic shared by versions, over HTTP: which of them answers, however the input comes, and what is refused."""

from __future__ import annotations

import asyncio
import json

import pytest
from typer.testing import CliRunner

import service.web.picture
from adaptserve_client import AsyncClient, Client
from service.cli.main import app
from tests.changes import PICTURES, TEXTS, direct, halved, home, kit, put, state, versions, zipped
from tests.houses import CLIP, House, Kit, problem, until
from tests.media_samples import clip

__all__ = ["halved", "home", "kit"]


def test_a_picture_goes_to_its_version_however_it_comes(home: House, kit: Kit, halved: list[int]) -> None:
    put(home, "other", kit.file(3)[0])
    post = home.client.post
    assert versions(home, "half") == halved
    asked = {"task": ["half", "other"]}
    many = [post("/v1/predict", params=asked, content=body).json()["results"] for body in PICTURES]
    assert [[one["version"] for one in results] for results in many] == [[version, 1] for version in halved]
    forms = [post("/v1/tasks/half/predict", files={"image": body}).json()["version"] for body in PICTURES[:6]]
    assert forms == halved[:6]
    lines = post("/v1/tasks/half/batch", content=zipped(PICTURES)).text
    answers = [json.loads(line) for line in lines.splitlines()]
    assert [answer["version"] for answer in answers[:-1]] == halved
    assert answers[-1]["done"]


def test_other_servers_protocols_follow_too(home: House, halved: list[int]) -> None:
    """The protocols do not all name the version, but its labels' scores do."""
    post, ask = home.client.post, home.ask
    for picture, text, version in list(zip(PICTURES, TEXTS, halved, strict=True))[:8]:
        tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [text]}
        infer = post("/v2/models/half/infer", json={"inputs": [tensor]}).json()
        assert infer["model_version"] == str(version)
        wanted = ask("half", picture, version=version, top_k=1).json()["predictions"][0]
        scores = {
            "tensorflow": post("/v1/models/half:predict", json={"instances": [{"b64": text}]}).json()["predictions"][0][
                "scores"
            ][0],
            "classify": post("/v1/models/half:classify", json={"examples": [{"b64": text}]}).json()["result"][0][0][1],
            "hugging face": post("/models/half", content=picture).json()[0]["score"],
            "torchserve": next(iter(post("/predictions/half", content=picture).json().values())),
        }
        assert all(abs(score - wanted["score"]) < 1e-5 for score in scores.values()), (scores, wanted)
    several = {"inputs": [{"name": "x", "shape": [8], "datatype": "BYTES", "data": TEXTS[:8]}]}
    first = post("/v2/models/half/infer", json=several).json()["model_version"]
    assert first == post("/v2/models/half/infer", json=several).json()["model_version"], "one version for one answer"


def test_a_header_binds_and_a_version_that_is_named_wins(home: House, halved: list[int]) -> None:
    for user in ("ann", "bob", "cleo", "dan"):
        (version,) = set(versions(home, "half", PICTURES[:6], **{"X-AdaptServe-Sticky": user}))
        body = zipped(PICTURES[:2])
        headers = {"X-AdaptServe-Sticky": user}
        lines = home.client.post("/v1/tasks/half/batch", content=body, headers=headers).text.splitlines()
        assert [json.loads(line)["version"] for line in lines[:2]] == [version, version]
    assert {home.ask("half", body, version=2).json()["version"] for body in PICTURES} == {2}
    before = state(home, "half")["versions"]
    home.ask("half", PICTURES[0], version=2)
    assert state(home, "half")["versions"][0]["requests"] == before[0]["requests"], "who names a version is not counted"
    for headers in ({"X-AdaptServe-Sticky": "x" * 2000},):
        problem(home.client.post("/v1/tasks/half/predict", content=PICTURES[0], headers=headers), 400)
    assert versions(home, "half", PICTURES[:6], **{"X-AdaptServe-Sticky": ""}) == halved[:6]


def test_a_clip_goes_to_its_version(home: House, kit: Kit) -> None:
    put(home, "clips", kit.file(1, CLIP)[0], kit.file(2, CLIP)[0])
    direct(home.client, "clips", {"weights": {"1": 1, "2": 1}, "guard": None})
    clips = [clip(count=count) for count in range(8, 13)]
    found = versions(home, "clips", clips)
    assert versions(home, "clips", clips) == found
    windows = home.client.post("/v1/tasks/clips/predict", content=clips[0], params={"window": 0.2}).json()
    assert windows["version"] == found[0]
    compared = 2 * found.count(2)
    assert until(lambda: state(home, "clips")["versions"][1]["compared"] == compared)


def test_what_cannot_be_is_refused_in_words(home: House, halved: list[int]) -> None:
    refused = [
        ({"1": 95, "9": 5}, 404), ({"2": 5}, 409), ({}, 400), ({"1": 0}, 400), ({"x": 1}, 400), ({"1": "x"}, 400),
        ({"weights": {"1": 1}, "gard": None}, 400), ([], 400), ({"weights": {"1": 1}, "guard": {"window": 0}}, 400),
        ({"weights": {"1": 1}, "guard": {"min_agremeent": 1}}, 400), ({"1": 10**9}, 400), ({"1": 1.5}, 400),
    ]  # fmt: skip
    for body, status in refused:
        problem(home.client.put("/v1/tasks/half/traffic", json=body), status)
    problem(home.client.put("/v1/tasks/half/traffic", content=b"{"), 400)
    for call in ("traffic", "agreement"):
        problem(home.client.get(f"/v1/tasks/nosuch/{call}"), 404)
    problem(home.client.put("/v1/tasks/nosuch/traffic", json={"1": 1}), 404)
    problem(home.client.delete("/v1/tasks/nosuch/traffic"), 404)
    for body, status in (({"version": 2}, 409), ({"version": 9}, 404), ({"version": 2, "share": 2}, 400), ({}, 400)):
        problem(home.client.put("/v1/tasks/half/shadow", json=body), status)
    problem(home.client.get("/v1/tasks/other/agreement"), 404)
    problem(home.client.delete("/v1/tasks/half/versions/2"), 409)
    assert versions(home, "half") == halved, "none of that has changed anything"


def test_without_a_rule_nothing_is_hashed_or_counted(
    home: House, kit: Kit, monkeypatch: pytest.MonkeyPatch, halved: list[int]
) -> None:
    put(home, "plain", kit.file(1)[0])

    def hashed(*_: object) -> str:
        raise AssertionError("it was hashed")

    monkeypatch.setattr(service.web.picture, "sha256", hashed)
    monkeypatch.setattr(home.front.app.state.comparisons, "answered", hashed)
    assert versions(home, "plain", PICTURES[:3]) == [1, 1, 1], "also beside a task that has one"
    assert home.ask("half", PICTURES[0]).status_code == 500


def test_the_new_version_is_on_the_device_before_anybody_asks(home: House, kit: Kit) -> None:
    put(home, "warm", kit.file(1)[0])
    content, adapter = kit.file(77)
    home.put("warm", content, activate=False).raise_for_status()
    home.local.forget(adapter.digest)
    assert not home.local.bank.resident(adapter.digest)
    direct(home.client, "warm", {"1": 99, "2": 1})
    assert home.local.bank.resident(adapter.digest)


def test_the_commands_and_the_clients_do_the_same(home: House, kit: Kit) -> None:
    put(home, "told", kit.file(1)[0], kit.file(2)[0], kit.file(3)[0])
    runner = CliRunner()

    def run(*given: str, code: int = 0) -> str:
        found = runner.invoke(app, [*given, "--url", home.url])
        assert found.exit_code == code, found.output
        return found.output

    assert "95 %" in run("traffic", "told", "1=95", "2=5", "--guard", "min_agreement=0.9", "--guard", "max_errors=null")
    guard = state(home, "told")["guard"]
    assert (guard["min_agreement"], guard["max_errors"]) == (0.9, None)
    assert "shadow" in run("shadow", "told", "3", "--share", "1")
    assert "nothing is compared yet" in run("agreement", "told")
    home.ask("told", PICTURES[0])
    assert until(lambda: "of 1 agree" in run("agreement", "told", "--version", "3"))
    assert "100 %" in run("traffic", "told", "--end")
    assert "shadow" not in run("shadow", "told", "--end").replace("shadow digits", "")
    assert "guard:" not in run("traffic", "told", "1=1", "2=1", "--no-guard")
    events = home.client.get("/v1/tasks/told/history").json()["events"]
    assert {one["origin"] for one in events if one["what"] in ("traffic", "shadow")} == {"cli"}
    for wrong in (["1=x"], ["1"], ["--guard", "window=9"], ["1=1", "--end"], ["1=1", "--guard", "window=x"]):
        assert "error:" in run("traffic", "told", *wrong, code=2)
    run("traffic", "told", "2=1", code=1)
    with Client(home.url, retries=0) as client:
        told = client.set_traffic("told", {1: 3, 2: 1}, {"window": 60})
        assert (told.weights, told.guard and told.guard["window"]) == ({1: 3, 2: 1}, 60.0)
        assert {client.predict(PICTURES[0], task="told", sticky="ann").version for _ in range(2)} <= {1, 2}
        assert [one.version for one in client.traffic("told").versions] == [1, 2]
        shadow = client.set_shadow("told", 3, 1).shadow
        assert shadow is not None
        assert shadow["version"] == 3
        assert client.agreement("told").version == 3
        client.end_shadow("told")
        client.end_traffic("told")
        assert client.traffic("told").weights == {1: 100}

    async def same() -> None:
        async with AsyncClient(home.url, retries=0) as client:
            told = await client.set_traffic("told", {1: 1, 2: 1}, None)
            assert told.guard is None
            await client.set_shadow("told", 3)
            assert (await client.agreement("told", 3)).compared == 0
            await client.end_shadow("told")
            await client.end_traffic("told")
            assert (await client.traffic("told")).shadow is None

    asyncio.run(same())
