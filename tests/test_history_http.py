"""The history over HTTP, from the command line and by the client: who sees what, and which way a change came."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from adaptserve_client import AsyncClient, Client, ForbiddenError, UnknownTaskError
from service.cli.main import app
from service.keys import create, dump
from service.store.changes import RollBack
from service.store.events import Actor
from service.store.repository import Repository
from tests.houses import House, Kit, house, pages, problem


@dataclass(frozen=True)
class Holders:
    """A server with keys: ops (admin), keeper (admin of "pets" alone), shop (predict)."""

    home: House
    secrets: dict[str, str]

    def client(self, who: str) -> Client:
        return Client(self.home.url, self.secrets[who])

    def get(self, who: str, path: str) -> httpx.Response:
        return self.home.client.get(path, headers={"Authorization": f"Bearer {self.secrets[who]}"})


@pytest.fixture(scope="module")
def holders(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holders]:
    made = {
        "ops": create("ops", "admin"),
        "keeper": create("keeper", "admin", ["pets", "gone"]),
        "shop": create("shop", "predict"),
    }
    keys = dump(key for _, key in made.values())
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"), keys=keys, server_name="one")) as home:
        found = Holders(home, {name: secret for name, (secret, _) in made.items()})
        file = tmp_path_factory.mktemp("files") / "pets.safetensors"
        file.write_bytes(kit.file(1)[0])
        push = ["push", str(file), "--to", home.url, "--task", "pets", "--key", found.secrets["ops"]]
        assert CliRunner().invoke(app, push).exit_code == 0
        ops = {"Authorization": f"Bearer {found.secrets['ops']}"}
        home.client.put("/v1/tasks/other/adapter", content=kit.file(2)[0], headers=ops).raise_for_status()
        with found.client("keeper") as keeper:
            keeper.upload(kit.file(3)[0], task="pets", activate=False)
            keeper.upload(kit.file(3)[0], task="gone")
            keeper.delete("gone")
        page = ops | {"Origin": home.url, "User-Agent": "Mozilla/5.0"}
        home.client.post("/v1/tasks/pets/versions/2/activate", headers=page).raise_for_status()
        yield found


def test_a_task_tells_who_did_what_by_which_way(holders: Holders) -> None:
    answer = holders.get("ops", "/v1/tasks/pets/history").json()
    assert (answer["task"], answer["next"]) == ("pets", None)
    digest = holders.get("ops", "/v1/tasks/pets").json()["digest"]
    assert [(e["what"], e["version"], e["by"], e["origin"], e["detail"]) for e in answer["events"]] == [
        ("activated", 2, "ops", "page", {"before": 1}),
        ("staged", 2, "keeper", "client", {}),
        ("published", 1, "ops", "cli", {}),
    ]
    assert answer["events"][0]["digest"] == digest
    assert {(e["task"], e["server"], e["why"]) for e in answer["events"]} == {("pets", "one", None)}
    secrets = list(holders.secrets.values())
    assert not any(secret in json.dumps(answer) for secret in secrets)


def test_a_deleted_task_has_its_history_still(holders: Holders) -> None:
    problem(holders.get("keeper", "/v1/tasks/gone"), 404)
    events = holders.get("keeper", "/v1/tasks/gone/history").json()["events"]
    assert [event["what"] for event in events] == ["deleted", "published"]
    problem(holders.get("ops", "/v1/tasks/never/history"), 404)


def test_keys_see_the_history_of_their_tasks_and_predict_keys_none(holders: Holders) -> None:
    assert holders.get("keeper", "/v1/tasks/pets/history").status_code == 200
    for who, path in [
        ("keeper", "/v1/tasks/other/history"),
        ("keeper", "/v1/tasks/never/history"),
        ("keeper", "/v1/history"),
        ("shop", "/v1/tasks/pets/history"),
        ("shop", "/v1/history"),
    ]:
        problem(holders.get(who, path), 403)
    assert holders.home.client.get("/v1/history").status_code == 401


def test_all_changes_come_page_by_page(holders: Holders) -> None:
    client = holders.home.client
    client.headers["Authorization"] = f"Bearer {holders.secrets['ops']}"
    try:
        found = pages(client, "/v1/history", "events", limit=2)
        assert [(e["task"], e["what"]) for e in found] == [
            ("pets", "activated"),
            ("gone", "deleted"),
            ("gone", "published"),
            ("pets", "staged"),
            ("other", "published"),
            ("pets", "published"),
        ]
        problem(client.get("/v1/history", params={"after": "x"}), 400)
        problem(client.get("/v1/history", params={"limit": 0}), 400)
        problem(client.get("/v1/history", params={"limit": 10**6}), 400)
    finally:
        del client.headers["Authorization"]


def test_the_client_and_the_command_line_tell_it(holders: Holders) -> None:
    with holders.client("ops") as client, holders.client("shop") as shop:
        first = next(client.history("pets", limit=1))
        assert (first.what, first.version, first.by, first.detail["before"]) == ("activated", 2, "ops", 1)
        assert len(list(client.history(limit=2))) == 6
        with pytest.raises(UnknownTaskError):
            next(client.history("never"))
        with pytest.raises(ForbiddenError):
            next(shop.history("pets"))
    command = ["history", "--url", holders.home.url, "--key", holders.secrets["ops"]]
    told = CliRunner().invoke(app, [*command, "pets"], env={"COLUMNS": "160"}).output
    assert "activated version 2, instead of 1" in told
    assert "keeper (client)" in told
    assert told.index("published version 1") < told.index("staged version 2") < told.index("activated version 2")
    lines = CliRunner().invoke(app, [*command, "--json", "--limit", "3"]).output.splitlines()
    assert [json.loads(line)["what"] for line in lines] == ["published", "deleted", "activated"]
    refused = CliRunner().invoke(app, ["history", "--url", holders.home.url, "--key", holders.secrets["shop"]])
    assert (refused.exit_code, "admin" in refused.output) == (1, True)


async def _async_history(url: str, key: str) -> list[str]:
    async with AsyncClient(url, key) as client:
        return [change.what async for change in client.history("pets", limit=1)]


def test_the_async_client_follows_the_pages(holders: Holders) -> None:
    import asyncio

    found = asyncio.run(_async_history(holders.home.url, holders.secrets["ops"]))
    assert found == ["activated", "staged", "published"]


def test_a_servers_history_goes_on_after_a_restart(kit: Kit, tmp_path: Path) -> None:
    for number in (1, 2):
        with house(kit.settings(data_dir=tmp_path)) as home:
            home.put("pets", kit.file(number)[0]).raise_for_status()
            events = home.client.get("/v1/tasks/pets/history").json()["events"]
            assert [(e["version"], e["by"], e["origin"]) for e in events] == [
                (n, None, "http") for n in range(number, 0, -1)
            ]


def test_a_roll_back_is_told_with_its_reason_also_by_a_server_that_saw_nothing_of_it(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path)) as home:
        for number in (1, 2):
            home.put("pets", kit.file(number)[0], activate=number == 1).raise_for_status()
        told = home.client.put("/v1/tasks/pets/traffic", json={"1": 9, "2": 1})
        since = told.raise_for_status().json()["since"]
    with closing(Repository(tmp_path)) as repository:
        repository.recover()
        repository.revise("pets", RollBack(since, 2, "too slow"), by=Actor(None, "guard"), why="too slow")
    with house(kit.settings(data_dir=tmp_path)) as home:
        first = home.client.get("/v1/tasks/pets/history", params={"limit": 1}).json()["events"][0]
        assert (first["what"], first["version"], first["origin"], first["why"]) == (
            "rolled_back",
            2,
            "guard",
            "too slow",
        )
        assert first["detail"] == {"weights": None, "before": {"1": 9, "2": 1}}
        seen = home.client.get("/v1/tasks/pets/agreement", params={"version": 2}).raise_for_status().json()
        assert (seen["compared"], seen["agreement"], seen["disagreements"]) == (0, None, [])
