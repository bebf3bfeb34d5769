"""The page in a real browser: who shares a task's traffic, how versions agree, and what was done to a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from service.store.demo import DEMO
from tests.browser import CHROMIUM, Browser
from tests.houses import House, photograph
from tests.page_driving import go, has, text

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)")

WORST = {"max_errors": None, "max_not_finite": None, "max_latency_ratio": None, "min_agreement": 0.9, "min_compared": 5}


@dataclass(frozen=True)
class Mine:
    """A task whose second version is another task's: it answers wrong."""

    name: str
    client: httpx.Client

    @property
    def traffic(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/v1/tasks/{self.name}/traffic").json()
        return found

    def ask(self, count: int, first: int = 0) -> None:
        for number in range(first, first + count):
            self.client.post(f"/v1/tasks/{self.name}/predict", content=photograph(number)).raise_for_status()


@pytest.fixture
def mine(served: House, request: pytest.FixtureRequest) -> Iterator[Mine]:
    name = "mine-" + request.node.name.rpartition("_")[2]  # deleted tasks' numbers go on: each test has its own
    for file in ("digits", "digit-collage"):
        content = (DEMO / "tasks" / f"{file}.safetensors").read_bytes()
        query = {"activate": file == "digits"}
        served.client.put(f"/v1/tasks/{name}/adapter", content=content, params=query).raise_for_status()
    yield Mine(name, served.client)
    served.client.delete(f"/v1/tasks/{name}").raise_for_status()


def events(page: Browser) -> list[str]:
    found: list[str] = page.run("[...document.querySelectorAll('tr[data-what]')].map(r => r.cells[1].innerText)")
    return found


def fill(page: Browser, label: str, value: object) -> None:
    page.until(f"document.querySelector('[aria-label=\"{label}\"]') !== null")
    page.run(f"document.querySelector('[aria-label=\"{label}\"]').value = {str(value)!r}")


def test_weights_are_set_changed_and_cleared(page: Browser, mine: Mine) -> None:
    go(page, f"tasks/{mine.name}", ".traffic")
    fill(page, "Weight of v1", 60)
    fill(page, "Weight of that version", 40)
    page.click(".share button")
    page.until(has(".traffic tr[data-version='2']", "40.0 %"))
    assert mine.traffic["weights"] == {"1": 60, "2": 40}
    page.until(has("#said", "The traffic is shared"))
    mine.ask(6)
    cells = "[...document.querySelectorAll('.traffic tbody tr')].map(r => Number(r.cells[3].innerText))"
    page.until(f"{cells}.reduce((sum, one) => sum + one) === 6")
    fill(page, "Weight of v2", 60)
    page.click(".share button")
    page.until(has(".traffic tr[data-version='2']", "50.0 %"))
    page.click(".traffic .all")
    page.until("document.querySelector('.traffic .all') === null")
    assert mine.traffic["since"] is None
    assert events(page)[:4] == [
        "traffic: all to the active version", "traffic: v1 60 : v2 60", "traffic: v1 60 : v2 40", "v2 staged",
    ]  # fmt: skip


def test_a_shadow_is_compared_and_where_it_differs_is_listed(page: Browser, mine: Mine) -> None:
    go(page, f"tasks/{mine.name}", ".traffic")
    fill(page, "Shadow", 2)
    fill(page, "Percent that the shadow sees", 100)
    page.click(".shade button")
    page.until(has(".traffic tr[data-version='2']", "shadow"))
    mine.ask(8)
    page.until(has(".agreement h3", "v2 agrees with v1 on"))
    rows = "document.querySelectorAll('.agreement tbody tr').length"
    bars = "[...document.querySelectorAll('.agreement .bars .value')].map(v => v.innerText.split(' of '))"
    page.until(f"{rows} === {bars}.reduce((sum, [agreed, all]) => sum + all - agreed, 0) && {rows} > 0")
    page.click(".agreement summary")
    page.until(has(".agreement details table", "sha256 of the input"))
    fill(page, "Shadow", "")
    page.click(".shade button")
    page.until("document.querySelector('.agreement') === null")
    assert events(page)[:2] == ["v2 is no shadow any more", "v2 sees 100 % as shadow"]


def test_a_version_that_answers_wrong_is_rolled_back_before_ones_eyes(page: Browser, mine: Mine) -> None:
    rule = {"weights": {"1": 1, "2": 1}, "guard": WORST}
    mine.client.put(f"/v1/tasks/{mine.name}/traffic", json=rule).raise_for_status()
    go(page, f"tasks/{mine.name}", ".traffic .all")
    number = 0
    while mine.traffic["rolled_back"] is None:
        mine.ask(5, number := number + 5)
        assert number < 500
    page.until(has(".traffic .failure", "v2 was rolled back"))
    page.until(has("tr[data-what=rolled_back]", "guard"))
    assert mine.traffic["rolled_back"]["why"] in page.run(text("tr[data-what=rolled_back]")), "the reason"
    assert page.run("document.querySelector('tr[data-what]').dataset.what") == "rolled_back", "newest first"
    page.until("document.querySelector('.agreement') !== null")


def test_a_deleted_task_has_a_history_and_the_footer_counts_what_is_there(page: Browser, served: House) -> None:
    count = text(".foot span:last-child")
    page.until(has(".foot", "4 tasks"))
    content = (DEMO / "tasks" / "digits.safetensors").read_bytes()
    served.client.put("/v1/tasks/brief/adapter", content=content).raise_for_status()
    for _ in range(12):
        served.client.post("/v2/repository/models/brief/unload").raise_for_status()
        served.client.post("/v1/tasks/brief/versions/1/activate").raise_for_status()
    go(page, "tasks/brief", ".danger")
    page.until(f"{count} === '5 tasks'")
    assert len(events(page)) == 12
    page.run("[...document.querySelectorAll('button')].find(b => b.innerText === 'Older').click()")
    page.until("document.querySelectorAll('tr[data-what]').length === 24")
    page.click(".flush .danger")
    page.click(".flush .danger")
    page.until("document.querySelector('main').dataset.view === 'tasks'")
    page.until(f"{count} === '4 tasks'")
    go(page, "tasks/brief", "tr[data-what]")
    assert events(page)[0] == "deleted, with 1 version"
    assert "It is deleted." in page.run(text("main"))
    assert all("Failed to load" in line for line in page.console), "the task itself is not there"
    page.console.clear()
