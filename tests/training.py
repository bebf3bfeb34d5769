"""`adaptserve train` in this process on noisy pictures and short clips, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from adapters.header import Header, read_header
from adapters.limits import FileLimits
from adapters.training import linear
from service.cli.main import app
from tests.houses import Kit
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
