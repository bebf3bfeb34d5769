"""Safe change over HTTP: whom else is asked, and that a version which answers wrong loses its traffic."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import BrokenAdapter
from service.errors import BadScores, ComputeFailed
from service.web.prediction import Answers
from tests.changes import HALF, PICTURES, direct, halved, home, kit, permuted, put, state, versions, zipped
from tests.houses import House, Kit, Process, client_of, house, photograph, problem, until
from tests.s3 import options, s3
from tests.test_replicas import s3_process

__all__ = ["halved", "home", "kit"]


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
