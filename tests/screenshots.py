"""Takes the pictures of docs/PAGE.md: `python -m tests.screenshots`, in light and dark, wide and on a phone.

It starts a server on the demo in a scratch folder, does what a person would do, and writes into docs/page/.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.store.demo import DEMO
from tests.browser import Browser
from tests.houses import Process, photograph
from tests.page_driving import fill, go, has, load, sample, scans

OUT = Path(__file__).parent.parent / "docs" / "page"
WIDE, PHONE = (1280, 860), (390, 844)
LABELS = {3: "three", 5: "five", 8: "eight"}
EACH = 20
CHARTS_S = 40.0
"""Of load, until the charts show something."""
TAUGHT_S = 900.0
"""Until an adapter has its first epochs, however busy the machine."""


def main() -> None:
    """Write all pictures."""
    argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__).parse_args()
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as (served, page):
        prepare(served, Path(folder))
        for name, size, dark in (("try-light", WIDE, False), ("try-phone", PHONE, False)):
            page.look(*size, dark=dark)
            go(page, "try", ".samples")
            sample(page, "animal-or-vehicle-animal.png")
            page.until(has("[data-task=animal-or-vehicle] .verdict", "animal"))
            keep(page, name)
        page.look(*WIDE, dark=True)
        sample(page, "moving-digit-left.mp4")
        page.until("document.querySelector('.strip.drawn') !== null")
        keep(page, "clip-dark")
        page.look(*WIDE)
        compare(page)
        upload(page, Path(folder))
        go(page, "tasks/my-digits", ".rollback")
        keep(page, "task-light")
        change(served, page)
        page.look(*PHONE, dark=True)
        go(page, "tasks", ".item .name a")
        keep(page, "tasks-phone-dark")
        watch(page, served.url)
        teach(page, Path(folder))


@contextmanager
def running(folder: Path) -> Iterator[tuple[Process, Browser]]:
    with Process(["--data-dir", str(folder / "data")], folder / "log") as served, Browser() as page:
        page.look(*WIDE)
        page.open(served.url)
        page.until("document.querySelector('main h1') !== null")
        yield served, page


def keep(page: Browser, name: str) -> None:
    page.run("document.activeElement?.blur()")
    page.run("new Promise(done => setTimeout(done, 400))")  # bars grow for a moment
    (OUT / f"{name}.webp").write_bytes(page.picture())
    print(f"{name}.webp {(OUT / f'{name}.webp').stat().st_size / 1000:.0f} kB")


def prepare(served: Process, folder: Path) -> None:
    """A task with two versions, and a file that was cut short."""
    for file in ("digit-collage", "digits"):
        content = (DEMO / "tasks" / f"{file}.safetensors").read_bytes()
        served.client.put("/v1/tasks/my-digits/adapter", content=content).raise_for_status()
    (folder / "cut.safetensors").write_bytes((DEMO / "tasks" / "digits.safetensors").read_bytes()[:100_000])


def compare(page: Browser) -> None:
    go(page, "try/my-digits", ".samples")
    sample(page, "digits-9.png")
    page.until(has("[data-task=my-digits] h3", "v2"))
    page.click("[data-task=my-digits] .compare")
    page.until("document.querySelector('.diff') !== null")
    page.run("document.querySelector('.split').scrollIntoView()")
    keep(page, "compare-light")


def change(served: Process, page: Browser) -> None:
    """A task that has a canary and a shadow, and loses the canary."""
    path = "/v1/tasks/sorter"
    for file in ("digits", "digit-collage", "animal-or-vehicle"):
        content = (DEMO / "tasks" / f"{file}.safetensors").read_bytes()
        query = {"activate": file == "digits"}
        served.client.put(f"{path}/adapter", content=content, params=query).raise_for_status()
    rule: dict[str, object] = {"weights": {"1": 80, "2": 20}, "guard": None}
    served.client.put(f"{path}/traffic", json=rule).raise_for_status()
    served.client.put(f"{path}/shadow", json={"version": 3, "share": 0.5}).raise_for_status()
    for number in range(40):
        served.client.post(f"{path}/predict", content=photograph(number)).raise_for_status()
    page.look(1280, 1100)
    go(page, "tasks/sorter", ".traffic")
    page.until("document.querySelectorAll('.agreement').length === 2")
    page.run("document.querySelector('.traffic').scrollIntoView()")
    keep(page, "traffic-light")
    rule["guard"] = {"min_agreement": 0.9, "min_compared": 10}
    served.client.put(f"{path}/traffic", json=rule).raise_for_status()
    end = time.monotonic() + CHARTS_S
    while served.client.get(f"{path}/traffic").json()["rolled_back"] is None and time.monotonic() < end:
        served.client.post(f"{path}/predict", content=photograph(time.monotonic_ns() % 10_000)).raise_for_status()
    page.until("document.querySelector('.traffic .failure') !== null")
    page.look(*PHONE, dark=True)
    page.run("document.querySelector('.traffic').scrollIntoView()")
    keep(page, "rolled-back-phone-dark")
    page.look(1280, 700)
    page.run("[...document.querySelectorAll('h2')].find(h => h.innerText === 'History').scrollIntoView()")
    keep(page, "history-light")


def upload(page: Browser, folder: Path) -> None:
    go(page, "upload", ".drop")
    page.choose("input[accept='.safetensors']", str(folder / "cut.safetensors"))
    page.click("form .primary")
    page.until("document.querySelector('.checks .failed') !== null")
    keep(page, "upload-light")


def teach(page: Browser, folder: Path) -> None:
    page.look(1280, 1000)
    go(page, "teach/numerals", ".box")
    fill(page, scans(folder, LABELS, EACH + 1), EACH)
    page.click(".large")
    page.until("document.querySelector('.made') !== null", TAUGHT_S)
    page.until("!document.querySelector('.teach > :last-child .drop').disabled")
    page.choose(".teach > :last-child input[type=file]", str(folder / "five" / f"{EACH}.png"))
    page.until("document.querySelector('.teach .answer') !== null")
    page.until("document.querySelector('.curve.main').getAttribute('d').split('L').length > 2", TAUGHT_S)
    keep(page, "teach-light")
    page.look(*PHONE)
    page.run("document.querySelector('.teach > :nth-child(2)').scrollIntoView()")
    keep(page, "teach-phone")


def watch(page: Browser, url: str) -> None:
    page.look(1280, 1180, dark=True)
    with load(url, clients=8):
        go(page, "watch", ".plots")
        time.sleep(CHARTS_S)
        keep(page, "watch-dark")


if __name__ == "__main__":
    main()
