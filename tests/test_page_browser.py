"""The page in a real browser, of a server as `make serve` starts it: try, copy, watch, by keyboard, light and dark."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.store.demo import DEMO
from tests.browser import CHROMIUM, Browser
from tests.houses import Process, photograph
from tests.page_driving import REFUSED, fill, go, has, load, sample, scans, text

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A whole server on the demo."""
    folder = tmp_path_factory.mktemp("served")
    with Process(["--data-dir", str(folder / "data")], folder / "log") as process:
        yield process


def test_a_picture_is_answered_by_all_tasks_of_pictures_at_once(page: Browser) -> None:
    sample(page, "digits-9.png")
    page.until(has("[data-task=digits] .verdict", "9"))
    answers = page.run("[...document.querySelectorAll('.answer')].map(a => a.dataset.task)")
    assert answers == ["animal-or-vehicle", "digit-collage", "digits"]
    assert "88 %" in page.run(text("[data-task=digits] .verdict"))
    legend = page.run(text(".stages"))
    assert all(stage in legend for stage in ("decode", "queue", "compute"))
    calls = [asked for asked in page.asked if "/predict" in asked]
    assert len(calls) == 1, "one call, one batch"
    page.click(".chip input[value=digits]")
    page.until("document.querySelectorAll('.answer:not(.waiting)').length === 2")


def test_a_file_of_ones_own_and_a_broken_one(page: Browser, tmp_path: Path) -> None:
    (tmp_path / "own picture's.jpg").write_bytes(photograph())
    page.choose("input[type=file]", str(tmp_path / "own picture's.jpg"))
    page.until("document.querySelectorAll('.answer:not(.waiting)').length === 3")
    (tmp_path / "broken.jpg").write_bytes(photograph()[:300])
    page.choose("input[type=file]", str(tmp_path / "broken.jpg"))
    page.until(has(".failure", "Request"))
    assert page.console, "a refusal is in the console, and nothing else is"
    assert all(REFUSED in line for line in page.console)
    page.console.clear()


def test_a_clip_shows_the_frames_that_were_looked_at(page: Browser) -> None:
    sample(page, "moving-digit-left.mp4")
    page.until(has("[data-task=moving-digit] .verdict", "left"))
    assert page.run("document.querySelectorAll('.strip canvas').length") == 8
    drawn = """[...document.querySelectorAll('.strip canvas')].every(c =>
      c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v, i) => i % 4 < 3 && v > 128))"""
    page.until("document.querySelector('.strip.drawn') !== null")
    assert page.run(drawn)
    assert page.run(text(".strip figcaption")) == "0.00"


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_the_code_that_is_copied_does_what_was_done(
    page: Browser, served: Process, tmp_path: Path, language: str
) -> None:
    name = "it's 9 (own).png"
    (tmp_path / name).write_bytes((DEMO / "samples" / "digits-9.png").read_bytes())
    if language == "curl":
        sample(page, "digits-9.png")
    else:
        page.choose("input[type=file]", str(tmp_path / name))
    page.until(has("[data-task=digits] .verdict", "9"))
    page.run(f"[...document.querySelectorAll('.tabs button')].find(b => b.textContent === {language!r}).click()")
    page.run("navigator.clipboard.writeText = text => { window.copied = text; return Promise.resolve(); }, 0")
    page.click(".copy")
    code = page.until("window.copied")
    file = tmp_path / {"curl": "do.sh", "Python": "do.py", "JavaScript": "do.mjs"}[language]
    file.write_text(code)
    program = {"curl": "bash", "Python": sys.executable, "JavaScript": shutil.which("node") or ""}[language]
    if not program or (language == "curl" and not shutil.which("curl")):
        pytest.skip(f"needs {language}")
    done = subprocess.run([program, str(file)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, code + done.stderr
    if language == "curl":
        answers = json.loads(done.stdout)["results"]
        assert [one["predictions"][0]["label"] for one in answers if one["task"] == "digits"] == ["9"]
    else:
        assert "digits" in done.stdout
        assert "9" in done.stdout


def test_the_charts_move_under_load(page: Browser, served: Process) -> None:
    with load(served.url):
        go(page, "watch", ".plots")
        page.until("document.querySelectorAll('.busy tbody tr').length >= 2")
        moving = "[...document.querySelectorAll('.curve.main')].filter(c => c.getAttribute('d').includes('L'))"
        page.until(f"{moving}.length >= 5")
    assert "rows of" in page.run("document.querySelector('.batch').parentElement.innerText")
    assert page.run("document.querySelectorAll('.batch i[class]').length") >= 1
    assert "digits" in page.run(text(".busy"))


def test_what_the_keyboard_reaches_and_the_screen_reader_hears(page: Browser) -> None:
    page.press("Tab")
    assert page.run("document.activeElement.className") == "skip"
    page.press("Enter")
    assert page.run("document.activeElement.id") == "main"
    page.run("document.querySelector('.samples button').focus()")
    page.press("Enter")
    page.until(has("[data-task=digits] .verdict", "9"))
    page.until(has("#said", "digits: 9"))
    page.run("document.querySelector('.tabs [aria-selected=true]').focus()")
    page.press("ArrowRight")
    assert page.run("document.activeElement.getAttribute('aria-selected')") == "true"
    page.run("document.querySelector('nav a[href=\"#/tasks\"]').focus()")
    page.press("Enter")
    page.until("document.activeElement.tagName === 'H1' && document.activeElement.innerText === 'Tasks'")
    assert page.run("document.title") == "Tasks · AdaptServe"


@pytest.mark.parametrize("name", ["..%2F..%2Flivez", "%", "UPPER", "a%3Fb", "%3Cimg src=x%3E"])
def test_a_link_names_a_task_and_never_another_call(page: Browser, name: str) -> None:
    for view in ("try", "teach", "tasks"):
        page.run(f"void (location.hash = '#/{view}/{name}')")
        page.until(has(".failure", "is no task name"))
        page.run("void (location.hash = '#/upload')")
        page.until("document.querySelector('.drop.short') !== null")
    assert not any("livez" in asked for asked in page.asked)


def test_dark_and_light_by_the_system_and_by_the_switch(page: Browser) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.run(paper)
    page.look(1280, 900, dark=True)
    dark = page.run(paper)
    assert dark != light
    page.click("#theme")
    assert page.run(paper) == light
    page.open(page.run("location.href"))
    page.run("window.before = true; location.reload()")
    page.until("!window.before && document.querySelector('main h1') !== null")
    assert page.run("document.documentElement.dataset.theme") == "light"
    assert page.run(paper) == light, "the choice is kept"
    page.run("localStorage.clear()")
    page.look(1280, 900)


@pytest.mark.torture
def test_sixty_pictures_of_three_labels_become_a_task_that_is_right(page: Browser, tmp_path: Path) -> None:
    """The whole of it, for real: boxes, one press, and an answer about a picture that was in none of them."""
    folders = scans(tmp_path, {3: "three", 5: "five", 8: "eight"}, 21)
    go(page, "teach/numerals", ".box")
    fill(page, folders, 20)
    page.click(".large")
    page.until("document.querySelector('.made') !== null", 600)
    page.until("!document.querySelector('.teach > :last-child .drop').disabled")
    for label, folder in folders.items():
        page.choose(".teach > :last-child input[type=file]", str(folder / "20.png"))
        page.until(has(".teach .answer .verdict", label))
    page.click(".training .danger")
    page.until("document.querySelector('.large').innerText === 'Teach again'")
