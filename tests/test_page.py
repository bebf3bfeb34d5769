"""/ and what it loads, without a browser: who gets the page, under which policy, how large it is; and GET /v1/key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.keys import create, dump
from service.web.routes.page import POLICY, SAMPLES, assets_of, index_of, wants_html
from tests.houses import House, Kit, house, problem

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
MOST_BYTES = 150_000
ALIVE = {"status": "alive"}


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"))) as made:
        yield made


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        (BROWSER, True), ("text/html", True), ("TEXT/HTML;q=0.4, */*;q=0.1", True), ("text/html;level=1", True),
        ("application/json;q=0.5,text/html", True), ("text/html;q=0", False), ("*/*", False), ("", False),
        ("application/json", False), ("application/json, text/plain, */*", False), ("text/*", False),
        ("text/html;q=0.1,application/json", False), ("text/html;q=much", False), (";;,,=;q=", False),
    ],
)  # fmt: skip
def test_who_asks_for_html_gets_the_page_and_everyone_else_what_they_got(home: House, accept: str, page: bool) -> None:
    answer = home.client.get("/", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["vary"] == "Accept"
    if page:
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "<!DOCTYPE html>" in answer.text
    else:
        assert answer.json() == ALIVE


@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60), max_size=3))
def test_no_accept_header_is_too_strange(accepts: list[str]) -> None:
    assert wants_html(accepts) in (True, False)


def test_head_and_what_is_kept(home: House) -> None:
    for path in ("/", "/page/main.js"):
        whole = home.client.get(path, headers={"Accept": BROWSER})
        head = home.client.head(path, headers={"Accept": BROWSER})
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(whole.content))
        assert head.headers["etag"] == whole.headers["etag"]
        for known in (whole.headers["etag"], f'"other", W/{whole.headers["etag"]}', "*"):
            again = home.client.get(path, headers={"Accept": BROWSER, "If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == whole.headers["etag"]
        other = home.client.get(path, headers={"Accept": BROWSER, "If-None-Match": '"other"'})
        assert other.content == whole.content


def test_the_page_loads_from_the_server_alone_and_holds_no_script_or_style(home: House) -> None:
    page = home.client.get("/", headers={"Accept": BROWSER})
    assert "//" not in page.text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|\bstyle=|javascript:", page.text)
    loaded = re.findall(r'(?:src|href)="(/page/[^"]+)"', page.text)
    assert len(loaded) == 4
    seen = set()
    while loaded:
        path = loaded.pop()
        seen.add(path)
        answer = home.client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        found = re.findall(r'(?:from|import)\s*\(?"\./([\w.]+)"', answer.text) if path.endswith(".js") else []
        loaded += [f"/page/{name}" for name in found if f"/page/{name}" not in seen]
    there = {f"/page/{name}" for name in assets_of() if name.endswith((".js", ".css", ".svg"))}
    assert seen == there, "what is there is loaded, and what is loaded is there"


def test_the_policy_lets_nothing_else_in(home: House) -> None:
    answer = home.client.get("/", headers={"Accept": BROWSER})
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "http" not in answer.headers["content-security-policy"]


def test_each_file_has_its_media_type(home: House) -> None:
    kinds = {
        "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml",
        "png": "image/png", "mp4": "video/mp4",
    }  # fmt: skip
    for name in assets_of():
        assert home.client.get(f"/page/{name}").headers["content-type"] == kinds[name.rpartition(".")[2]]


def test_the_samples_that_it_offers_are_there() -> None:
    listed = re.search(r"const SAMPLES = \[(.*?)\]", assets_of()["try.js"].content.decode(), re.DOTALL)
    assert listed
    offered = re.findall(r'"([^"]+)"', listed[1])
    assert set(offered) == set(SAMPLES) == {name for name in assets_of() if name.endswith((".png", ".mp4"))}


def test_it_is_small() -> None:
    whole = len(index_of("").content) + sum(len(asset.content) for asset in assets_of().values())
    assert whole < MOST_BYTES


def test_a_name_is_looked_up_and_never_a_path(home: House) -> None:
    for name in (
        "none.js",
        "index.html",
        "__init__.py",
        "..%2Froutes%2Fpage.py",
        "../routes/page.py",
        "page/main.js",
        "",
    ):
        problem(home.client.get(f"/page/{name}"), 404)
    problem(home.client.post("/page/main.js"), 405)


def test_the_document_is_not_of_the_api(home: House) -> None:
    paths = home.client.get("/openapi.json").json()["paths"]
    assert list(paths["/"]) == ["get"]
    assert not any(path.startswith("/page") for path in paths)


@pytest.mark.parametrize("path", ["/vision", "/vision/"])
def test_behind_a_path_of_a_proxy(kit: Kit, tmp_path: Path, path: str) -> None:
    with house(kit.settings(data_dir=tmp_path, root_path="/vision")) as home:
        page = home.client.get(path, headers={"Accept": BROWSER})
        assert page.headers["content-type"].startswith("text/html")
        for loaded in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
            assert loaded.startswith("/vision/")
            assert home.client.get(loaded).status_code == 200
        assert home.client.get(path).json() == ALIVE


def test_a_wheel_has_its_files() -> None:
    """What ``package-data`` names covers each file that is there."""
    import tomllib

    project = Path(str(files("service"))).parent / "pyproject.toml"
    named = tomllib.loads(project.read_text())["tool"]["setuptools"]["package-data"]["service"]
    folder = Path(str(files("service")))
    there = {path for path in (folder / "web" / "page").rglob("*") if path.is_file()}
    assert there
    assert there <= {path for pattern in named for path in folder.glob(pattern)}


def test_the_key_says_what_it_may(kit: Kit, tmp_path: Path) -> None:
    boss, shop = create("boss", "admin"), create("shop", "predict", ["pets", "birds"])
    (tmp_path / "keys.json").write_text(dump([boss[1], shop[1]]))
    with house(kit.settings(data_dir=tmp_path / "data", keys_file=str(tmp_path / "keys.json"))) as home:
        ask = home.client.get
        assert ask("/v1/key").json() == {"required": True, "name": None, "may": [], "tasks": None}
        told = ask("/v1/key", headers={"Authorization": f"Bearer {boss[0]}"}).json()
        assert (told["name"], told["tasks"]) == ("boss", None)
        assert {"predict", "admin"} <= set(told["may"])
        told = ask("/v1/key", headers={"X-API-Key": shop[0]}).json()
        assert told == {"required": True, "name": "shop", "may": ["predict"], "tasks": ["birds", "pets"]}
        problem(ask("/v1/key", headers={"Authorization": "Bearer as_other"}), 401)
        assert ask("/", headers={"Accept": BROWSER}).status_code == 200, "the page itself is open"
        assert ask("/page/main.js").status_code == 200


def test_without_keys_everybody_may_everything(home: House) -> None:
    told = home.client.get("/v1/key").json()
    assert (told["required"], told["name"], told["tasks"]) == (False, None, None)
    assert {"predict", "admin"} <= set(told["may"])
