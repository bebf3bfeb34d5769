"""Pretraining of the demo backbone: the command runs, and what it writes is a backbone that serves and trains."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.backbone import load_backbone
from adapters.training import pretrain

COLOURS = {"blue": (30, 40, 200), "red": (200, 40, 30)}


@pytest.fixture(scope="module")
def thumbnails(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that their colour tells apart, under noise."""
    folder, random = tmp_path_factory.mktemp("thumbnails"), np.random.default_rng(0)
    for part, count in (("train", 32), ("test", 8)):
        for name, colour in COLOURS.items():
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                noisy = np.clip(colour + random.normal(0, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(folder / part / name / f"{number}.png")
    return folder


def test_the_command_writes_a_backbone(thumbnails: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--out", str(tmp_path / "out"), "--epochs", "4", "--batch", "16"]
    monkeypatch.setattr(sys, "argv", ["pretrain", str(thumbnails), *options])
    pretrain.main()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [line["epoch"] for line in config["training"]["log"]] == [2, 4]
    assert config["training"]["log"][-1]["accuracy"] >= 0.9
    made = load_backbone(str(tmp_path / "out"), device="cpu", dtype="float32")
    shipped = load_backbone("demo", device="cpu", dtype="float32")
    assert made.layout.fingerprint != shipped.layout.fingerprint
    assert (made.layout.blocks, made.layout.width, made.input) == (6, 192, shipped.input)


def test_augmented_pictures_are_crops_of_their_own_and_some_are_mirrored() -> None:
    image = torch.arange(3 * 32 * 32).view(1, 3, 32, 32).remainder(256).to(torch.uint8)
    found = pretrain.augment(image.expand(64, -1, -1, -1), torch.Generator().manual_seed(0))
    assert found.shape == (64, 3, 32, 32)
    assert len({tuple(one.flatten()[:64].tolist()) for one in found}) > 30
    again = pretrain.augment(image.expand(64, -1, -1, -1), torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
