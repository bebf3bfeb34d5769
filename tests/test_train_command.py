"""`adaptserve train` as a person uses it: the file answers over HTTP what its report says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.config import VideoConfig
from adapters.header import read_header
from adapters.limits import FileLimits
from adapters.training import run as training_run
from adapters.training.calibration import Temperature
from service.cli.main import app
from tests.houses import House, Kit, house
from tests.media_samples import clip
from tests.training import clips, done, failed, few_penalties, metrics, one_thread, pictures, runner, train

__all__ = ["clips", "few_penalties", "one_thread", "pictures"]


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("served") / "data")) as opened:
        yield opened


def check_served(home: House, root: Path, file: Path, task: str) -> None:
    """Every held-out file over HTTP: the same label, the same scores, and so the same accuracy."""
    report = metrics(file)
    pushed = home.put(task, file.read_bytes())
    assert pushed.status_code == 201, pushed.text
    assert pushed.json()["digest"] == report["digest"]
    right = 0
    for example in report["held_out"]:
        answer = home.ask(task, (root / example["path"]).read_bytes()).json()["predictions"]
        assert answer[0]["label"] == example["predicted"], example
        assert {p["label"]: p["score"] for p in answer} == pytest.approx(example["scores"], abs=1e-5)
        right += answer[0]["label"] == example["label"]
    assert round(right / len(report["held_out"]), 4) == report["training"]["held_out_accuracy"]


METHODS: dict[str, list[str]] = {
    "adaptformer": [],
    "lora": ["--method", "lora", "--blocks", "1-2"],
    "qkv": ["--method", "lora", "--site", "qkv,fc1", "--rank", "2", "--pool", "cls"],
    "linear": ["--method", "linear", "--epochs", "2", "--batch", "8"],
    "stream": ["--site", "input,pre_mlp", "--tokens", "patches"],
    "output": ["--site", "output", "--blocks", "0,2", "--rank", "3", "--pool", "backbone"],
}


def test_scores_are_calibrated_and_doubtful_answers_not_accepted(
    kit: Kit, home: House, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file, the report, the page and the last lines say is what the server answers with."""
    found = Temperature(1.7, 0.5, 0.4)  # so few files give none
    monkeypatch.setattr(training_run, "fit_temperature", lambda *_: found)
    file = tmp_path / "sure.safetensors"
    result = train(kit, pictures, file, "--method", "linear", "--held-out", "0.5", "--abstain-accuracy", "0.6")
    assert result.exit_code == 0, result.output
    config, report = read_header(file, FileLimits()).config, metrics(file)
    told, bins = config.training["calibration"], report["training"]["reliability"]
    assert told == report["training"]["calibration"]
    assert "reliability" not in config.training
    assert config.temperature == told["temperature"] == 1.7
    assert told["error"] != told["error_before"]
    assert f"with temperature {config.temperature:g}" in result.output
    assert config.abstain == pytest.approx(told["abstain_threshold"], abs=1e-4)
    assert sum(one["count"] for one in bins["after"]) == sum(one["count"] for one in bins["before"]) == 15
    page = (Path(f"{file}.report") / "index.html").read_text()
    assert page.count("<circle") >= len(bins["after"]) + len(bins["before"])
    assert f"{told['error']:.2%}</b> with temperature" in page
    check_served(home, pictures, file, "sure")
    for example in report["held_out"]:
        accepted = home.ask("sure", (pictures / example["path"]).read_bytes()).json()["accepted"]
        assert accepted is (max(example["scores"].values()) >= config.abstain)
    shown = runner.invoke(app, ["inspect", str(file)]).output
    assert f"temperature {config.temperature:g}" in shown
    assert f"below a score of {config.abstain:g}" in shown
    evaluated = runner.invoke(app, ["evaluate", str(pictures), "--task", "sure", "--url", str(home.client.base_url),
                                    "--report", f"{file}.report"])  # fmt: skip
    assert f"expected calibration error {told['error']:.2%}, of 15 answers" in evaluated.output
    assert f"accepted {round(told['abstain_share'] * 15)} of 15 answers" in evaluated.output


@pytest.mark.parametrize("name", METHODS)
def test_served_answers_are_the_reports(kit: Kit, home: House, pictures: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}.safetensors"
    header = done(kit, pictures, file, *METHODS[name])
    told = header.config.training
    assert header.config.labels == ("blue", "green", "red")
    assert told["held_out_examples"] == 6
    assert told["train_examples"] == 24
    assert told["parameters"] == header.parameters
    check_served(home, pictures, file, name)


def test_clips_are_served_as_trained(kit: Kit, home: House, clips: Path, tmp_path: Path) -> None:
    file = tmp_path / "clips.safetensors"
    header = done(kit, clips, file, "--frames", "4")
    assert header.config.frames == 4
    assert all(site.temporal for site in header.config.sites)
    check_served(home, clips, file, "clips")
    linear = done(
        kit, clips, tmp_path / "linear.safetensors", "--frames", "4", "--method", "linear", "--head", "frames"
    )
    assert linear.config.head == "frames"
    check_served(home, clips, tmp_path / "linear.safetensors", "linear-clips")
    shown = runner.invoke(app, ["inspect", str(tmp_path / "linear.safetensors")]).stdout
    assert "video, 4 frames, head of all of them" in shown
    theirs = done(kit, clips, tmp_path / "st.safetensors", "--frames", "4", "--method", "st-adapter", "--epochs", "1")
    assert [(s.site, s.tokens) for s in theirs.config.sites] == [("input", "patches"), ("pre_mlp", "patches")]
    check_served(home, clips, tmp_path / "st.safetensors", "st")
    flat = done(kit, clips, tmp_path / "flat.safetensors", "--frames", "4", "--no-temporal", "--no-report")
    assert not any(site.temporal for site in flat.config.sites)
    assert not (tmp_path / "flat.safetensors.report").exists()


def test_views_are_served_as_reported(kit: Kit, home: House, clips: Path, tmp_path: Path) -> None:
    """Training sees the view in the middle, the report and the server the mean of all; a baseline reports it too."""
    file, dense = tmp_path / "views.safetensors", ("--sampling", "dense", "--stride", "2", "--views", "3")
    header = done(kit, clips, file, "--frames", "3", *dense, "--crops", "3", "--head", "mean")
    assert header.config.video == VideoConfig(frames=3, sampling="dense", stride=2, views=3, crops=3)
    check_served(home, clips, file, "views")
    told = runner.invoke(app, ["inspect", str(file)], env={"COLUMNS": "200"}).stdout
    assert "video, 3 frames, dense: 2 apart, head of their mean; 3 views x 3 crops averaged, 27 rows in all" in told
    given = f"--method full --epochs 1 --frames 3 --lr 1e-4 --backbone {kit.folder / 'vit'} --weights random:0"
    full = ["train", str(clips), "--out", str(tmp_path / "full.safetensors"), *given.split(), *dense]
    result = runner.invoke(app, full)
    assert result.exit_code == 0, result.output
    lines = json.loads((tmp_path / "full.safetensors.full.report" / "metrics.json").read_text())["held_out"]
    assert len(lines) == len(metrics(file)["held_out"])
    assert all(sum(line["scores"].values()) == pytest.approx(1) for line in lines)


def test_one_view_trains_as_if_there_were_no_others(kit: Kit, clips: Path, tmp_path: Path) -> None:
    """And what cannot be read in all views is left out of what is held out, and told."""
    options = ("--frames", "3", "--sampling", "dense", "--stride", "1", "--no-report", "--epochs", "1")
    one, many = tmp_path / "one.safetensors", tmp_path / "many.safetensors"
    done(kit, clips, one, *options)
    done(kit, clips, many, *options, "--views", "4")
    alone, found = load_file(one), load_file(many)
    assert alone.keys() == found.keys()
    assert all(torch.equal(alone[name], found[name]) for name in alone)
    for part in ("train", "val"):
        shutil.copytree(clips, tmp_path / "data" / part)
    (tmp_path / "data" / "val" / "darker" / "large.mp4").write_bytes(clip(count=9, size=(96, 80)))
    options = (*options, "--views", "2", "--env-file", str(tmp_path / "env"))
    (tmp_path / "env").write_text(f"ADAPTSERVE_MAX_CLIP_PIXELS={4 * 96 * 80}\n")  # three frames of it, not six
    result = train(kit, tmp_path / "data", tmp_path / "few.safetensors", *options)
    assert result.exit_code == 0, result.output
    assert "left out: val/darker/large.mp4: the frames asked for have" in result.stderr
    assert "12 clips of 2 classes to train on, 12 held out" in result.stdout
    (tmp_path / "env").write_text(f"ADAPTSERVE_MAX_CLIP_PIXELS={4 * 64 * 48}\n")
    told = failed(kit, clips, tmp_path / "none.safetensors", *options)
    assert "no held-out clip can be read in all its views" in told


def test_it_learns_what_can_be_learnt(kit: Kit, pictures: Path, tmp_path: Path) -> None:
    learnt = done(kit, pictures, tmp_path / "b.safetensors", "--epochs", "10")
    assert learnt.config.training["held_out_accuracy"] >= 0.8
    assert learnt.config.sites


def test_what_is_no_better_than_the_linear_head_is_not_kept(
    kit: Kit, home: House, pictures: Path, tmp_path: Path
) -> None:
    file = tmp_path / "wild.safetensors"
    result = train(kit, pictures, file, "--lr", "10", "--epochs", "1", "--rank", "40", "--fallback")
    assert result.exit_code == 0, result.output
    assert "adaptformer found nothing better than the best linear head, which was kept" in result.stdout
    assert "a server needs" not in result.stdout  # the rank is not in the file
    told = read_header(file, FileLimits()).config
    assert (told.sites, told.training["method"], told.training["tried"]) == ((), "linear", "adaptformer")
    check_served(home, pictures, file, "wild")
    linear = done(kit, pictures, tmp_path / "linear.safetensors", "--method", "linear")
    assert linear.config.training["held_out_accuracy"] == told.training["held_out_accuracy"]
    assert "the best linear head on the frozen backbone" in linear.config.training["verdict"]


def test_a_table_with_odd_labels_and_broken_files(kit: Kit, home: House, pictures: Path, tmp_path: Path) -> None:
    """A slash and markup in a label are just text; a broken picture is listed and left out."""
    odd = {"red": "warm/red", "green": "<script>alert(1)</script>", "blue": "blue & cold"}
    lines = [f"{p},{odd[p.parent.name]}" for p in sorted(pictures.rglob("*.*"))]
    (tmp_path / "cut.png").write_bytes((pictures / "red" / "0.png").read_bytes()[:200])
    (tmp_path / "t.csv").write_text("\n".join(["path,label", "cut.png,warm/red", *lines]))
    file = tmp_path / "odd.safetensors"
    result = train(kit, tmp_path / "t.csv", file)
    assert result.exit_code == 0, result.output
    assert "left out: cut.png: " in result.stderr
    assert read_header(file, FileLimits()).config.labels == tuple(sorted(odd.values()))
    assert [b["name"] for b in metrics(file)["bad_files"]] == ["cut.png"]
    check_served(home, tmp_path, file, "odd")
    html = (Path(f"{file}.report") / "index.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "cut.png" in html
    assert "://" not in html  # self-contained: nothing is fetched
    wrong = sum(not e["correct"] for e in metrics(file)["held_out"])
    assert html.count("<img") == html.count('src="data:image/png;base64,') == min(12, wrong)


def test_the_same_seed_gives_the_same_tensors(kit: Kit, pictures: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for file, seed in zip(files, ("4", "4", "5"), strict=True):
        done(kit, pictures, file, "--task", "same", "--seed", seed)
    first, second, other = (load_file(file) for file in files)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert [e["path"] for e in metrics(files[0])["held_out"]] != [e["path"] for e in metrics(files[2])["held_out"]]


def test_what_a_server_would_refuse_is_warned_of(
    kit: Kit, home: House, pictures: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before training and in the report; and not where the settings allow it, which are the server's own."""
    more = ("--rank", "20", "--epochs", "1")
    wide, quiet = tmp_path / "wide.safetensors", tmp_path / "quiet.safetensors"
    result = train(kit, pictures, wide, *more)
    assert "ADAPTSERVE_MAX_RANK=20" in result.stderr.splitlines()[0]
    assert "ADAPTSERVE_MAX_RANK=20" in result.stdout.split("a server needs")[1]
    assert metrics(wide)["training"]["needs"] == ["ADAPTSERVE_MAX_RANK=20"]
    assert "ADAPTSERVE_MAX_RANK=20" in (Path(f"{wide}.report") / "index.html").read_text()
    assert "ADAPTSERVE_MAX_RANK=20" in runner.invoke(app, ["inspect", str(wide)]).stdout
    assert "ADAPTSERVE_MAX_RANK=20" in home.put("wide", wide.read_bytes()).json()["detail"]
    monkeypatch.setenv("ADAPTSERVE_MAX_RANK", "20")
    assert "MAX_RANK" not in train(kit, pictures, quiet, *more).output
    (tmp_path / "env").write_text("ADAPTSERVE_MAX_CLIP_FRAMES=40\n")
    result = train(kit, clips, tmp_path / "long.safetensors", "--frames", "40", "--epochs", "1",
                   "--env-file", str(tmp_path / "env"))  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "ADAPTSERVE_MAX_CLIP_FRAMES=40 ADAPTSERVE_MAX_BATCH_ROWS=40" in result.stderr


def test_pictures_that_are_not_square(kit: Kit, pictures: Path, tmp_path: Path) -> None:
    """Trained, inspected and served at the size that was asked for; a server of another size refuses the file."""
    file = tmp_path / "wide.safetensors"
    result = train(kit, pictures, file, "--image-size", "24x40", "--epochs", "2")
    assert result.exit_code == 0, result.output
    assert re.search(r"a server needs +ADAPTSERVE_IMAGE_SIZE=24x40$", result.output, re.MULTILINE)
    assert read_header(file, FileLimits()).config.input.size == (24, 40)
    shown = runner.invoke(app, ["inspect", str(file)])
    assert "24x40 pixels" in shown.output
    with house(kit.settings(data_dir=tmp_path / "data", image_size="24x40")) as wide:
        check_served(wide, pictures, file, "wide")
