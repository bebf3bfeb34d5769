"""What `adaptserve train` says of a training and of what is wrong with it; nothing half is left, nothing lost."""

from __future__ import annotations

import re
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.config import task_name
from adapters.training import run as training_run
from adapters.training.checkpoint import Checkpoint, CheckpointFile
from service.cli.main import app
from tests.houses import Kit
from tests.training import COLOURS, clips, done, failed, few_penalties, metrics, one_thread, pictures, runner, train

__all__ = ["clips", "few_penalties", "one_thread", "pictures"]


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


def test_a_size_that_the_backbone_cannot_take_is_one_line(kit: Kit, pictures: Path, tmp_path: Path) -> None:
    line = failed(kit, pictures, tmp_path / "a.safetensors", "--image-size", "25")
    assert "cannot run at 25 pixels" in line
    assert "at 24 or at its own 32" in line
