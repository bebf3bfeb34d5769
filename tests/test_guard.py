"""Who may call what, over real sockets: scopes, task lists, and nothing said of tasks that are not one's own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute

from service.keys import create, dump
from service.web.routes.guard import NEEDS
from tests.houses import House, Kit, house, photograph

WAIT = 20.0


@dataclass(frozen=True)
class Door:
    """A server with keys, and the secrets of its holders."""

    home: House
    secrets: dict[str, str]

    def ask(self, who: str | None, method: str, path: str, content: bytes = b"") -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.secrets.get(who, who)}"} if who else {}
        return self.home.client.request(method, path, content=content, headers=headers)


@pytest.fixture(scope="module")
def door(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Holders: boss (admin), app (predict), pets (predict, one task), keeper (admin, one task and a new one)."""
    folder: Path = tmp_path_factory.mktemp("door")
    made = {
        "boss": create("boss", "admin"),
        "app": create("app", "predict"),
        "pets": create("pets", "predict", ["pets"]),
        "keeper": create("keeper", "admin", ["pets", "new"]),
    }
    (folder / "keys.json").write_text(dump(key for _, key in made.values()))
    settings = kit.settings(data_dir=folder / "data", keys_file=str(folder / "keys.json"))
    with house(settings) as home:
        opened = Door(home, {name: secret for name, (secret, _) in made.items()})
        for task in ("pets", "secret"):
            assert opened.ask("boss", "PUT", f"/v1/tasks/{task}/adapter", kit.file(1)[0]).status_code == 201
        yield opened


PICTURE = photograph()
CALLS = {
    "predict": [
        ("POST", "/v1/tasks/{}/predict"),
        ("POST", "/v1/predict?task={}"),
        ("GET", "/v1/tasks/{}"),
        ("GET", "/v1/tasks/{}/versions"),
        ("GET", "/v1/tasks/{}/versions/1"),
    ],
    "admin": [
        ("PUT", "/v1/tasks/{}/adapter"),
        ("GET", "/v1/tasks/{}/versions/1/adapter"),
        ("POST", "/v1/tasks/{}/versions/1/activate"),
        ("DELETE", "/v1/tasks/{}/versions/1"),
        ("DELETE", "/v1/tasks/{}"),
    ],
}
EVERY = [(scope, method, path) for scope, calls in CALLS.items() for method, path in calls]


def problem(response: httpx.Response, status: int) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    return dict(response.json())


def same(one: httpx.Response, other: httpx.Response) -> bool:
    """Equal but for the request's id and the time."""
    documents = [r.json() | {"instance": "", "request_id": ""} for r in (one, other)]
    headers = [{k: v for k, v in r.headers.items() if k not in {"x-request-id", "date"}} for r in (one, other)]
    return documents[0] == documents[1] and headers[0] == headers[1] and one.status_code == other.status_code


@pytest.mark.parametrize(
    ("scope", "method", "path"), [*EVERY, ("predict", "GET", "/v1/tasks"), ("admin", "GET", "/metrics")]
)
def test_no_key_or_an_unknown_one_is_401_and_names_the_scope(door: Door, scope: str, method: str, path: str) -> None:
    for who in (None, "as_unknown"):
        answer = door.ask(who, method, path.format("secret"), PICTURE)
        document = problem(answer, 401)
        assert document["scope"] == scope
        assert f"'{scope}'" in str(document["detail"])
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert same(answer, door.ask(who, method, path.format("nosuch"), PICTURE))


@pytest.mark.parametrize(("method", "path"), [*CALLS["admin"], ("GET", "/metrics")])
def test_a_predict_key_lacks_admin(door: Door, method: str, path: str) -> None:
    for who in ("app", "pets"):
        answer = door.ask(who, method, path.format("pets"), PICTURE)
        assert problem(answer, 403)["scope"] == "admin"
        assert "'admin'" in answer.json()["detail"]
        assert same(answer, door.ask(who, method, path.format("nosuch"), PICTURE))
    assert door.ask("app", "GET", "/v1/tasks/pets/versions/1").status_code == 200


@pytest.mark.parametrize(("scope", "method", "path"), EVERY)
def test_a_limited_key_cannot_tell_which_other_tasks_exist(door: Door, scope: str, method: str, path: str) -> None:
    who = {"predict": "pets", "admin": "keeper"}[scope]
    answer = door.ask(who, method, path.format("secret"), PICTURE)
    problem(answer, 403)
    assert "secret" not in answer.text
    for other in ("nosuch", "NO%20NAME", "secret%00", "a" * 5000):
        assert same(answer, door.ask(who, method, path.format(other), PICTURE))
    assert "secret" in door.ask("boss", "GET", "/v1/tasks").text  # and nothing was deleted


def test_one_task_outside_the_list_refuses_the_whole_call(door: Door) -> None:
    assert door.ask("pets", "POST", "/v1/predict?task=pets", PICTURE).status_code == 200
    for more in ("secret", "nosuch", ""):
        problem(door.ask("pets", "POST", f"/v1/predict?task=pets&task={more}", PICTURE), 403)
    assert door.ask("app", "POST", "/v1/predict?task=pets&task=secret", PICTURE).status_code == 200


def test_the_list_holds_what_the_key_may_see(door: Door) -> None:
    def listed(who: str) -> list[str]:
        return [task["task"] for task in door.ask(who, "GET", "/v1/tasks").json()["tasks"]]

    assert listed("boss") == listed("app") == ["pets", "secret"]
    assert listed("pets") == listed("keeper") == ["pets"]


def test_each_holder_may_do_their_own(door: Door, kit: Kit) -> None:
    assert door.ask("pets", "POST", "/v1/tasks/pets/predict", PICTURE).status_code == 200
    assert door.ask("keeper", "PUT", "/v1/tasks/new/adapter", kit.file(2)[0]).status_code == 201
    assert door.ask("keeper", "GET", "/v1/tasks/new/versions/1/adapter").status_code == 200
    assert door.ask("keeper", "DELETE", "/v1/tasks/new").status_code == 204
    assert door.ask("boss", "GET", "/metrics").status_code == 200
    assert door.ask("boss", "POST", "/v1/tasks/nosuch/predict", PICTURE).status_code == 404
    answer = door.ask("keeper", "GET", "/metrics")
    problem(answer, 403)  # its labels name every task
    for path in ("/livez", "/readyz", "/docs", "/openapi.json"):
        assert door.ask(None, "GET", path).status_code == 200


def test_where_a_key_may_stand(door: Door) -> None:
    boss, get = door.secrets["boss"], door.home.client.get
    good = [
        {"Authorization": f"bearer  {boss}"},
        {"X-API-Key": boss},
        {"Authorization": "Basic eDp5", "X-API-Key": boss},
    ]
    bad = [
        {"Authorization": boss},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer x", "X-API-Key": boss},
        {"Cookie": f"key={boss}"},
        {"Host": "127.0.0.1"},
        {"Host": "localhost", "X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1"},
        {"Authorization": "Bearer \xff"},
    ]
    assert [get("/v1/tasks", headers=h).status_code for h in good] == [200] * len(good)
    assert [get("/v1/tasks", headers=_raw(h)).status_code for h in bad] == [401] * len(bad)
    assert get("/v1/tasks", params={"key": boss}).status_code == 401


def test_the_answer_comes_before_the_body_is_asked_for(door: Door) -> None:
    host, port = door.home.url.removeprefix("http://").split(":")
    head = f"PUT /v1/tasks/pets/adapter HTTP/1.1\r\nHost: {host}\r\n"
    head += "Content-Length: 9000000\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=WAIT) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_refused_calls_name_no_task_in_the_metrics(door: Door) -> None:
    door.ask("pets", "POST", "/v1/tasks/secret/predict", PICTURE)
    text = door.ask("boss", "GET", "/metrics").text
    assert 'code="403",task=""' in text
    assert 'code="403",task="secret"' not in text


def test_every_endpoint_is_in_the_table_or_needs_admin(door: Door) -> None:
    """The table has no entry for an endpoint that is not there, and only known ones are open."""
    app = door.home.front.app
    there = {(method, path) for path, calls in app.openapi()["paths"].items() for method in map(str.upper, calls)}
    assert set(NEEDS) <= there
    opened = {"/livez", "/readyz", "/", "/v1/key", "/ping", "/v2", "/v2/health/live", "/v2/health/ready"}
    assert {path for (_, path), scope in NEEDS.items() if scope is None} == opened
    changing = {(method, path) for (method, path), scope in NEEDS.items() if scope == "predict" and method != "GET"}
    asking = ("predict", "/batch", "/v1/embed", "infer", "classify", "/v2/repository/index", "/models/{task}",
              "/predictions/")  # fmt: skip
    assert all(any(word in path for word in asking) for _, path in changing)

    @app.get("/v1/new")
    async def new() -> None: ...

    route = next(r for r in app.routes if isinstance(r, APIRoute) and r.path == "/v1/new")
    assert any(d.call.__name__ == "guard" for d in route.dependant.dependencies if d.call)


def test_without_keys_everything_is_open(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path)) as home:
        assert home.put("pets", kit.file(1)[0]).status_code == 201
        assert home.client.get("/metrics").status_code == 200
        assert home.client.get("/v1/tasks", headers={"Authorization": "Bearer x"}).status_code == 200
        assert home.client.delete("/v1/tasks/pets").status_code == 204


def _raw(headers: dict[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode("latin-1") for name, value in headers.items()}
