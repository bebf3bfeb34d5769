"""Who may come in, over real sockets: names of the server, pages of other origins, CORS, and proxies."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.keys import create, dump
from tests.houses import House, Kit, house, photograph, problem

PAGE = "https://shop.example"


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """As it is without any setting."""
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"))) as made:
        made.put("pets", kit.file(1)[0]).raise_for_status()
        yield made


@pytest.fixture(scope="module")
def told(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """With names, an origin, and a proxy on this machine."""
    settings = kit.settings(
        data_dir=tmp_path_factory.mktemp("told"), published_host="published.example", trusted_proxies="127.0.0.1",
        allowed_hosts="vision.example, *.below.example", allowed_origins=f"{PAGE},http://localhost:3000",
    )  # fmt: skip
    with house(settings) as made:
        made.put("pets", kit.file(1)[0]).raise_for_status()
        yield made


def raw(home: House, lines: str) -> bytes:
    host, port = home.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(lines.encode("latin-1") + b"\r\n\r\n")
        return connection.recv(65536)


def activate(home: House, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return home.client.post("/v1/tasks/pets/versions/1/activate", headers=named)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.:1234", "app.localhost", "127.0.0.1", "127.8.9.1:80", "[::1]:8000", "10.1.2.3:8000"],
)
def test_loopback_and_addresses_need_no_setting(home: House, host: str) -> None:
    assert home.client.get("/v1/tasks", headers={"Host": host}).status_code == 200
    assert activate(home, Host=host).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "EVIL.example.:8000", "127.0.0.1.evil.example", "localhost.evil.example", "x"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/tasks"), ("DELETE", "/v1/tasks/pets"), ("GET", "/livez"), ("GET", "/docs"), ("OPTIONS", "/v1/tasks")],
)
def test_another_name_is_refused_and_the_setting_named(home: House, host: str, method: str, path: str) -> None:
    document = problem(home.client.request(method, path, headers={"Host": host}), 421)
    assert document["type"] == "urn:adaptserve:problem:unknown-host"
    assert "ADAPTSERVE_ALLOWED_HOSTS" in str(document["detail"])
    assert document["got"] == host.lower().split(":")[0].rstrip(".")
    assert home.client.get("/v1/tasks/pets").status_code == 200


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("GET /livez HTTP/1.0", 200), ("GET /livez HTTP/1.1", 400), ("GET /livez HTTP/1.1\r\nHost:", 400),
        ("GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil.example", 400),
        ("GET /livez HTTP/1.1\r\nHost: evil.example\r\nHost: localhost", 400),
        ("GET /livez HTTP/1.1\r\nHost: a b", 400), ("GET /livez HTTP/1.1\r\nHost: [::1", 400),
        ("GET /livez HTTP/1.1\r\nHost: m\xfcnchen.de", 400), ("GET /livez HTTP/1.0\r\nHost: evil.example", 421),
        ("GET http://evil.example/livez HTTP/1.1\r\nHost: evil.example", 421),
    ],
)  # fmt: skip
def test_a_host_that_is_none(home: House, lines: str, status: int) -> None:
    answer = raw(home, lines)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer


def test_names_of_the_settings(told: House) -> None:
    for host in ("published.example", "Vision.example:443", "a.below.example", "a.b.below.example.", "localhost"):
        assert told.client.get("/livez", headers={"Host": host}).status_code == 200, host
    for host in ("below.example", "a.vision.example", "evil.example"):
        problem(told.client.get("/livez", headers={"Host": host}), 421)


def test_any_name_where_the_setting_says_so(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path, allowed_hosts="*")) as made:
        assert made.client.get("/livez", headers={"Host": "any.example"}).status_code == 200
        assert made.client.get("/livez", headers={"Host": "a b"}).status_code == 400


FOREIGN: tuple[dict[str, str], ...] = (
    {"Origin": PAGE}, {"Origin": "null"}, {"Origin": ""}, {"Origin": "nonsense"}, {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://127.0.0.1"}, {"Origin": "http://localhost:{port}"}, {"Origin": "https://127.0.0.1:{port}"},
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "later-invention"},
    {"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "cross-site"}, {"Origin": PAGE, "Sec-Fetch-Site": "none"},
    {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
    {"Origin": PAGE, "Sec-Fetch-Site": "same-origin"},
    {"Origin": "chrome-extension://abcdef", "Sec-Fetch-Site": "none"},
)  # fmt: skip


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_foreign_page_changes_nothing(home: House, kit: Kit, headers: dict[str, str]) -> None:
    port = home.url.rpartition(":")[2]
    headers = {name: value.replace("{port}", port) for name, value in headers.items()}
    calls = [
        ("POST", "/v1/tasks/pets/versions/1/activate", b""), ("PUT", "/v1/tasks/mine/adapter", kit.file(2)[0]),
        ("DELETE", "/v1/tasks/pets", b""), ("POST", "/v1/tasks/pets/predict", photograph()),
        ("PATCH", "/v1/tasks", b""), ("DELETE", "/v1/tasks/pets/versions/1/", b""),
    ]  # fmt: skip
    for method, path, body in calls:
        document = problem(home.client.request(method, path, headers=headers, content=body), 403)
        assert document["type"] == "urn:adaptserve:problem:foreign-origin"
        assert "ADAPTSERVE_ALLOWED_ORIGINS" in str(document["detail"])
    assert [task["task"] for task in home.client.get("/v1/tasks", headers=headers).json()["tasks"]] == ["pets"]


def test_own_pages_and_clients_that_are_no_browser_pass(home: House) -> None:
    host = home.url.removeprefix("http://")
    own: list[dict[str, str]] = [
        {}, {"Origin": home.url}, {"Origin": home.url.upper().replace("HTTP", "http")}, {"Sec_Fetch_Site": "none"},
        {"Sec_Fetch_Site": "same-origin"}, {"Origin": home.url, "Sec_Fetch_Site": "same-origin"},
        {"Origin": "http://localhost", "Host": "localhost"}, {"Origin": "http://localhost", "Host": "LOCALHOST.:80"},
        {"Origin": "https://localhost", "Host": "localhost", "Sec_Fetch_Site": "same-origin"},  # TLS ended before us
        {"Origin": f"https://{host}", "Sec_Fetch_Site": "same-origin"},
    ]  # fmt: skip
    assert [activate(home, **headers).status_code for headers in own] == [200] * len(own)


def test_it_is_refused_before_the_body_and_whatever_the_key(kit: Kit, tmp_path: Path) -> None:
    secret, key = create("boss", "admin")
    (tmp_path / "keys.json").write_text(dump([key]))
    with house(kit.settings(data_dir=tmp_path / "data", keys_file=str(tmp_path / "keys.json"))) as made:
        bearer = {"Authorization": f"Bearer {secret}"}
        made.client.put("/v1/tasks/pets/adapter", content=kit.file(1)[0], headers=bearer).raise_for_status()
        problem(made.client.delete("/v1/tasks/pets", headers=bearer | {"Origin": PAGE}), 403)
        problem(made.client.get("/v1/tasks", headers=bearer | {"Host": "evil.example"}), 421)
        assert activate(made, **bearer).status_code == 200
        head = f"PUT /v1/tasks/a/adapter HTTP/1.1\r\nHost: localhost\r\nOrigin: {PAGE}\r\nContent-Length: 9000000"
        assert raw(made, head).startswith(b"HTTP/1.1 403 ")


def test_a_page_of_an_allowed_origin_may(told: House, kit: Kit) -> None:
    for page in (PAGE, "http://localhost:3000"):
        done = told.client.put(
            "/v1/tasks/mine/adapter", content=kit.file(2)[0], headers={"Origin": page, "Sec-Fetch-Site": "cross-site"}
        )
        assert done.status_code in (200, 201)
        assert done.headers["access-control-allow-origin"] == page
        exposed = {name.strip().lower() for name in done.headers["access-control-expose-headers"].split(",")}
        assert {"x-request-id", "server-timing", "retry-after", "location", "etag"} <= exposed
        assert "origin" in done.headers["vary"].lower()
    for page in ("http://shop.example", "https://shop.example:8443", "https://a.shop.example", "null"):
        refused = told.client.delete("/v1/tasks/mine", headers={"Origin": page})
        problem(refused, 403)
        assert "access-control-allow-origin" not in refused.headers
    assert activate(told, Sec_Fetch_Site="cross-site").status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/tasks/none", 404), ("GET", "/nothing", 404), ("PATCH", "/v1/tasks", 405), ("HEAD", "/livez", 200),
        ("POST", "/v1/tasks/pets/predict?topk=1", 400), ("POST", "/v1/tasks/pets/predict", 422),
    ],
)  # fmt: skip
def test_such_a_page_may_read_errors_too(told: House, method: str, path: str, status: int) -> None:
    answer = told.client.request(method, path, headers={"Origin": PAGE})
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == PAGE


def test_an_unforeseen_error_can_be_read_too(told: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(told.front.catalogue.repository), "task", lambda *_: 1 / 0)
    answer = told.client.get("/v1/tasks/pets", headers={"Origin": PAGE})
    problem(answer, 500)
    assert answer.headers["access-control-allow-origin"] == PAGE


def preflight(home: House, page: str, method: str, **more: str) -> httpx.Response:
    asked = {"Origin": page, "Access-Control-Request-Method": method}
    asked |= {f"Access-Control-Request-{name}": value for name, value in more.items()}
    return home.client.options("/v1/tasks/pets/adapter", headers=asked)


def test_preflights_cost_no_key(kit: Kit, tmp_path: Path) -> None:
    _, key = create("boss", "admin")
    (tmp_path / "keys.json").write_text(dump([key]))
    settings = kit.settings(
        data_dir=tmp_path / "data", keys_file=str(tmp_path / "keys.json"), allowed_origins="https://shop.example"
    )
    with house(settings) as made:
        for method in ("PUT", "DELETE", "POST", "GET"):
            answer = preflight(made, PAGE, method, Headers="authorization,x-api-key,x-deadline-ms,content-type")
            assert answer.status_code in (200, 204)
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert method in answer.headers["access-control-allow-methods"]
            assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        assert preflight(made, PAGE, "GET", **{"Private-Network": "true"}).status_code == 200
        assert "ALLOWED_ORIGINS" in str(problem(preflight(made, "https://evil.example", "PUT"), 403)["detail"])
        problem(preflight(made, PAGE, "PATCH"), 400)
        refused = made.client.put("/v1/tasks/pets/adapter", content=b"x", headers={"Origin": PAGE})
        problem(refused, 401)
        assert refused.headers["access-control-allow-origin"] == PAGE


def test_without_the_setting_a_preflight_allows_nothing(home: House) -> None:
    answer = preflight(home, PAGE, "PUT")
    assert answer.status_code == 204
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_every_origin_where_the_setting_says_so(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path, allowed_origins="*")) as made:
        made.put("pets", kit.file(1)[0]).raise_for_status()
        for page in (PAGE, "null"):
            answer = activate(made, Origin=page, Sec_Fetch_Site="cross-site")
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")


def test_a_trusted_proxy_is_believed(told: House) -> None:
    through = {"Host": "10.0.0.9:8000", "X_Forwarded_Proto": "https", "X_Forwarded_For": "203.0.113.7"}
    page = "https://vision.example"
    assert activate(told, **through, X_Forwarded_Host="vision.example", Origin=page).status_code == 200
    assert activate(told, **through, X_Forwarded_Host="evil.example, vision.example", Origin=page).status_code == 200
    assert (
        activate(told, **through, X_Forwarded_Host="vision.example", Origin="http://vision.example").status_code == 403
    )
    problem(activate(told, **through, X_Forwarded_Host="evil.example"), 421)
    problem(activate(told, **through, X_Forwarded_Host="vision.example, evil.example"), 421)
    assert activate(told, **through, Origin=page).status_code == 403


def test_nobody_else_is(home: House) -> None:
    """Also not a client on this machine, whom uvicorn would believe by itself."""
    spoofed = {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "vision.example", "X_Forwarded_For": "127.0.0.1"}
    assert activate(home, **spoofed, Origin="https://vision.example").status_code == 403
    assert activate(home, **spoofed, Origin=home.url.replace("http:", "https:")).status_code == 403
    assert activate(home, **spoofed).status_code == 200
    problem(activate(home, Host="evil.example", X_Forwarded_Host="localhost"), 421)
    problem(activate(home, Host="evil.example", Forwarded="host=localhost"), 421)


def test_a_proxy_that_is_not_in_the_list_is_not_believed(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path, trusted_proxies="10.0.0.0/8,192.0.2.1")) as made:
        made.put("pets", kit.file(1)[0]).raise_for_status()
        problem(activate(made, Host="evil.example", X_Forwarded_Host="localhost"), 421)
        problem(
            activate(made, Origin="https://localhost", X_Forwarded_Host="localhost", X_Forwarded_Proto="https"), 403
        )
