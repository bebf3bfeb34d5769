"""The page in a real browser: tasks, their versions, who shares their traffic, their history; and uploads."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service.store.demo import DEMO
from tests.browser import CHROMIUM, Browser
from tests.houses import House, Kit
from tests.page_driving import REFUSED, go, has, sample, shown, text

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)")


def test_a_good_adapter_goes_live_is_compared_and_rolled_back(page: Browser, served: House, tmp_path: Path) -> None:
    tasks = DEMO / "tasks"
    for version, file in enumerate((tasks / "digits.safetensors", tasks / "digit-collage.safetensors"), 1):
        go(page, "upload", ".drop.short")
        page.choose("input[accept='.safetensors']", str(file))
        page.until(has(".small-facts", "demo"))
        page.run("document.querySelector('#task-name').value = ''")
        page.type("#task-name", "mine")
        page.click("form .primary")
        page.until(has(".checks .done", f"mine v{version} is live"))
        assert page.run("document.querySelectorAll('.checks .passed').length") == 7
        assert page.run("document.querySelectorAll('.checks .failed').length") == 0
        page.run("void (location.hash = '#/try')")
    go(page, "try/mine", ".chip input[value=mine]")
    sample(page, "digits-9.png")
    page.until(has("[data-task=mine] h3", "v2"))
    page.click("[data-task=mine] .compare")
    page.until(has(".compared", "The answers differ."))
    page.until("document.querySelectorAll('.diff .differs').length > 0")
    go(page, "tasks/mine", ".rollback")
    assert page.run(text("tr.current td")) == "v2 active"
    page.click(".rollback")
    page.until(f"{text('tr.current td')} === 'v1 active'")
    assert served.client.get("/v1/tasks/mine").json()["version"] == 1
    page.click("tr[data-version='2'] .danger")
    page.until(has("tr[data-version='2']", "for good?"))
    page.click("tr[data-version='2'] .danger")
    page.until("document.querySelector(\"tr[data-version='2']\") === null")
    assert [one["version"] for one in served.client.get("/v1/tasks/mine/versions").json()["versions"]] == [1]


@pytest.mark.parametrize("how", ["cut", "foreign", "not one"])
def test_a_broken_adapter_is_refused_in_the_servers_words(page: Browser, kit: Kit, tmp_path: Path, how: str) -> None:
    good = (DEMO / "tasks" / "digits.safetensors").read_bytes()
    content = {"cut": good[:-100], "foreign": kit.file(1)[0], "not one": b"PK\x03\x04" + bytes(100)}[how]
    failed = {"cut": "header", "foreign": "base", "not one": "file"}[how]
    (tmp_path / "bad.safetensors").write_bytes(content)
    go(page, "upload", ".drop.short")
    page.choose("input[accept='.safetensors']", str(tmp_path / "bad.safetensors"))
    page.click("form .primary")
    page.until("document.querySelector('.checks .failed') !== null")
    assert page.run("document.querySelector('.checks .failed').dataset.check") == failed
    before = page.run("[...document.querySelectorAll('.checks li')].map(i => [i.dataset.check, i.className])")
    at = [check for check, _ in before].index(failed)
    assert all(state == "passed" for _, state in before[:at])
    assert not any("passed" in state for _, state in before[at:])
    assert len(page.run(text(".checks .failed .failure"))) > 40
    assert all(REFUSED in line for line in page.console)
    page.console.clear()


def many(total: int, page_items: int = 100) -> Any:
    """/v1/tasks of a server that has so many, page by page."""
    from urllib.parse import parse_qs, urlsplit

    from service.web.schemas import TaskAnswer, TaskCounts

    names = [f"task-{number:05}" for number in range(total)]

    def answer(url: str) -> Any:
        query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        if urlsplit(url).path != "/v1/tasks":
            return None
        fit = [name for name in names if name.startswith(query.get("prefix", ""))]
        rest = [name for name in fit if name > query.get("after", "")]
        limit = int(query.get("limit", page_items))
        tasks = [
            TaskAnswer(
                task=name, modality="image", version=1, digest="0" * 64, labels=["a", "b"], classes=2, score="softmax",
                frames=1, views=1, accuracy=0.5, parameters=1, share=0.1, residency="disk", versions=1, problem=None,
                requests=TaskCounts(answered=0, failed=0),
            ).model_dump()
            for name in rest[:limit]
        ]  # fmt: skip
        return {
            "backbone": "demo", "fingerprint": "0" * 64, "parameters": 1, "input_size": [32, 32], "dtype": "float32",
            "tasks": tasks, "count": len(fit), "next": rest[limit - 1] if len(rest) > limit else None,
        }  # fmt: skip

    return answer


def test_ten_thousand_tasks_open_at_once_and_scroll_to_the_end(served: House) -> None:
    with ExitStack() as stack:
        browser = stack.enter_context(Browser())
        browser.look(1280, 900)
        page = stack.enter_context(shown(browser, served.url))
        page.fake("GET", "/v1/tasks?", many(10_000))
        page.fake("GET", "/v1/tasks", many(10_000))
        took = page.run(
            """new Promise(done => {
              const began = performance.now();
              const look = () => document.querySelectorAll('.item .name a').length > 10
                ? done(performance.now() - began) : requestAnimationFrame(look);
              location.hash = '#/tasks';
              look();
            })"""
        )
        assert took < 1000
        assert "10,000 tasks" in page.run(text("main"))
        assert page.run("document.querySelectorAll('.item').length") < 60, "only what is seen is there"
        page.run("scrollTo(0, document.body.scrollHeight)")
        page.until("[...document.querySelectorAll('.item .name a')].some(a => a.innerText === 'task-09999')")
        assert page.run("document.querySelectorAll('.item').length") < 60
        page.run("scrollTo(0, 0)")
        page.until("[...document.querySelectorAll('.item .name a')].some(a => a.innerText === 'task-00000')")
        page.type("input[type=search]", "task-0123")
        page.until("document.querySelectorAll('.item').length === 10")
