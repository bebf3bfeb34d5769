"""The page in a real browser: a task that is taught, from files and from the camera."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CHROMIUM, Browser
from tests.houses import House, photograph
from tests.page_driving import go, has, sample, shown

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)")


def job_of(task: str, step: int) -> dict[str, Any]:
    """A training as /v1/jobs tells of it, at its start, with a head published, and over."""
    made = {
        "version": 1, "digest": "0" * 64, "method": "linear", "accuracy": 0.9, "balanced_accuracy": 0.9, "held_out": 12,
        "active": True, "verdict": "the first", "report": "/v1/jobs/j/reports/1",
    }  # fmt: skip
    curve = [round(0.5 + 0.1 * i, 2) for i in range(step)]
    return {
        "id": "j", "task": task, "method": "auto", "state": "done" if step > 3 else "running",
        "stage": "features" if step < 2 else "adapter", "progress": min(1.0, step / 4), "seconds_left": 4.0 - step,
        "epoch": step, "epochs": 4, "curves": {"train_loss": curve, "held_out_loss": curve, "accuracy": curve},
        "published": [made] if step >= 2 else [], "verdict": "The head stays." if step > 3 else None, "problem": None,
        "examples": {"cat": 2, "dog": 2}, "created": "2026-11-26T06:00:00Z", "started": "2026-11-26T06:00:01Z",
        "ended": None,
    }  # fmt: skip


REPORT = """<!doctype html><title>x</title><style>body { color: red }</style><h1>90% on 12</h1>
<script>window.stolen = 1</script><img src="https://elsewhere.example/x.png" onerror="window.stolen = 2">
<a href="javascript:0">b</a><table><tr><td onclick="window.stolen = 3" style="background:red">cell</td></tr></table>
<svg viewBox="0 0 9 9"><circle r="3"/></svg>"""


def test_a_task_is_taught_from_boxes_of_pictures(served: House, tmp_path: Path) -> None:
    """Examples are the server's; the training is a made-up one, so that each of its states is seen."""
    with ExitStack() as stack:
        browser = stack.enter_context(Browser())
        browser.look(1280, 900)
        page = stack.enter_context(shown(browser, served.url))
        steps = iter(range(1, 100))
        page.fake("POST", "/v1/tasks/animals/training", lambda _: job_of("animals", 0))
        page.fake("GET", "/v1/jobs/j/reports/1", lambda _: REPORT)
        page.fake("GET", "/v1/jobs/j", lambda _: job_of("animals", next(steps)))
        page.fake("GET", "/v1/jobs?", lambda _: {"jobs": [], "count": 0, "next": None})
        go(page, "teach", "#task-name")
        page.type("#task-name", "animals")
        page.click("form .primary")
        page.until("document.querySelectorAll('.box').length === 2")
        assert page.run("document.querySelector('.large').disabled"), "nothing to learn from yet"
        for number, label in enumerate(("cat", "dog <b>"), 1):
            box = f".box:nth-child({number})"
            page.type(f"{box} input[type=text]", label)
            files = [tmp_path / f"{number}-{one}.jpg" for one in range(2)]
            for seed, file in enumerate(files):
                file.write_bytes(photograph(10 * number + seed))
            page.choose(f"{box} input[type=file]", *map(str, files))
            page.until(f"document.querySelectorAll('{box} button.thumb img[src]').length === 2")
        assert served.client.get("/v1/tasks/animals/examples").json()["counts"] == {"cat": 2, "dog <b>": 2}
        page.until("!document.querySelector('.large').disabled")
        page.click(".box:nth-child(1) button.thumb")
        page.until("document.querySelector('.large').disabled")
        page.choose(".box:nth-child(1) input[type=file]", str(tmp_path / "1-0.jpg"), str(tmp_path / "1-1.jpg"))
        page.until("!document.querySelector('.large').disabled")
        page.click(".large")
        page.until(has(".made", "90.0 %"))
        page.until(has(".verdict-line", "The head stays."))
        assert page.run("document.querySelector('.curve.main').getAttribute('d').includes('L')")
        assert page.run("document.querySelector('.large').innerText") == "Teach again"
        page.click(".made summary")
        page.until(has(".report td", "cell"))
        assert page.run("document.querySelectorAll('.report svg circle').length") == 1
        assert page.run("window.stolen ?? null") is None
        assert page.run("document.querySelector('.report :is(script, style, [onclick], [href])')") is None
        page.click(".box:nth-child(2) .danger")
        page.click(".box:nth-child(2) .danger")
        page.until("document.querySelectorAll('.box').length === 1")
        assert served.client.get("/v1/tasks/animals/examples").json()["counts"] == {"cat": 2}


def test_a_wrong_answer_becomes_an_example(page: Browser, served: House) -> None:
    sample(page, "digits-9.png")
    page.click("[data-task=digits] .wrong")
    page.until("document.querySelectorAll('[data-task=digits] form .chips button').length === 9")
    page.run(
        "[...document.querySelectorAll('[data-task=digits] form .chips button')].find(b => b.innerText === '5').click()"
    )
    page.until(has("[data-task=digits]", "Kept as an example of “5”"))
    assert served.client.get("/v1/tasks/digits/examples").json()["counts"] == {"5": 1}
    served.client.delete("/v1/tasks/digits/examples").raise_for_status()


def test_the_camera_gives_a_picture_to_try(page: Browser) -> None:
    """Chromium's made-up camera; the button opens it, takes the picture, and lets it go."""
    shoot = "document.querySelector('.stage .line button:last-child')"
    page.until(f"{shoot}?.innerText === 'Camera'")
    page.run(f"{shoot}.click()")
    page.until("document.querySelector('.drop video')?.videoWidth > 0")
    page.until(f"{shoot}.innerText === 'Take the picture'")
    page.run(f"{shoot}.click()")
    page.until("document.querySelectorAll('.answer:not(.waiting)').length === 3")
    assert page.run("document.querySelector('.drop img').naturalWidth") > 100
    assert page.run("document.querySelector('.drop video')") is None
    assert page.run(f"{shoot}.innerText") == "Camera"


@pytest.mark.parametrize("how", ["pointer", "key"])
def test_the_button_that_is_held_fills_a_box_from_the_camera(page: Browser, served: House, how: str) -> None:
    down, up = {
        "pointer": ("new PointerEvent('pointerdown')", "new PointerEvent('pointerup')"),
        "key": ("new KeyboardEvent('keydown', { key: ' ' })", "new KeyboardEvent('keyup', { key: ' ' })"),
    }[how]
    hold = "document.querySelector('.box .hold')"
    go(page, f"teach/held-{how}", ".box .hold")
    page.run(f"{hold}.dispatchEvent({down})")
    page.until(has(".box", "Name the label first"))
    page.type(".box input[type=text]", "green")
    page.run(f"{hold}.dispatchEvent({down})")
    page.until(f"parseInt({hold}.innerText) >= 4")
    assert page.run("document.querySelector('.box .live video').videoWidth") > 0
    page.run(f"{hold}.dispatchEvent({up})")
    thumbs = "[...document.querySelectorAll('.box button.thumb img')]"
    page.until(f"{thumbs}.length >= 3 && {thumbs}.every(image => image.naturalWidth > 0)")
    path = f"/v1/tasks/held-{how}/examples"
    shots = served.client.get(path).json()["counts"]["green"]
    assert page.run("Number(document.querySelector('.box .soft').innerText)") == shots >= 3
    assert page.run("document.querySelector('.box .live').hidden")
    served.client.delete(path).raise_for_status()


def test_a_task_looks_through_the_camera_until_it_is_told_to_stop(page: Browser) -> None:
    go(page, "teach/digits", ".teach > :last-child .drop")
    live = "[...document.querySelectorAll('.teach button')].find(b => b.innerText.includes('camera'))"
    page.until(f"{live} && !{live}.disabled")
    page.run(f"{live}.click()")
    page.until("document.querySelector('.teach .answer .verdict') !== null")
    page.run("void (window.first = document.querySelector('.teach .answer'))")
    page.until("document.querySelector('.teach .answer') !== window.first")
    page.run(f"{live}.click()")
    page.until(f"{live}.innerText === 'Try the camera'")
    asked = len(page.asked)
    page.run("new Promise(done => setTimeout(done, 600))")
    assert len(page.asked) == asked, "it has stopped asking"
