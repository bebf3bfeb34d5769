"""The page in a real browser: what a person does on it, against a real server, and what it looks like to the rest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.keys import create, dump
from service.store.demo import DEMO
from tests.browser import CHROMIUM, Browser
from tests.houses import Kit, Process, client_of, house, photograph

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)")

AXE = Path(os.environ.get("AXE_CORE", ""))
"""axe-core's axe.min.js: `npm install --prefix DIR axe-core`, and AXE_CORE=DIR/node_modules/axe-core/axe.min.js."""
REFUSED = "Failed to load resource"
"""What Chromium writes of an answer that the test wanted to be a refusal."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A whole server on the demo, as `make serve` starts it."""
    folder = tmp_path_factory.mktemp("served")
    with Process(["--data-dir", str(folder / "data")], folder / "log") as process:
        yield process


@pytest.fixture(scope="module")
def browser(served: Process) -> Iterator[Browser]:
    with Browser() as opened:
        opened.look(1280, 900)
        yield opened


@pytest.fixture
def page(served: Process, browser: Browser) -> Iterator[Browser]:
    """The page, newly opened; afterwards its console is empty and it has asked nobody else."""
    with shown(browser, served.url) as opened:
        yield opened


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


def test_a_good_adapter_goes_live_is_compared_and_rolled_back(page: Browser, served: Process, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("view", ["try", "teach", "teach/new", "tasks", "tasks/digits", "upload", "watch"])
def test_nothing_is_wider_than_a_phone(page: Browser, view: str) -> None:
    page.look(360, 740)
    go(page, view, "main h1")
    page.until("document.querySelector('main').childElementCount > 0")
    if view == "try":
        sample(page, "digits-9.png")
        page.until(has("[data-task=digits] .verdict", "9"))
    assert page.run("document.documentElement.scrollWidth") <= 360
    page.look(1280, 900)


VIEWS = ["try", "teach", "teach/new", "tasks", "tasks/digits", "upload", "watch", "keys"]


@pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core (AXE_CORE=.../axe.min.js, from npm)")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(page: Browser, dark: bool) -> None:
    page.look(1280, 900, dark=dark)
    page.run(AXE.read_text() + "; 0")
    found = {}
    for view in VIEWS:
        go(page, view, "main h1")
        if view == "try":
            sample(page, "moving-digit-left.mp4")
            page.until(has("[data-task=moving-digit] .verdict", "left"))
            page.click(".wrong")
        told = page.run("axe.run(document, {resultTypes: ['violations']})"
                        ".then(r => r.violations.filter(v => ['serious', 'critical'].includes(v.impact))"
                        ".map(v => [v.id, v.nodes.map(n => n.html.slice(0, 200))]))")  # fmt: skip
        if told:
            found[view] = told
    page.look(1280, 900)
    assert found == {}


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


def test_a_task_is_taught_from_boxes_of_pictures(served: Process, tmp_path: Path) -> None:
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


def test_a_wrong_answer_becomes_an_example(page: Browser, served: Process) -> None:
    sample(page, "digits-9.png")
    page.click("[data-task=digits] .wrong")
    page.until("document.querySelectorAll('[data-task=digits] form .chips button').length === 9")
    page.run(
        "[...document.querySelectorAll('[data-task=digits] form .chips button')].find(b => b.innerText === '5').click()"
    )
    page.until(has("[data-task=digits]", "Kept as an example of “5”"))
    assert served.client.get("/v1/tasks/digits/examples").json()["counts"] == {"5": 1}
    served.client.delete("/v1/tasks/digits/examples").raise_for_status()


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


def test_ten_thousand_tasks_open_at_once_and_scroll_to_the_end(served: Process) -> None:
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
