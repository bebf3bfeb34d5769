"""`adaptserve evaluate` against a real server: the accuracy of labelled files, and whether a report is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from adapters.training import progress
from adapters.training.data import Example
from service.cli.evaluate import Evaluated, _compare
from service.cli.main import app
from tests.houses import House, Kit, house, photograph, scores_of

COUNT = 6


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"))) as opened:
        opened.put("pets", kit.file(1)[0]).raise_for_status()
        yield opened


@pytest.fixture
def data(home: House, tmp_path: Path) -> Path:
    """Pictures in the folders of what the server says they are, but for the last, and a report that says the same."""
    lines: list[dict[str, Any]] = []
    labels = home.client.get("/v1/tasks/pets").json()["labels"]
    for n in range(COUNT):
        answer = home.ask("pets", photograph(n)).json()
        best = answer["predictions"][0]["label"]
        label = best if n < COUNT - 1 else next(name for name in labels if name != best)
        (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / label / f"{n}.jpg").write_bytes(photograph(n))
        scores = {p["label"]: p["score"] for p in answer["predictions"]}
        lines.append({"path": f"{label}/{n}.jpg", "predicted": best, "correct": label == best, "scores": scores})
        assert len(scores_of(answer)) == len(labels)
    (tmp_path / "set.report").mkdir()
    report = {"held_out": [line for line in lines if "0.jpg" not in line["path"]]}
    (tmp_path / "set.report" / "metrics.json").write_text(json.dumps(report))
    return tmp_path / "set"


def run(home: House, data: Path, *more: str) -> Result:
    url = str(home.client.base_url)
    return CliRunner().invoke(app, ["evaluate", str(data), "--task", "pets", "--url", url, *more])


def test_the_share_of_right_answers(home: House, data: Path) -> None:
    result = run(home, data)
    assert result.exit_code == 0, result.output
    assert "pets: 83.33% of 6 files are right" in result.output


def test_classes_and_parts_are_scored_on_their_own(home: House, data: Path) -> None:
    """The one mistake is all that its class has; and what was trained on is told apart from what was not."""
    wrong = next(path for path in data.rglob(f"{COUNT - 1}.jpg"))
    counts = {folder.name: len(list(folder.iterdir())) for folder in data.iterdir()}
    right = {name: count - (name == wrong.parent.name) for name, count in counts.items()}
    balanced = sum(right[name] / counts[name] for name in counts) / len(counts)
    told = run(home, data).output
    assert (
        f"balanced accuracy {balanced:.2%}, the mean over {len(counts)} classes; least is '{wrong.parent.name}'" in told
    )
    assert "by part" not in told
    (data.parent / "split" / "train").mkdir(parents=True)
    shutil.copytree(data, data.parent / "split" / "test")
    for folder in data.iterdir():
        if folder != wrong.parent:
            shutil.move(folder, data.parent / "split" / "train" / folder.name)
    (data.parent / "split" / "train" / "odd.txt").write_text("no class")
    result = run(home, data.parent / "split")
    assert result.exit_code == 0, result.output
    assert f"by part: test {5 / 6:.2%} of 6, train 100.00% of" in result.stdout


def test_a_job_hears_how_far_it_is(home: House, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    lines = [line for line in run(home, data).stdout.splitlines() if line.startswith("asking about 6 files")]
    assert len(lines) == COUNT
    assert "50%" in lines[2]


def test_a_kept_report(home: House, data: Path) -> None:
    result = run(home, data, "--report", f"{data}.report")
    assert result.exit_code == 0, result.output
    assert "80.00% of 5 files" in result.output
    assert "the report says 80.00%; 5 of 5 answers are its own" in result.output


def test_a_report_that_is_not_kept_names_the_file(home: House, data: Path) -> None:
    file = data.with_name("set.report") / "metrics.json"
    report = json.loads(file.read_text())
    first = report["held_out"][0]
    first["scores"] = {label: score + 0.01 for label, score in first["scores"].items()}
    file.write_text(json.dumps(report))
    result = run(home, data, "--report", str(file.parent))
    assert result.exit_code == 1
    assert "4 of 5 answers are its own" in result.stdout
    assert first["path"] in result.stderr


@pytest.mark.parametrize(
    ("reported", "dtype", "kept"),
    [
        ({"a": 0.5504, "b": 0.4496}, "float32", True),
        ({"a": 0.48, "b": 0.52}, "float32", False),
        ({"a": 0.48, "b": 0.52}, "bfloat16", True),  # labels that are closer than the rounding may change places
        ({"a": 0.3, "b": 0.7}, "bfloat16", False),
    ],
)
def test_a_report_is_kept_within_what_the_server_rounds(reported: dict[str, float], dtype: str, kept: bool) -> None:
    line = {"predicted": max(reported, key=reported.__getitem__), "correct": True, "scores": reported}
    reply = Evaluated(Example(Path("1.jpg"), "1.jpg", "a", "a"), {"a": 0.55, "b": 0.45})
    assert _compare([reply], {"1.jpg": line}, dtype) is kept


def test_what_cannot_be_compared_is_one_line(home: House, data: Path) -> None:
    (data / "no such label").mkdir()
    (data / "no such label" / "1.jpg").write_bytes(photograph())
    assert "class 'no such label' is no label of the task" in run(home, data).stderr
    for line in json.loads((data.with_name("set.report") / "metrics.json").read_text())["held_out"][:1]:
        (data / line["path"]).unlink()
        (data / Path(line["path"]).parent / "other.jpg").write_bytes(photograph(99))
    result = run(home, data, "--report", f"{data}.report")
    assert result.exit_code == 1
    assert "lacks 1 files of the report" in result.stderr
    data.with_name("set.report").joinpath("metrics.json").write_text("{}")
    assert "is no report" in run(home, data, "--report", f"{data}.report").stderr


def test_a_file_without_an_answer_fails_the_run(home: House, data: Path) -> None:
    bad = next(data.rglob("*.jpg"))
    bad.write_bytes(bad.read_bytes()[:400])
    result = run(home, data)
    assert result.exit_code == 1
    assert f"no answer: {bad.relative_to(data)}" in result.stderr
