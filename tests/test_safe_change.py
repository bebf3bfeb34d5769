"""Safe change over HTTP: who answers, whom else is asked, and that a version which answers wrong loses its traffic."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import service.web.picture
from adapters.errors import BrokenAdapter
from adapters.file import write_adapter
from adaptserve_client import AsyncClient, Client
from service.cli.main import app
from service.errors import BadScores, ComputeFailed
from service.web.prediction import Answers
from tests.archives import archive
from tests.houses import CLIP, House, Kit, Process, client_of, house, photograph, problem, until
from tests.media_samples import clip
from tests.s3 import options, s3
from tests.test_replicas import s3_process

PICTURES = [photograph(seed) for seed in range(24)]
TEXTS = [base64.b64encode(picture).decode() for picture in PICTURES]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with (
        pytest.MonkeyPatch.context() as patch,
        house(kit.settings(data_dir=tmp_path_factory.mktemp("data"))) as built,
    ):
        patch.setattr(Answers, "is_busy", False)  # so that all is compared, however slow this machine is
        yield built


def permuted(kit: Kit, seed: int) -> bytes:
    """The adapter of that seed with each label's weights at another label: it answers wrong with all confidence."""
    adapter = kit.file(seed)[1]
    tensors = dict(adapter.tensors)
    for name in ("head.weight", "head.bias"):
        tensors[name] = tensors[name].roll(1, 0).contiguous()
    path = kit.folder / "permuted.safetensors"
    write_adapter(path, adapter.config, tensors)
    return path.read_bytes()


def zipped(pictures: Sequence[bytes]) -> bytes:
    return archive([(f"{number}.jpg", picture) for number, picture in enumerate(pictures)], "zip")


def put(home: House, task: str, *files: bytes) -> None:
    """Versions of a task, the first one active."""
    for number, content in enumerate(files):
        home.put(task, content, activate=not number).raise_for_status()


def direct(client: httpx.Client, task: str, body: Any) -> dict[str, Any]:
    answer = client.put(f"/v1/tasks/{task}/traffic", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def state(home: House, task: str) -> dict[str, Any]:
    return home.client.get(f"/v1/tasks/{task}/traffic").raise_for_status().json()  # type: ignore[no-any-return]


def versions(home: House, task: str, pictures: Sequence[bytes] = PICTURES, **headers: str) -> list[int]:
    post = home.client.post
    return [post(f"/v1/tasks/{task}/predict", content=body, headers=headers).json()["version"] for body in pictures]


HALF = {"weights": {"1": 50, "2": 50}, "guard": None}


@pytest.fixture(scope="module")
def halved(home: House, kit: Kit) -> list[int]:
    """Two versions share the traffic of task ``half``: which of them each picture is for."""
    put(home, "half", kit.file(1)[0], kit.file(2)[0])
    assert direct(home.client, "half", HALF)["weights"] == {"1": 50, "2": 50}
    found = versions(home, "half")
    assert set(found) == {1, 2}
    return found


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


def test_a_new_version_is_held_against_the_active_one(home: House, kit: Kit, halved: list[int]) -> None:
    put(home, "same", kit.file(1)[0], kit.file(2)[0])
    direct(home.client, "same", HALF)
    found = versions(home, "same")
    agreed = 0
    for picture, version in zip(PICTURES, found, strict=True):
        tops = {n: home.ask("same", picture, version=n).json()["predictions"][0]["label"] for n in (1, 2)}
        agreed += version == 2 and tops[1] == tops[2]
    assert until(lambda: state(home, "same")["versions"][1]["compared"] == found.count(2))
    old, new = state(home, "same")["versions"]
    assert (old["requests"], new["requests"]) == (found.count(1), found.count(2))
    assert new["agreement"] == agreed / found.count(2)
    assert new["p50_ms"] <= new["p99_ms"]
    told = home.client.get("/v1/tasks/same/agreement").json()
    assert (told["version"], told["against"], told["compared"], told["agreed"]) == (2, 1, found.count(2), agreed)
    assert sum(one["compared"] for one in told["labels"]) == found.count(2)
    differing = {one["digest"]: one for one in told["disagreements"]}
    assert len(differing) == found.count(2) - agreed
    for picture in PICTURES:
        one = differing.get(hashlib.sha256(picture).hexdigest())
        if one is not None:
            tops = {n: home.ask("same", picture, version=n).json()["predictions"][0]["label"] for n in (1, 2)}
            assert (one["label"], one["other"]) == (tops[1], tops[2])
    lines = home.metrics().splitlines()
    assert (
        f'adaptserve_version_requests_total{{outcome="answered",task="same",version="2"}} {new["requests"]}.0' in lines
    )
    assert (
        f'adaptserve_version_compared_total{{outcome="disagreed",task="same",version="2"}} {len(differing)}.0' in lines
    )


def test_a_shadow_sees_what_comes_and_answers_nobody(home: House, kit: Kit) -> None:
    put(home, "seen", kit.file(1)[0], kit.file(1)[0], permuted(kit, 1))
    assert state(home, "seen")["weights"] == {"1": 100}
    wrong = max(one["version"] for one in home.client.get("/v1/tasks/seen/versions").json()["versions"])
    told = home.client.put("/v1/tasks/seen/shadow", json={"version": wrong, "share": 1}).raise_for_status().json()
    assert told["shadow"] == {"version": wrong, "share": 1.0}
    assert set(versions(home, "seen")) == {1}
    body = zipped(PICTURES[:4])
    home.client.post("/v1/tasks/seen/batch", content=body).raise_for_status()
    assert until(lambda: home.client.get("/v1/tasks/seen/agreement").json()["compared"] == len(PICTURES) + 4)
    told = home.client.get("/v1/tasks/seen/agreement").json()
    assert (told["version"], told["agreed"], told["agreement"]) == (wrong, 0, 0.0)
    assert home.front.app.state.comparisons.rows == 0
    problem(home.client.delete(f"/v1/tasks/seen/versions/{wrong}"), 409)
    assert home.client.delete("/v1/tasks/seen/shadow").status_code == 204
    assert home.client.delete(f"/v1/tasks/seen/versions/{wrong}").status_code == 204
    problem(home.client.get("/v1/tasks/seen/agreement", params={"version": 1}), 404)


def test_what_fails_beside_an_answer_does_not_reach_it(
    home: House, kit: Kit, monkeypatch: pytest.MonkeyPatch, halved: list[int]
) -> None:
    put(home, "beside", kit.file(1)[0], kit.file(2)[0])
    home.client.put("/v1/tasks/beside/shadow", json={"version": 2, "share": 1}).raise_for_status()
    answers = home.front.app.state.answers

    def dropped(reason: str) -> float:
        wanted = f'adaptserve_comparisons_dropped_total{{reason="{reason}"}} '
        return sum(float(line.removeprefix(wanted)) for line in home.metrics().splitlines() if line.startswith(wanted))

    for error, reason in ((BadScores("x"), "failed"), (BrokenAdapter("x"), "failed"), (ValueError("x"), "failed")):

        async def again(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        before = dropped(reason)
        with monkeypatch.context() as patch:
            patch.setattr(answers, "again", again)
            assert versions(home, "beside", PICTURES[:2]) == [1, 1]
            assert until(lambda: dropped(reason) == before + 2)  # noqa: B023
    _, shadow = state(home, "beside")["versions"]
    assert (shadow["errors"], shadow["not_finite"]) == (4, 2)
    comparisons = home.front.app.state.comparisons
    for where, name, value in (
        (comparisons, "_most_rows", 0), (comparisons, "_most_bytes", 0), (Answers, "is_busy", True),
    ):  # fmt: skip
        before = dropped("busy")
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            assert versions(home, "beside", PICTURES[:2]) == [1, 1]
        assert dropped("busy") == before + 2


def test_a_version_that_answers_wrong_on_purpose_loses_its_traffic(home: House, kit: Kit, halved: list[int]) -> None:
    """With no word about a guard."""

    def rolled_back(lines: list[str]) -> float:
        (value,) = (line.split()[1] for line in lines if line.startswith("adaptserve_roll_backs_total"))
        return float(value)

    before = rolled_back(home.client.get("/metrics").text.splitlines())
    put(home, "wrong", kit.file(1)[0], permuted(kit, 1))
    assert direct(home.client, "wrong", {"1": 20, "2": 80})["guard"]["min_agreement"] == 0.7
    asked = 0
    while (told := state(home, "wrong"))["rolled_back"] is None:
        assert asked < 300, told
        home.ask("wrong", photograph(asked))
        asked += 1
    assert (told["active"], told["weights"], told["guard"]) == (1, {"1": 100}, None)
    assert told["rolled_back"]["version"] == 2
    assert "of version 2 were those of the active one" in told["rolled_back"]["why"]
    assert asked >= 50, "not before there were enough"
    assert set(versions(home, "wrong")) == {1}
    differing = home.client.get("/v1/tasks/wrong/agreement").json()
    assert (differing["version"], differing["agreement"]) == (2, 0.0), "one can still see why"
    scraped = home.client.get("/metrics").text.splitlines()
    assert rolled_back(scraped) == before + 1
    assert 'adaptserve_traffic_share{task="half",version="2"} 0.5' in scraped
    assert home.client.delete("/v1/tasks/wrong/versions/2").status_code == 204
    assert direct(home.client, "wrong", {"1": 1})["rolled_back"] is None


def test_a_wrong_version_is_found_out_under_load_too(home: House, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "is_busy", True)
    put(home, "loaded", kit.file(1)[0], permuted(kit, 1))
    home.put("loaded", kit.file(3)[0], activate=False).raise_for_status()
    home.client.put("/v1/tasks/loaded/shadow", json={"version": 3, "share": 1}).raise_for_status()
    direct(home.client, "loaded", {"weights": {"1": 1, "2": 9}, "guard": {"min_compared": 10}})
    for number in range(200):
        if state(home, "loaded")["rolled_back"] is not None:
            break
        home.ask("loaded", photograph(number))
    assert "min_agreement" in state(home, "loaded")["rolled_back"]["why"]
    assert home.client.get("/v1/tasks/loaded/agreement?version=3").json()["compared"] == 0, "nobody needs to know now"


def test_a_version_that_fails_loses_its_traffic(home: House, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, real = home.front.app.state.answers, home.front.app.state.answers.predict
    for task, error, said in (("nan", BadScores("x"), "max_not_finite"), ("fails", ComputeFailed("x"), "max_errors")):

        async def predict(body: Any, served: Any, *rest: Any, error: Exception = error) -> Any:
            if served[0].version == 2:
                raise error
            return await real(body, served, *rest)

        put(home, task, kit.file(1)[0], kit.file(2)[0])
        direct(home.client, task, {"1": 1, "2": 1})
        with monkeypatch.context() as patch:
            patch.setattr(answers, "predict", predict)

            def rolled_back(task: str = task) -> bool:
                versions_of = [home.ask(task, picture) for picture in PICTURES]
                assert {answer.status_code for answer in versions_of} <= {200, 422, 500}
                return state(home, task)["rolled_back"] is not None

            assert until(rolled_back)
        assert said in state(home, task)["rolled_back"]["why"]


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


def test_a_guard_that_is_not_said_stays(home: House, kit: Kit) -> None:
    put(home, "guarded", kit.file(1)[0], kit.file(2)[0])
    guard = {"window": 60, "min_agreement": None}
    assert (
        direct(home.client, "guarded", {"weights": {"1": 9, "2": 1}, "guard": guard})["guard"]["min_agreement"] is None
    )
    assert direct(home.client, "guarded", {"1": 5, "2": 5})["guard"]["window"] == 60
    assert direct(home.client, "guarded", {"weights": {"1": 5, "2": 5}, "guard": None})["guard"] is None
    assert home.client.delete("/v1/tasks/guarded/traffic").status_code == 204
    assert direct(home.client, "guarded", {"1": 5, "2": 5})["guard"]["window"] == 300
    home.client.post("/v1/tasks/guarded/versions/2/activate").raise_for_status()
    told = state(home, "guarded")
    assert (told["active"], told["weights"]) == (2, {"2": 100})


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


def test_two_servers_on_one_store_roll_back_once(kit: Kit, tmp_path: Path) -> None:
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        _, url = stack.enter_context(s3())
        for name, value in options(url).items():
            patch.setenv(name, value)
        homes = [
            stack.enter_context(house(kit.settings(data_dir=tmp_path / str(n), store="s3://bucket/safe")))
            for n in range(2)
        ]
        one, other = homes
        put(one, "t", kit.file(1)[0], permuted(kit, 1))
        direct(one.client, "t", {"1": 1, "2": 1})
        assert until(lambda: other.client.get("/v1/tasks/t/traffic").status_code == 200)
        assert until(lambda: state(other, "t")["weights"] == {"1": 1, "2": 1})
        assert versions(other, "t") == versions(one, "t")
        assert until(lambda: other.local.bank.resident(digest_of(other, 2)))

        for _ in range(50):
            if any(state(place, "t")["rolled_back"] for place in homes):
                break
            for place in homes:
                versions(place, "t")
        assert until(lambda: all(state(place, "t")["rolled_back"] for place in homes))
        (why,) = {json.dumps(state(place, "t")["rolled_back"]) for place in homes}
        assert set(versions(other, "t")) == {1}
        events = one.client.get("/v1/tasks/t/history").raise_for_status().json()["events"]
        assert [event["what"] for event in events].count("rolled_back") == 1
        assert json.loads(why)["version"] == 2


def digest_of(home: House, number: int) -> str:
    return str(home.front.catalogue.repository.version("t", number).digest)


@pytest.mark.torture
@pytest.mark.parametrize("servers", [1, 2])
def test_families_of_processes_roll_back_once_by_what_all_front_ends_saw(
    kit: Kit, tmp_path: Path, servers: int
) -> None:
    given = ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--threads", "1", "--front-ends", "2"]
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        if servers > 1:
            for name, value in options(stack.enter_context(s3_process())).items():
                patch.setenv(name, value)
            given += ["--store", "s3://bucket/safe"]
        families = [
            stack.enter_context(Process([*given, "--data-dir", str(tmp_path / f"{n}")], tmp_path / f"{n}.log"))
            for n in range(servers)
        ]

        def traffic(family: Process) -> dict[str, Any]:
            answer = family.client.get("/v1/tasks/t/traffic")
            return answer.json() if answer.status_code == 200 else {}  # type: ignore[no-any-return]

        first = families[0].client
        for number, content in enumerate((kit.file(1)[0], permuted(kit, 1))):
            first.put("/v1/tasks/t/adapter", content=content, params={"activate": not number}).raise_for_status()
        direct(first, "t", {"1": 1, "2": 1})
        assert until(lambda: all(traffic(family).get("weights") == {"1": 1, "2": 1} for family in families))
        clients = [stack.enter_context(client_of(family.url)) for family in families for _ in range(4)]
        asked = 0
        while not any(traffic(family)["rolled_back"] for family in families):
            for client in clients:
                client.post("/v1/tasks/t/predict", content=photograph(asked)).raise_for_status()
                asked += 1
            assert asked < 3000, families[0].output
        assert until(lambda: all(traffic(family)["rolled_back"] for family in families))
        whys = {json.dumps(traffic(family)["rolled_back"]) for family in families}
        print(asked, whys)
        assert len(whys) == 1
        events = families[-1].client.get("/v1/tasks/t/history").raise_for_status().json()["events"]
        assert [event["what"] for event in events] == ["rolled_back", "traffic", "staged", "published"]
        assert (events[0]["origin"], events[0]["why"]) == ("guard", json.loads(next(iter(whys)))["why"])
