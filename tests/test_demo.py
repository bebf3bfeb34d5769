"""The shipped demo: its files fit its backbone, its samples get their names, its digits score as told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.backbone import Backbone, load_backbone
from adapters.backbone.source import DEMO_BACKBONE
from adapters.file import Adapter, read_adapter, write_adapter
from adapters.limits import FileLimits
from adapters.predictor import Predictor
from adapters.training.demo import digits, photos
from adapters.training.demo.build import score_file, train_task, write_task
from adapters.training.demo.tasks import DIGIT_TASKS
from adapters.training.progress import Teller

DEMO = DEMO_BACKBONE.parent
FINGERPRINT = "d44bf3b0f12d8a1ddb31db239980c1da429cd47edf080f0a338d38ea2d13752d"
FILES = sorted((DEMO / "tasks").glob("*.safetensors"))
SAMPLES = sorted((DEMO / "samples").iterdir())


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def adapters(backbone: Backbone) -> dict[str, Adapter]:
    return {path.stem: read_adapter(path, backbone.layout, FileLimits()) for path in FILES}


def test_the_demo_is_whole_and_small(backbone: Backbone, adapters: dict[str, Adapter]) -> None:
    assert {task.name for task in DIGIT_TASKS} | {"animal-or-vehicle"} == set(adapters)
    assert sum(p.stat().st_size for p in DEMO.rglob("*") if p.is_file()) < 10 * 2**20
    for name, adapter in adapters.items():
        assert adapter.config.task == name
        assert 0.012 < adapter.parameters / backbone.layout.parameters < 0.017


def test_the_fingerprint_and_the_files_are_those_that_were_released(
    backbone: Backbone, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    """To the byte: what the config has learnt to say since is left out where it says nothing new."""
    assert backbone.layout.fingerprint == FINGERPRINT
    assert load_backbone("demo", device="cpu", dtype="float32", image_size="32x48").layout.fingerprint == FINGERPRINT
    for path in FILES:
        adapter = adapters[path.stem]
        assert write_adapter(tmp_path / path.name, adapter.config, adapter.tensors) == adapter.digest


def test_the_samples_are_what_their_names_say(backbone: Backbone, adapters: dict[str, Adapter]) -> None:
    """Held-out examples as they came, not chosen by their answer: some may be mistakes, most must not."""
    predictor = Predictor(backbone, *adapters.values())
    right: dict[str, list[float]] = {name: [] for name in adapters}
    for path in SAMPLES:
        name = max((name for name in adapters if path.name.startswith(f"{name}-")), key=len)
        found, truth = predictor(path, name), path.stem.removeprefix(f"{name}-")
        if found.score == "sigmoid":
            wanted = np.array([label in truth.split("-") for label in found.labels])
            right[name].append(float(((found.scores > 0.5) == wanted).mean()))
        else:
            right[name].append(float(found.best.label == truth))
    assert all(len(found) >= 2 and np.mean(found) >= 0.75 for found in right.values()), right


LOGITS = {
    "digits": [2.1373, -5.3579, -21.4864, -6.4997, 10.7502, -3.548, 4.7602, -12.5735, 11.9289, 21.7084],
    "moving-digit": [15.3839, 8.1518, 3.7365, -27.0141],
    "digit-collage": [-22.229, -7.0777, 2.1753, -4.1287, -0.5305, 30.7205, 5.6649, -4.2353, -1.7373, -3.1866],
    "animal-or-vehicle": [-0.7952, 0.6852],
}
"""Of the release's own code, for noise of seed 0."""


def test_the_released_files_answer_as_they_did(backbone: Backbone, adapters: dict[str, Adapter]) -> None:
    predictor = Predictor(backbone, *adapters.values())
    for name, expected in LOGITS.items():
        shape = adapters[name].config.frames, 3, *backbone.layout.input_size
        noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        np.testing.assert_allclose(predictor.logits([noise], name)[0], expected, atol=2e-3)


def test_the_shipped_digits_score_as_promised(backbone: Backbone) -> None:
    adapter, accuracy = score_file(DEMO / "tasks" / "digits.safetensors", DIGIT_TASKS[0], backbone)
    assert accuracy >= 0.97
    assert accuracy == pytest.approx(adapter.config.training["held_out_accuracy"], abs=2 / 359)


@pytest.mark.parametrize("number", range(len(DIGIT_TASKS)), ids=[task.name for task in DIGIT_TASKS])
def test_its_tasks_can_be_trained_again(backbone: Backbone, tmp_path: Path, number: int) -> None:
    """On little data: what is written holds its own account, and scores as it says."""
    task = DIGIT_TASKS[number]
    train, held_out = ((pixels[:24], labels[:24]) for pixels, labels in task.data())
    small = replace(task, data=lambda: (train, held_out), fit=replace(task.fit, epochs=1, batch=8))
    model, result = train_task(small, backbone, Teller(), temporal=task.temporal)
    write_task(small, model, result, tmp_path / "made.safetensors", {"note": 1})
    adapter, accuracy = score_file(tmp_path / "made.safetensors", small, backbone)
    told = adapter.config.training
    assert (told["train_examples"], told["held_out_examples"], told["note"]) == (24, 24, 1)
    assert told["held_out_accuracy"] == pytest.approx(accuracy, abs=1 / 24)
    assert adapter.config.labels == task.labels


def test_nothing_held_out_is_trained_on() -> None:
    train, held_out = digits.split()
    assert len(train.scans) + len(held_out.scans) == 1797
    again, _ = digits.split()
    assert np.array_equal(again.scans, train.scans)
    shares = np.bincount(held_out.digit) / np.bincount(np.concatenate([train.digit, held_out.digit]))
    assert np.allclose(shares, 0.2, atol=0.01)


def test_single_frames_do_not_tell_the_direction() -> None:
    clips, labels = digits.moving(digits.split()[0], 8, seed=3)
    assert clips.shape == (8, 8, 3, 32, 32)
    assert labels.tolist() == [0, 1, 2, 3] * 2
    for clip in clips:  # a ring: one step more along it is the first frame again
        step = next(s for s in ((0, -4), (0, 4), (-4, 0), (4, 0)) if torch.equal(clip[0].roll(s, (-2, -1)), clip[1]))
        assert torch.equal(clip[-1].roll(step, (-2, -1)), clip[0])


def test_photographs_are_labelled_by_kind(tmp_path: Path) -> None:
    for n, name in enumerate(("airplane", "cat", "frog")):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (32, 32), (50 * n, i, 0)).save(tmp_path / name / f"{i}.png")
    pixels, labels = photos.kinds(tmp_path, 12, seed=0)
    assert pixels.shape == (12, 1, 3, 32, 32)
    assert torch.equal(labels, (pixels[:, 0, 0, 0, 0] == 0).long())
    assert len({tuple(p[0, :, 0, 0].tolist()) for p in pixels}) == 12
