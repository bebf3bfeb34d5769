"""The page in a real browser: every view on a phone and before axe-core, and who sees what with which key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.keys import create, dump
from service.store.demo import DEMO
from tests.browser import CHROMIUM, Browser
from tests.houses import House, Kit, house, photograph
from tests.page_driving import AXE, REFUSED, go, has, sample, shown, text

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)")

VIEWS = ["try", "teach", "teach/new", "tasks", "tasks/digits", "tasks/shared", "upload", "watch", "keys"]


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_wider_than_a_phone(shared: House, page: Browser, view: str) -> None:
    page.look(360, 740)
    go(page, view, "main h1")
    page.until("document.querySelector('main').childElementCount > 0")
    if view == "try":
        sample(page, "digits-9.png")
        page.until(has("[data-task=digits] .verdict", "9"))
    assert page.run("document.documentElement.scrollWidth") <= 360
    page.look(1280, 900)


@pytest.fixture(scope="module")
def shared(served: House) -> House:
    """With a task whose traffic is shared, that has a shadow, and whose versions do not agree."""
    for file in ("digits", "digit-collage", "animal-or-vehicle"):
        content = (DEMO / "tasks" / f"{file}.safetensors").read_bytes()
        query = {"activate": file == "digits"}
        served.client.put("/v1/tasks/shared/adapter", content=content, params=query).raise_for_status()
    rule = {"weights": {"1": 1, "2": 1}, "guard": None}
    served.client.put("/v1/tasks/shared/traffic", json=rule).raise_for_status()
    served.client.put("/v1/tasks/shared/shadow", json={"version": 3, "share": 1}).raise_for_status()
    for number in range(6):
        served.client.post("/v1/tasks/shared/predict", content=photograph(number)).raise_for_status()
    return served


@pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core, which `make test` installs where npm is (or AXE_CORE=…)")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["wide", "phone"])
def test_axe_finds_nothing_serious(shared: House, page: Browser, size: tuple[int, int], dark: bool) -> None:
    page.look(*size, dark=dark)
    page.run(AXE.read_text() + "; 0")
    found = {}
    for view in VIEWS:
        go(page, view, "main h1")
        if view == "try":
            sample(page, "moving-digit-left.mp4")
            page.until(has("[data-task=moving-digit] .verdict", "left"))
            page.click(".wrong")
        if view == "tasks/shared":
            page.until("document.querySelector('.agreement summary') !== null")
            page.click(".agreement summary")
        if view == "upload":
            page.choose("input[accept='.safetensors']", str(DEMO / "tasks" / "digits.safetensors"))
            page.until("document.querySelector('.columns') !== null")
        told = page.run("axe.run(document, {resultTypes: ['violations']})"
                        ".then(r => r.violations.filter(v => ['serious', 'critical'].includes(v.impact))"
                        ".map(v => [v.id, v.nodes.map(n => n.html.slice(0, 200))]))")  # fmt: skip
        if told:
            found[view] = told
    page.look(1280, 900)
    assert found == {}


@contextmanager
def guarded(kit: Kit, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A server with keys: its address, and the secrets by name."""
    made = {
        "boss": create("boss", "admin"), "shop": create("shop", "predict"), "pets": create("pets", "admin", ["pets"]),
    }  # fmt: skip
    (folder / "keys.json").write_text(dump([key for _, key in made.values()]))
    with house(kit.settings(data_dir=folder / "data", keys_file=str(folder / "keys.json"))) as home:
        secrets = {name: secret for name, (secret, _) in made.items()}
        home.client.headers["Authorization"] = f"Bearer {secrets['boss']}"
        for task in ("birds", "pets"):
            home.put(task, kit.file(1)[0]).raise_for_status()
        yield home.url, secrets


def test_with_keys_the_page_asks_for_one_and_shows_what_it_may(kit: Kit, browser: Browser, tmp_path: Path) -> None:
    views = "[...document.querySelectorAll('nav a')].map(a => a.innerText).join()"

    def enter(page: Browser, secret: str) -> None:
        page.run("void (location.hash = '#/keys')")
        page.type("#secret", secret)
        page.click("form .primary")

    with guarded(kit, tmp_path) as (url, secrets), shown(browser, url) as page:
        assert page.run(text("main h1")) == "This server asks for a key"
        assert page.run(views) == ""
        assert page.console == [], "nothing was asked that is refused without a key"
        enter(page, "as_wrong")
        page.until(has(".failure", "none of this server's"))
        assert all(REFUSED in line for line in page.console)
        page.console.clear()
        enter(page, secrets["shop"])
        page.until(f"{views} === 'Try,Tasks'")
        (tmp_path / "a.jpg").write_bytes(photograph())
        page.choose("input[type=file]", str(tmp_path / "a.jpg"))
        page.until("document.querySelectorAll('.answer:not(.waiting)').length === 2")
        assert page.run("document.querySelector('.wrong')") is None, "it may not put examples"
        code = page.run(text(".code pre"))
        assert "ADAPTSERVE_API_KEY" in code
        assert secrets["shop"] not in code
        go(page, "tasks/pets", "table")
        assert page.run("document.querySelector('.danger')") is None
        page.run("void (location.hash = '#/upload')")
        page.until(has("main h1", "Every task answers"))
        enter(page, secrets["pets"])
        page.until(f"{views} === 'Try,Teach,Tasks,Upload'")
        enter(page, secrets["boss"])
        page.until(f"{views} === 'Try,Teach,Tasks,Upload,Watch'")
        go(page, "watch", ".plots")
        page.run("void (location.hash = '#/keys')")
        page.until(has("main", "boss may:"))
        assert not any(secret in asked for secret in secrets.values() for asked in page.asked), "in no address"
        assert page.run("JSON.stringify([localStorage, sessionStorage, document.cookie])") == '[{},{},""]'
        page.click(".stack .stack > div > button")
        page.until(has("main h1", "asks for a key"))
