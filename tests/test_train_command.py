"""`adaptserve train` as a person uses it: the file answers over HTTP what its report says; nothing half is left."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from adapters.config import VideoConfig, task_name
from adapters.header import Header, read_header
from adapters.limits import FileLimits
from adapters.training import linear
from adapters.training import run as training_run
from adapters.training.calibration import Temperature
from adapters.training.checkpoint import Checkpoint, CheckpointFile
from service.cli.main import app
from tests.houses import House, Kit, house
from tests.media_samples import clip, encode

COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
runner = CliRunner()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model gains nothing from two, and on a busy machine they wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def few_penalties() -> Iterator[None]:
    """The search for the linear head's penalty would be half of each run; it has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "PENALTIES", (1.0, 0.1, 0.01))
        patch.setattr(linear, "FOLDS", 3)
        yield


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("served") / "data")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy pictures of three tints, one folder each."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for i in range(10):
            noise = random.integers(-60, 60, (12, 15, 3)) + np.array(colour)
            picture = Image.fromarray(noise.clip(0, 255).astype(np.uint8)).resize((50, 40))
            (root / name / f"{i}.{'jpg' if i % 2 else 'png'}").write_bytes(encode(picture, "JPEG" if i % 2 else "PNG"))
    return root


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips that get lighter, and the same frames in opposite order."""
    root = tmp_path_factory.mktemp("clips")
    for i in range(6):
        for name, times in (("lighter", 1), ("darker", -1)):
            (root / name).mkdir(exist_ok=True)
            picture = Image.new("RGB", (32, 32), (30 * i, 90, 40)) if times < 0 else None
            (root / name / f"{i}.mp4").write_bytes(clip(count=6 + i, picture=picture))
    return root


def arguments(kit: Kit, data: Path, file: Path, *more: str) -> list[str]:
    base = ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--device", "cpu", "--dtype", "float32"]
    few = ["--epochs", "3", "--batch", "8", "--lr", "0.01", "--scale", "0.5", "--no-fallback"]
    few = few if "linear" not in more else []
    return ["train", str(data), "--out", str(file), *base, *few, *more]


def train(kit: Kit, data: Path, file: Path, *more: str) -> Result:
    return runner.invoke(app, arguments(kit, data, file, *more))


def done(kit: Kit, data: Path, file: Path, *more: str) -> Header:
    result = train(kit, data, file, *more)
    assert result.exit_code == 0, result.output
    return read_header(file, FileLimits())


def failed(kit: Kit, data: Path, file: Path, *more: str) -> str:
    result = train(kit, data, file, *more)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.strip().splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, result.stderr
    assert not file.exists()
    return lines[0]


def metrics(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(f"{file}.report") / "metrics.json").read_text())
    return found


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


def test_ctrl_c_and_resume_end_as_without(
    kit: Kit, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, file = tmp_path / "whole.safetensors", tmp_path / "file.safetensors"
    more, save = ("--task", "t", "--epochs", "4"), CheckpointFile.save

    def press_ctrl_c(self: CheckpointFile, checkpoint: Checkpoint) -> None:
        save(self, checkpoint)
        if len(checkpoint.result.history) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(CheckpointFile, "save", press_ctrl_c)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins without it
    try:
        stopped = train(kit, pictures, file, *more)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert stopped.exit_code == 130, stopped.output
    assert [line.split(":")[0] for line in stopped.stderr.strip().splitlines()] == ["warning", "stopped"]
    assert "go on with --resume" in stopped.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file.safetensors.resume"]
    assert "resume it (--resume) or delete it" in failed(kit, pictures, file, *more)
    assert "other data or options" in failed(kit, pictures, file, *more, "--resume", "--rank", "2")
    resumed = train(kit, pictures, file, *more, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "resumed after epoch 2" in resumed.stdout
    assert not Path(f"{file}.resume").exists()
    done(kit, pictures, whole, *more)
    expected, found = load_file(whole), load_file(file)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert metrics(whole)["held_out"] == metrics(file)["held_out"]


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """The kernel refuses every write beyond ``size`` bytes of a file, as it would on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_before_any_training(kit: Kit, pictures: Path, tmp_path: Path) -> None:
    with disk_full_after(1000):
        assert "could not be written" in failed(kit, pictures, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_at_the_end_loses_nothing(
    kit: Kit, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, write = tmp_path / "a.safetensors", training_run.write_adapter

    def full(*given: Any) -> str:
        with disk_full_after(1000):
            return write(*given)

    monkeypatch.setattr(training_run, "write_adapter", full)
    assert "could not be written" in failed(kit, pictures, file)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors.resume"]
    monkeypatch.undo()
    resumed = train(kit, pictures, file, "--resume")
    assert "resumed after epoch 3" in resumed.stdout
    done(kit, pictures, tmp_path / "b.safetensors", "--task", "a")
    expected, found = load_file(tmp_path / "b.safetensors"), load_file(file)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_what_cannot_be_done_is_one_line(kit: Kit, pictures: Path, clips: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    assert "does not exist" in failed(kit, tmp_path / "none", file)
    assert "must end with .safetensors" in failed(kit, pictures, tmp_path / "a.pth")
    assert "frames and temporal are for clips" in failed(kit, pictures, file, "--frames", "4")
    assert "sampling, views are for clips" in failed(kit, pictures, file, "--sampling", "dense", "--views", "2")
    assert "trains the head alone; leave out rank" in failed(kit, pictures, file, "--method", "linear", "--rank", "4")
    assert "0 to 2" in failed(kit, pictures, file, "--blocks", "1-3")
    assert "it has qkv, q, k, v" in failed(kit, pictures, file, "--method", "lora", "--site", "parallel")
    assert "task:" in failed(kit, pictures, file, "--task", "A b")
    assert "neither a timm model nor a folder" in failed(kit, pictures, file, "--backbone", "vit_nothing")
    assert "crops: Input should be 1 or 3" in failed(kit, clips, file, "--crops", "2")
    assert "'stride' is for sampling 'dense'" in failed(kit, clips, file, "--stride", "2")
    file_in_the_way = tmp_path / "file"
    file_in_the_way.touch()
    assert "could not be written" in failed(kit, pictures, file_in_the_way / "a.safetensors")
    assert train(kit, pictures, file, "--batch", "1").exit_code == 2


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


def test_the_bounds_of_the_server_hold_in_training(
    kit: Kit, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTSERVE_MAX_PIXELS", "1999")
    told = failed(kit, pictures, tmp_path / "a.safetensors")
    assert "has no readable picture" in told
    monkeypatch.setenv("ADAPTSERVE_MAX_PIXELS", "0")
    result = train(kit, pictures, tmp_path / "a.safetensors")
    assert result.exit_code == 2
    assert "setting max_pixels (ADAPTSERVE_MAX_PIXELS)" in result.stderr


def test_a_file_that_is_written_into_the_data(kit: Kit, pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    found = [done(kit, data, data / place / "a.safetensors", "--epochs", "1") for place in ("", "out", "red", "out")]
    assert len({header.config.model_copy(update={"training": {}}).model_dump_json() for header in found}) == 1
    assert {header.config.training["train_examples"] for header in found} == {24}


def test_classes_count_alike_beside_the_share_of_files(kit: Kit, pictures: Path, tmp_path: Path) -> None:
    """One class has twenty files, one has three: the report has its recall, and a line says how few they are."""
    data, file = tmp_path / "data", tmp_path / "a.safetensors"
    shutil.copytree(pictures, data)
    for i in range(10):
        shutil.copy(data / "red" / "0.png", data / "red" / f"more{i}.png")
        if i > 2:
            next((data / "blue").glob(f"{i}.*")).unlink()
    result = train(kit, data, file)
    assert "only 2 files or fewer are held out of classes 'blue', 'green': their scores say little" in result.stderr
    report = metrics(file)
    classes = {line["label"]: line for line in report["classes"]}
    assert {label: (line["train"], line["held_out"]) for label, line in classes.items()} == {
        "blue": (2, 1), "green": (8, 2), "red": (16, 4),
    }  # fmt: skip
    for label, line in classes.items():
        mine = [e["correct"] for e in report["held_out"] if e["label"] == label]
        assert line["recall"] == sum(mine) / len(mine) == line["right"] / line["held_out"]
    balanced = sum(line["recall"] for line in classes.values()) / 3
    assert report["training"]["held_out_balanced_accuracy"] == round(balanced, 4)
    assert f"balanced accuracy  {balanced:.2%}, the mean over 3 classes" in result.stdout
    html = (Path(f"{file}.report") / "index.html").read_text()
    assert f"<b>{balanced:.2%}</b>" in html
    assert "<td>blue</td><td>2</td><td>1</td>" in html


def test_a_class_of_which_nothing_is_held_out_is_warned_of(kit: Kit, pictures: Path, tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "a.safetensors"
    for part, names in (("train", COLOURS), ("valid", ["red", "green"])):
        for name in names:
            shutil.copytree(pictures / name, data / part / name)
    result = train(kit, data, file, "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert "nothing is held out of class 'blue': no score here says anything of that" in result.stderr
    assert next(line for line in metrics(file)["classes"] if line["label"] == "blue")["recall"] is None
    assert "<td>none</td><td>not known</td>" in (Path(f"{file}.report") / "index.html").read_text()
    assert metrics(file)["training"]["split"] == "given, val held out"
    shutil.copytree(data / "valid", data / "test")
    told = done(kit, data, tmp_path / "b.safetensors", "--epochs", "1", "--held-out", "test").config.training
    assert told["split"] == "given, test held out"
    assert "no 'test' to hold out" in failed(kit, pictures, tmp_path / "c.safetensors", "--held-out", "test")
    assert train(kit, pictures, tmp_path / "c.safetensors", "--held-out", "2").exit_code == 2


def test_the_output_of_a_job_has_a_line_for_each_epoch(kit: Kit, pictures: Path, tmp_path: Path) -> None:
    finished = train(kit, pictures, tmp_path / "a.safetensors")
    assert finished.exit_code == 0, finished.output
    lines = finished.stdout.splitlines()
    assert "24 pictures of 3 classes to train on, 6 held out" in lines
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in epochs] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert all(re.search(r"loss \d+\.\d+, held-out accuracy \d+\.\d+%", line) for line in epochs)
    assert all(re.search(r", \d+ s left$", line) for line in epochs[:-1])


def test_the_history_in_a_file_is_bounded(
    kit: Kit, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand epochs would fill the header that a server reads; the report has all of them."""
    monkeypatch.setattr(training_run, "MAX_HISTORY", 2)
    file = tmp_path / "a.safetensors"
    told = done(kit, pictures, file, "--epochs", "5").config.training
    assert [line["epoch"] for line in told["history"]] == [2, 5]
    assert len(metrics(file)["training"]["history"]) == 5


def test_names_of_tasks() -> None:
    assert task_name("My Flowers (2).safetensors") == "my-flowers-2"
    assert task_name("___.safetensors") == "task"


def test_help_teaches() -> None:
    shown = runner.invoke(app, ["train", "--help"])
    assert shown.exit_code == 0
    assert "adaptserve train flowers/" in shown.stdout


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


def test_a_size_that_the_backbone_cannot_take_is_one_line(kit: Kit, pictures: Path, tmp_path: Path) -> None:
    line = failed(kit, pictures, tmp_path / "a.safetensors", "--image-size", "25")
    assert "cannot run at 25 pixels" in line
    assert "at 24 or at its own 32" in line
