"""Keys with shares, rates, quotas and priorities, over real sockets and in every protocol."""

from __future__ import annotations

import asyncio
import base64
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.keys import Keys, create, dump
from service.supervisor import Supervisor
from tests.archives import archive
from tests.houses import House, Kit, Process, house, photograph, problem, until

PICTURE = photograph()
TEXT = base64.b64encode(PICTURE).decode()
MADE = {
    "boss": create("boss", "admin", weight=1),
    "gold": create("gold", "predict", weight=3),
    "lead": create("lead", "predict", weight=1),
    "quiet": create("quiet", "predict", weight=1, max_priority=3),
    "burst": create("burst", "predict", rate=0.01, burst=3),
    "daily": create("daily", "predict", quota=12),
    "paced": create("paced", "predict", rate=40, burst=1),
}


def as_(who: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {MADE[who][0]}"} | headers


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("shares")
    file = folder / "keys.json"
    file.write_text(dump(key for _, key in MADE.values()))
    bounds = {"max_batch_rows": 8, "max_queue_rows": 280, "task_weights": "often=3", "deadline_s": 20.0}
    with house(kit.settings(data_dir=folder / "data", keys_file=str(file), **bounds)) as made:
        for task in ("pets", "often"):
            path = f"/v1/tasks/{task}/adapter"
            made.client.put(path, content=kit.file(1, task=task)[0], headers=as_("boss")).raise_for_status()
        yield made


class Slow:
    """A device that takes its time, and notes whose rows it had."""

    def __init__(self, home: House, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.01) -> None:
        runner, self.rows = home.local.engine.runner, Counter[str]()
        compute, report = runner.forward, runner.on_batch

        def forward(jobs: Any) -> Any:
            time.sleep(seconds)
            return compute(jobs)

        def noted(batch: Any) -> None:
            self.rows.update(batch.holders)
            report(batch)

        monkeypatch.setattr(runner, "forward", forward)
        monkeypatch.setattr(runner, "on_batch", noted)


AT_ONCE = 8
MANY = {"instances": [{"image_bytes": {"b64": TEXT}}] * AT_ONCE}


async def flood(home: House, plan: dict[str, int], end: float, task: str = "pets") -> Counter[str]:
    """So many callers of each key, each asking about eight pictures at a time; the answers of each, and refusals."""
    had = Counter[str]()
    limits = httpx.Limits(max_connections=sum(plan.values()))
    async with httpx.AsyncClient(base_url=home.url, limits=limits, timeout=30, verify=False) as client:

        async def caller(who: str) -> None:
            while time.monotonic() < end:
                answer = await client.post(f"/v1/models/{task}:predict", json=MANY, headers=as_(who))
                had[who if answer.status_code == 200 else f"{who}: {answer.status_code}"] += 1

        await asyncio.gather(*(caller(who) for who, callers in plan.items() for _ in range(callers)))
    return had


async def came(condition: Callable[[], bool]) -> None:
    """Wait for it, while others go on."""
    assert await asyncio.to_thread(until, condition)


def test_two_keys_that_flood_have_answers_by_their_weights(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from when both have asked, to when the first stops."""
    slow = Slow(home, monkeypatch, 0.1)

    async def counted() -> Counter[str]:
        flooding = asyncio.create_task(flood(home, {"gold": 8, "lead": 8}, time.monotonic() + 60))
        await came(lambda: min(slow.rows["gold"], slow.rows["lead"]) >= AT_ONCE)
        before = Counter(slow.rows)
        await came(lambda: (slow.rows - before).total() >= 240)
        flooding.cancel()
        return slow.rows - before

    had = asyncio.run(counted())
    assert abs(had["gold"] / (had["gold"] + had["lead"]) - 0.75) < 0.05, had


def test_a_flood_of_one_key_refuses_nothing_to_another(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flood's own requests are refused for the time that they take; the other's are not, and come soon."""
    slow = Slow(home, monkeypatch, 0.1)

    async def both() -> Counter[str]:
        flooding = asyncio.create_task(flood(home, {"gold": 24}, time.monotonic() + 3))
        await came(lambda: slow.rows["gold"] >= 3 * AT_ONCE)
        async with httpx.AsyncClient(base_url=home.url, timeout=30, verify=False) as client:
            for _ in range(6):
                headers = as_("quiet", **{"X-Deadline-Ms": "10000"})
                answer = await client.post("/v1/tasks/pets/predict", content=PICTURE, headers=headers)
                assert answer.status_code == 200, answer.text
        return await flooding

    had = asyncio.run(both())
    assert had["gold"]
    assert had["gold: 429"], had


def test_a_priority_is_bounded_by_the_key_and_checked(home: House) -> None:
    def ask(who: str, priority: str, **params: Any) -> httpx.Response:
        headers = as_(who, **{"X-Priority": priority})
        return home.client.post("/v1/tasks/pets/predict", content=PICTURE, headers=headers, params=params)

    assert ask("quiet", "3").status_code == 200
    assert ask("gold", "9").status_code == 200
    assert home.client.post("/v1/tasks/pets/predict", content=PICTURE, headers=as_("quiet")).status_code == 200
    for params in ({}, {"min_score": 0.1}):  # the usual form, and another
        refused = problem(ask("quiet", "4", **params), 403)
        assert "X-Priority is 4, and key 'quiet' may ask for 3 at most (max_priority)" in str(refused["detail"])
        assert (refused["field"], refused["limit"]) == ("X-Priority", 3)
        assert problem(ask("gold", "10", **params), 400)["field"] == "X-Priority"
        assert problem(ask("gold", "high", **params), 400)["field"] == "X-Priority"


CALLS: list[tuple[str, str, dict[str, Any], int]] = [
    ("POST", "/v1/tasks/pets/predict", {"content": PICTURE}, 1),
    ("POST", "/v1/tasks/pets/predict?min_score=0.1", {"content": PICTURE}, 1),
    ("POST", "/v1/predict?task=pets&task=often", {"content": PICTURE}, 1),
    ("POST", "/v1/embed", {"content": PICTURE}, 1),
    ("POST", "/v1/models/pets:predict", {"json": {"instances": [{"image_bytes": {"b64": TEXT}}] * 3}}, 3),
    ("POST", "/models/pets", {"content": PICTURE}, 1),
    ("POST", "/predictions/pets", {"content": PICTURE}, 1),
    ("POST", "/v1/tasks/pets/batch", {"content": archive([(f"{n}.jpg", PICTURE) for n in range(3)], "zip")}, 3),
]


def test_every_call_that_asks_the_engine_counts_its_pictures_for_the_key(home: House) -> None:
    """Twelve a day: the calls above use them up, and then each says so, in its own protocol."""
    assert sum(count for *_, count in CALLS) == 12
    for method, path, given, _ in CALLS:
        answer = home.client.request(method, path, headers=as_("daily"), **given)
        assert answer.status_code == 200, (path, answer.text)
        assert '"problem"' not in answer.text
    for method, path, given, count in CALLS:
        answer = home.client.request(method, path, headers=as_("daily"), **given)
        if path.endswith("/batch"):
            assert answer.text.count('"urn:adaptserve:problem:over-quota"') == count
            continue
        assert answer.status_code == 429, path
        refused = answer.json()
        assert refused.get("field", "quota") == "quota"
        words = refused["message" if path.startswith("/predictions") else "error"]  # TorchServe has three members
        assert "key 'daily' may ask about 12 pictures or clips a day (quota)" in words
        assert 0 < int(answer.headers["Retry-After"]) <= 86_400
    assert home.client.get("/v1/tasks", headers=as_("daily")).status_code == 200
    assert home.client.post("/v1/tasks/pets/predict", content=PICTURE, headers=as_("gold")).status_code == 200


def test_a_rate_is_refused_before_the_body_with_the_time_to_wait(home: House) -> None:
    ask = {"url": "/v1/tasks/pets/predict", "content": PICTURE, "headers": as_("burst")}
    assert [home.client.post(**ask).status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = home.client.post(**ask | {"content": b"no picture"})
    document = problem(refused, 429)
    assert (document["field"], document["limit"], document["reason"]) == ("rate", 0.01, "rate")
    assert 95 <= int(refused.headers["Retry-After"]) <= 100
    watched = home.client.get("/metrics", headers=as_("boss")).text
    assert 'adaptserve_holder_refusals_total{holder="burst",reason="rate"} 2.0' in watched
    assert 'adaptserve_holder_refusals_total{holder="paced",reason="rate"} 0.0' in watched
    assert 'adaptserve_holder_rows_total{holder="burst"} 3.0' in watched


def test_a_batch_goes_at_its_keys_rate(home: House) -> None:
    pictures = archive([(f"{n}.jpg", PICTURE) for n in range(9)], "zip")
    start = time.monotonic()
    answer = home.client.post("/v1/tasks/pets/batch", content=pictures, headers=as_("paced"))
    assert answer.text.count('"predictions"') == 9
    assert '"done":true' in answer.text
    assert time.monotonic() - start >= 8 / 40


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("pets", "'pets' is no task's weight"), ("pets=0", "is no task's weight"), ("pets=nan", "is no task's weight"),
        ("Pets=1", "'Pets' is no task's name"), ("pets=1,pets=2", "task 'pets' is named twice"),
    ],
)  # fmt: skip
def test_weights_of_tasks_that_are_none_stop_the_start(kit: Kit, given: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kit.settings(task_weights=given)
    assert kit.settings(task_weights=" a=1, b = 0.5 ,").task_weights


@pytest.mark.torture
def test_front_ends_share_a_quota_and_the_keys_are_those_of_the_start(kit: Kit, tmp_path: Path) -> None:
    """The keys' file is changed behind the server's back, and both front ends are started anew."""
    file = tmp_path / "keys.json"
    secret, key = create("daily", "admin", quota=3)
    file.write_text(dump([create("other", "predict")[1], key]))
    given = [
        "--data-dir", str(tmp_path / "data"), "--backbone", str(kit.folder / "vit"), "--weights", "random:0",
        "--device", "cpu", "--front-ends", "2", "--keys-file", str(file),
    ]  # fmt: skip
    headers = {"Authorization": f"Bearer {secret}", "Connection": "close"}
    codes = list[int]()
    with Process(given, tmp_path / "log") as server:
        content = kit.file(1)[0]
        assert server.client.put("/v1/tasks/t/adapter", content=content, headers=headers).status_code == 201
        file.write_text(dump([key.model_copy(update={"quota": 1000})]))
        for _ in range(5):
            codes.append(server.client.post("/v1/tasks/t/predict", content=PICTURE, headers=headers).status_code)
            if len(codes) == 1:
                old = server.family("service.web.process")
                for child in old:
                    child.kill()
                assert until(lambda: _answers(server))
    assert codes == [200, 200, 200, 429, 429]


def _answers(server: Process) -> bool:
    try:
        return server.client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_children_that_are_started_later_have_the_keys_of_the_start(kit: Kit, tmp_path: Path) -> None:
    key = create("shop", "admin", weight=2)[1]
    file = tmp_path / "keys.json"
    file.write_text(dump([key]))
    with socket.socket() as listener:
        settings = kit.settings(keys_file=str(file), data_dir=tmp_path)
        told = Supervisor(settings, ["cpu"], 1, listener)._settings
        bare = Supervisor(kit.settings(data_dir=tmp_path), ["cpu"], 1, listener)._settings
    file.unlink()
    assert Keys.read(told.keys, told.keys_file).all == (key,)
    assert (bare.keys, bare.keys_file) == ("", "")


def test_a_restart_keeps_the_days_count(kit: Kit, tmp_path: Path) -> None:
    secret, key = create("daily", "admin", quota=2)
    settings = kit.settings(data_dir=tmp_path / "data", keys=dump([key]))
    codes = list[int]()
    for number in range(2):
        with house(settings) as made:
            made.client.headers["Authorization"] = f"Bearer {secret}"
            if not number:
                made.put("t", kit.file(1)[0]).raise_for_status()
            codes += [made.ask("t", PICTURE).status_code for _ in range(2 - number)]
    assert codes == [200, 200, 429]
