"""Takes the pictures of docs/PAGE.md: `python -m tests.screenshots`, in light and dark, wide and on a phone.

It starts a server on the demo in a scratch folder, does what a person would do, and writes into docs/page/.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from service.store.demo import DEMO
from tests.browser import Browser
from tests.houses import Process
from tests.test_page_browser import go, has, load, sample

OUT = Path(__file__).parent.parent / "docs" / "page"
WIDE, PHONE = (1280, 860), (390, 844)
LABELS = {3: "three", 5: "five", 8: "eight"}
EACH = 20
CHARTS_S = 40.0
"""Of load, until the charts show something."""


def main() -> None:
    """Write all pictures."""
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
    """A task with two versions, and pictures of three labels."""
    for file in ("digit-collage", "digits"):
        content = (DEMO / "tasks" / f"{file}.safetensors").read_bytes()
        served.client.put("/v1/tasks/my-digits/adapter", content=content).raise_for_status()
    (folder / "cut.safetensors").write_bytes((DEMO / "tasks" / "digits.safetensors").read_bytes()[:100_000])
    digits = load_digits()
    for number, label in LABELS.items():
        (folder / label).mkdir()
        for i, scan in enumerate(digits.images[digits.target == number][: EACH + 1]):
            (folder / label / f"{i}.png").write_bytes(_png(scan))


def _png(scan: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bytes:
    file = io.BytesIO()
    Image.fromarray((scan * 255 / 16).astype(np.uint8)).resize((96, 96), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def compare(page: Browser) -> None:
    go(page, "try/my-digits", ".samples")
    sample(page, "digits-9.png")
    page.until(has("[data-task=my-digits] h3", "v2"))
    page.click("[data-task=my-digits] .compare")
    page.until("document.querySelector('.diff') !== null")
    page.run("document.querySelector('.split').scrollIntoView()")
    keep(page, "compare-light")


def upload(page: Browser, folder: Path) -> None:
    go(page, "upload", ".drop")
    page.choose("input[accept='.safetensors']", str(folder / "cut.safetensors"))
    page.click("form .primary")
    page.until("document.querySelector('.checks .failed') !== null")
    keep(page, "upload-light")


def teach(page: Browser, folder: Path) -> None:
    page.look(1280, 1000)
    go(page, "teach/numerals", ".box")
    for place, label in enumerate(LABELS.values(), 1):
        if place > 2:
            page.run("[...document.querySelectorAll('.teach button')].find(b => b.innerText === 'Add a label').click()")
        box = f".box:nth-child({place})"
        page.type(f"{box} input[type=text]", label)
        page.choose(f"{box} input[type=file]", *(str(folder / label / f"{i}.png") for i in range(EACH)))
        page.until(f"document.querySelectorAll('{box} button.thumb img[src]').length >= 12")
    page.click(".large")
    page.until("document.querySelector('.made') !== null")
    page.until("!document.querySelector('.teach > :last-child .drop').disabled")
    page.choose(".teach > :last-child input[type=file]", str(folder / "five" / f"{EACH}.png"))
    page.until("document.querySelector('.teach .answer') !== null")
    page.until("document.querySelector('.curve.main')?.getAttribute('d').length > 100", 120)
    keep(page, "teach-light")
    page.look(*PHONE)
    page.run("document.querySelector('.teach > :nth-child(2)').scrollIntoView()")
    keep(page, "teach-phone")
    page.until("document.querySelector('.verdict-line') !== null", 600)


def watch(page: Browser, url: str) -> None:
    page.look(1280, 1180, dark=True)
    with load(url, clients=8):
        go(page, "watch", ".plots")
        time.sleep(CHARTS_S)
        keep(page, "watch-dark")


if __name__ == "__main__":
    main()
