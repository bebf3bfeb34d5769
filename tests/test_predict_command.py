"""`adaptserve predict` on folders and patterns: rows in order, bad files among them, and going on after any end."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from adaptserve_client import BatchOutcome, Classification, ScoredLabel, calls
from adaptserve_client.errors import problem_of
from service.cli import folder
from service.cli.main import app
from service.cli.rows import CsvRows, JsonRows, Rows, Run, WrongFiles, rows_in
from tests.houses import House, Kit, house, photograph, until

COUNT, BAD = 30, 7


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"))) as made:
        for number in (1, 2):
            made.put("pets", kit.file(number)[0]).raise_for_status()
        made.put("idle", kit.file(3)[0], activate="false").raise_for_status()
        yield made


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """30 pictures in folders, one of them bad, and what is none."""
    monkeypatch.chdir(tmp_path)
    for n in range(COUNT):
        path = tmp_path / "photos" / ("a" if n < 10 else "b/c") / f"{n:02}.{'JPG' if n % 2 else 'jpeg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no picture" if n == BAD else photograph(n))
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    (tmp_path / "photos" / ".hidden.jpg").write_bytes(photograph())
    return Path("photos")


def run(home: House, *more: str | Path, task: str = "pets") -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, more), "--task", task, "--url", home.url])


def rows(path: str = "labels.csv") -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_priority_goes_along(home: House, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    real = calls.asked
    monkeypatch.setattr(calls, "asked", lambda options: said.append(options.get("priority")) or real(options))
    for what in (photos / "a/00.jpeg", photos / "a"):
        for more in ((), ("--priority", "9")):
            run(home, what, *more)
    assert said == [None, 9, None, 9]
    assert run(home, photos, "--priority", "10").exit_code == 2


def test_a_folder_with_a_bad_file(home: House, photos: Path) -> None:
    done = run(home, photos, "--out", "labels.csv")
    assert done.exit_code == 1, done.output
    assert f"{COUNT - 1} labelled, 1 failed" in done.stdout
    assert "by pets version 2, rows in labels.csv" in done.stdout
    assert "1 file in folders is no picture or clip by its name" in done.stderr
    found = rows()
    assert [row["file"] for row in found] == sorted(map(str, photos.rglob("[!.]*.[jJ]*")))
    for row in found:
        assert (row["task"], row["version"]) == ("pets", "2")
        if row["file"] == f"photos/a/{BAD:02}.JPG":
            assert row["label"] == row["score"] == ""
            assert "this is no picture" in row["error"]
            assert row["error"] in " ".join(done.stderr.split())
        else:
            (best,) = home.ask("pets", Path(row["file"]).read_bytes(), top_k=1).json()["predictions"]
            assert (row["label"], row["error"]) == (best["label"], "")
            assert float(row["score"]) == pytest.approx(best["score"], abs=1e-6)


def test_several_labels_of_a_named_version_as_json(home: House, photos: Path) -> None:
    done = run(home, photos / "a", "--out", "labels.jsonl", "--top-k", "2", "--version", "1")
    assert done.exit_code == 1
    found = [json.loads(line) for line in Path("labels.jsonl").read_text().splitlines()]
    assert [row["file"] for row in found] == [str(path) for path in sorted((photos / "a").iterdir())]
    for n, row in enumerate(found):
        assert row["version"] == 1
        if n == BAD:
            assert (row["problem"]["status"], "predictions" in row) == (415, False)
        else:
            assert len(row["predictions"]) == 2
            assert row["digest"]


def test_several_labels_as_columns(home: House, photos: Path) -> None:
    run(home, photos / "a", "--out", "labels.csv", "--top-k", "99")
    labels = home.client.get("/v1/tasks/pets").json()["labels"]
    for n, row in enumerate(rows()):
        told = {row["label" if place == 1 else f"label_{place}"] for place in range(1, len(labels) + 1)}
        assert told == ({""} if n == BAD else set(labels))


def test_patterns_and_files_each_once_to_stdout(home: House, photos: Path) -> None:
    (photos / "[1].jpg").write_bytes(photograph(99))
    done = run(home, "photos/**/1*.JPG", photos / "[1].jpg", photos / "a" / "00.jpeg", photos / "b")
    assert done.exit_code == 0, done.output
    found = [row["file"] for row in csv.DictReader(done.stdout.splitlines())]
    odd = [f"photos/b/c/{n}.JPG" for n in range(11, 20, 2)]
    rest = [str(path) for path in sorted((photos / "b" / "c").iterdir()) if str(path) not in odd]
    assert found == [*odd, "photos/[1].jpg", "photos/a/00.jpeg", *rest]
    assert "22 labelled, 0 failed" in done.stderr


def test_a_named_file_is_asked_whatever_its_name(home: House, photos: Path) -> None:
    (photos / "picture").write_bytes(photograph())
    assert run(home, photos / "picture", photos / "none.jpg", "--out", "o.csv").exit_code == 1
    assert [bool(row["label"]) for row in rows("o.csv")] == [True, False]
    assert rows("o.csv")[1]["error"] == "no such file or directory"
    assert run(home, photos / "picture", "--out", "one.csv").exit_code == 0
    assert len(rows("one.csv")) == 1


@pytest.mark.parametrize(
    ("more", "task", "code", "told"),
    [
        (["photos/a/*.png"], "pets", 1, "nothing matches photos/a/*.png"),
        (["photos/empty"], "pets", 1, "there is no picture or clip in photos/empty"),
        (["photos"], "none", 1, "there is no task 'none'"),
        (["photos"], "idle", 1, "no version of 'idle' is active"),
        (["photos", "--version", "9"], "pets", 1, "9"),
        (["photos", "--resume"], "pets", 2, "name it by --out"),
        (["photos", "--deadline", "3"], "pets", 2, "--deadline is for one file"),
        (["photos", "--out", "there.csv"], "pets", 1, "there.csv is there already; go on with it by --resume"),
        (["photos", "--out", "there.csv", "--resume"], "pets", 1, "there.csv begins with 'my own notes'"),
        (["photos", "--out", "part.csv", "--resume"], "pets", 1, "part.csv holds no rows of this command"),
        (["photos", "--out", "no/such/folder.csv"], "pets", 1, "no such file or directory: no/such/folder.csv"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    home: House, photos: Path, more: list[str], task: str, code: int, told: str
) -> None:
    (photos / "empty").mkdir()
    kept = {Path("there.csv"): "my own notes\nof value", Path("part.csv"): "of value"}
    for path, text in kept.items():
        path.write_text(text)
    done = run(home, *more, task=task)
    assert (done.exit_code, len(done.stderr.splitlines())) == (code, 1), done.output
    assert told in done.stderr
    assert {path: path.read_text() for path in kept} == kept


def test_no_server_says_how_to_get_one(photos: Path) -> None:
    done = CliRunner().invoke(app, ["predict", str(photos), "--task", "pets", "--url", "http://127.0.0.1:9"])
    assert done.exit_code == 1
    assert "is `adaptserve serve` running?" in done.stderr


@pytest.mark.parametrize("out", ["labels.csv", "labels.jsonl"])
def test_going_on_after_an_interruption_and_a_kill(
    home: House, photos: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """Ctrl-C after 12 rows; then half a row, as a kill leaves it; the end is as if nothing had been."""
    run(home, photos, "--out", f"whole-{out}")
    write, written = Rows.write, list[BatchOutcome]()

    def until_interrupted(self: Rows, outcome: BatchOutcome) -> None:
        if len(written) == 12:
            raise KeyboardInterrupt
        written.append(outcome)
        write(self, outcome)

    with monkeypatch.context() as patched:
        patched.setattr(Rows, "write", until_interrupted)
        stopped = run(home, photos, "--out", out)
    assert stopped.exit_code == 130
    assert f"stopped: interrupted; 18 files have no row in {out}, go on with --resume" in stopped.stderr
    assert "11 labelled, 1 failed" in stopped.stdout
    path = Path(out)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 12 + out.endswith("csv")
    path.write_bytes(b"".join(lines)[:-15])
    before = path.read_bytes()
    done = run(home, photos, "--out", out, "--resume")
    assert done.exit_code == 0, done.output
    assert "19 labelled, 0 failed, 11 were there before" in done.stdout
    assert path.read_bytes().startswith(b"".join(lines[:-1]))
    assert before.startswith(b"".join(lines[:-1]))
    assert [line[:30] for line in path.read_bytes().splitlines()] == [
        line[:30] for line in Path(f"whole-{out}").read_bytes().splitlines()
    ]
    again = run(home, photos, "--out", out, "--resume")
    assert "0 labelled, 0 failed, 30 were there before" in again.stdout


def test_rows_of_another_version_task_or_folder_are_not_gone_on_with(home: House, photos: Path) -> None:
    run(home, photos / "a", "--out", "labels.csv", "--version", "1")
    before = Path("labels.csv").read_bytes()
    wrong = run(home, photos, "--out", "labels.csv", "--resume")
    assert wrong.exit_code == 1
    assert "row 2 of labels.csv is of pets version 1, and pets version 2 would go on with it; add --version 1" in (
        wrong.stderr
    )
    wrong = run(home, photos, "--out", "labels.csv", "--resume", "--version", "1", task="idle")
    assert "add --task pets" in wrong.stderr
    wrong = run(home, photos, "--out", "labels.csv", "--resume", "--version", "1", "--top-k", "2")
    assert "give the same --top-k" in wrong.stderr
    wrong = run(home, photos / "b", "--out", "labels.csv", "--resume", "--version", "1")
    assert "has rows of other files alone" in wrong.stderr
    assert Path("labels.csv").read_bytes() == before
    assert run(home, photos, "--out", "labels.csv", "--resume", "--version", "1").exit_code == 0
    assert len(rows()) == COUNT


def test_the_version_of_the_beginning_answers_for_all(
    home: House, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Rows.write

    def activating(self: Rows, outcome: BatchOutcome) -> None:
        home.client.post("/v1/tasks/pets/versions/1/activate").raise_for_status()
        write(self, outcome)

    monkeypatch.setattr(Rows, "write", activating)
    monkeypatch.setattr("adaptserve_client.client.MAX_ITEMS", 4)
    try:
        run(home, photos, "--out", "labels.csv")
    finally:
        home.client.post("/v1/tasks/pets/versions/2/activate").raise_for_status()
    assert {row["version"] for row in rows()} == {"2"}


def test_two_at_once_do_not_mix_their_rows(home: House, photos: Path) -> None:
    form = CsvRows(Run("pets", 2, 1))
    with rows_in(Path("labels.csv"), form, Run("pets", 2, 1), resume=False):
        done = run(home, photos, "--out", "labels.csv", "--resume")
    assert done.exit_code == 1
    assert "another command is writing to labels.csv" in done.stderr


@pytest.mark.torture
def test_a_thousand_pictures_killed_on_the_way(home: House, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real kill leaves whole rows; and a run that nothing ends is about as fast as the server's own batch."""
    for n in range(1000 - COUNT):
        (photos / "b" / f"{n:03}.jpg").write_bytes(photograph(n, size=(400, 300)))
    command = [sys.executable, "-m", "service.cli", "predict", str(photos), "--task", "pets", "--url", home.url]
    process = subprocess.Popen([*command, "--out", "labels.csv"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    path = Path("labels.csv")
    try:
        assert until(lambda: path.exists() and path.read_bytes().count(b"\n") > 50)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.read_bytes().count(b"\n") < 1000
    assert run(home, photos, "--out", "labels.csv", "--resume").exit_code in (0, 1)
    found = [row["file"] for row in rows()]
    assert found == sorted(map(str, photos.rglob("[!.]*.[jJ]*")))
    assert [row["file"] for row in rows() if row["error"]] == [f"photos/a/{BAD:02}.JPG"]
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in found:
            archive.add(name)
    begun = time.monotonic()
    answer = home.client.post("/v1/tasks/pets/batch", content=tar.getvalue(), params={"top_k": 1}, timeout=300)
    own = time.monotonic() - begun
    assert len(answer.text.splitlines()) == 1001
    begun = time.monotonic()
    assert run(home, photos, "--out", "again.csv").exit_code == 1
    ours = time.monotonic() - begun
    with capsys.disabled():
        print(f"1000 pictures: one batch call {1000 / own:.0f} a second, adaptserve predict {1000 / ours:.0f}")
    assert ours < 1.3 * own  # the machine may be shared; docs/CLIENT.md has the figures


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])) | st.binary().map(
    lambda raw: os.fsdecode(raw.replace(b"\0", b""))
)
ANSWER = {"task": "t", "version": 3, "digest": "d", "modality": "image", "predictions": []}


def outcome(name: str, label: str | None) -> BatchOutcome:
    if label is None:
        return BatchOutcome(0, name, error=problem_of({"status": 415, "title": "T", "detail": f'no "{name[:3]}"\n'}))
    labels = (ScoredLabel(label, 0, 0.5),)
    return BatchOutcome(0, name, Classification("t", 3, "d", "image", labels, raw=ANSWER | {"label": label}))


@settings(max_examples=50, deadline=None)
@given(
    named=st.lists(st.tuples(NAMES, st.none() | st.text(st.characters(exclude_categories=["Cs"]))), min_size=1),
    cut=st.floats(0, 1),
    as_json=st.booleans(),
)
def test_any_cut_of_any_rows_is_gone_on_with(named: Any, cut: float, as_json: bool, tmp_path_factory: Any) -> None:
    """Whatever the names: what is left after a cut at any byte, gone on with, ends as what was never cut."""
    form = (JsonRows if as_json else CsvRows)(run := Run("t", 3, 1))
    named = list(dict(named).items())
    path = tmp_path_factory.mktemp("cut") / "rows"
    with rows_in(path, form, run, resume=False) as first:
        for name, label in named:
            first.write(outcome(name, label))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    with rows_in(path, form, run, resume=True) as second:
        assert second.there == {name for name, _ in named[: len(second.there)]}
        for name, label in named[len(second.there) :]:
            second.write(outcome(name, label))
    assert path.read_bytes() == whole
    with pytest.raises(WrongFiles), rows_in(path, form, Run("t", 4, 1), resume=True):
        pass


def test_suffixes_are_those_of_what_is_read() -> None:
    from PIL import Image

    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items()
             if kind in {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"}}  # fmt: skip
    assert known <= folder.PICTURES | {".mpo"}
    assert not folder.PICTURES & folder.CLIPS
