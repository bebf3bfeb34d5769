"""Driving the page in a browser: what several tests of it do, as a person does it."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.store.demo import DEMO
from tests.browser import Browser
from tests.houses import client_of

REFUSED = "Failed to load resource"
"""What Chromium writes of an answer that the test wanted to be a refusal."""
AXE = Path(os.environ.get("AXE_CORE") or Path(sys.prefix, "axe/node_modules/axe-core/axe.min.js"))
"""axe-core's axe.min.js, which `make test` installs there where npm is."""


@contextmanager
def shown(browser: Browser, url: str, view: str = "try") -> Iterator[Browser]:
    browser.console.clear()
    browser.asked.clear()
    browser.open("about:blank#")
    browser.open(f"{url}/#/{view}")
    browser.until("document.querySelector('main h1') !== null")
    yield browser
    assert browser.console == []
    foreign = [asked for asked in browser.asked if not asked.startswith((url, "blob:", "data:", "about:"))]
    assert foreign == []


def go(page: Browser, view: str, there: str) -> None:
    page.run(f"void (location.hash = '#/{view}')")
    page.until(f"location.hash === '#/{view}' && document.querySelector('main').dataset.view === '{view}'")
    page.until(f"document.querySelector({there!r}) !== null")


def text(selector: str) -> str:
    return f"(document.querySelector({json.dumps(selector)})?.innerText ?? '')"


def has(selector: str, words: str) -> str:
    return f"{text(selector)}.includes({json.dumps(words)})"


def sample(page: Browser, name: str) -> None:
    page.click(f"[data-name={json.dumps(name)}]")


@contextmanager
def load(url: str, clients: int = 2) -> Iterator[None]:
    """Pictures to one task and to several, again and again."""
    over = threading.Event()
    body = (DEMO / "samples" / "digits-9.png").read_bytes()
    calls = [
        "tasks/digits/predict",
        "predict?task=digits&task=digit-collage&task=animal-or-vehicle",
        "tasks/no/predict",
    ]

    def ask() -> None:
        with client_of(url) as client:
            while not over.is_set():
                for call in calls:
                    client.post(f"/v1/{call}", content=body)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def scans(place: Path, labels: dict[int, str], each: int) -> dict[str, Path]:
    """Handwritten digits of scikit-learn as PNG files, a folder for each label."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    folders = {}
    for number, label in labels.items():
        folders[label] = place / label
        folders[label].mkdir()
        for i, scan in enumerate(digits.images[digits.target == number][:each]):
            picture = Image.fromarray((scan * 255 / 16).astype(np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
            picture.save(folders[label] / f"{i}.png")
    return folders


def fill(page: Browser, folders: dict[str, Path], each: int) -> None:
    """Put so many files of each folder into a box of its label."""
    for number, (label, folder) in enumerate(folders.items(), 1):
        if number > 2:
            page.run("[...document.querySelectorAll('.teach button')].find(b => b.innerText === 'Add a label').click()")
        box = f".box:nth-child({number})"
        page.type(f"{box} input[type=text]", label)
        page.choose(f"{box} input[type=file]", *(str(folder / f"{i}.png") for i in range(each)))
        page.until(f"document.querySelectorAll('{box} button.thumb img[src]').length >= 12")
