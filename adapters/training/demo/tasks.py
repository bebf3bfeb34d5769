"""What the demo's tasks are: their labels, sites, data and recipes. Pure description; ``build.py`` acts on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from adapters.training.demo import digits, photos
from adapters.training.fit import Augment, FitConfig

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DemoTask:
    """One task; ``data`` gives the training and the held-out examples, always the same ones."""

    name: str
    labels: tuple[str, ...]
    about: str
    data: Callable[[], tuple[Data, Data]]
    fit: FitConfig
    augment: Augment | None = None
    frames: int = 1
    temporal: bool = False
    score: Literal["softmax", "sigmoid"] = "softmax"
    scale: float = 1.0


def shift(pixels: Tensor, generator: torch.Generator, most: int = 2) -> Tensor:
    """Move every item by up to ``most`` pixels, the same for all its frames."""
    moves = torch.randint(-most, most + 1, (len(pixels), 2), generator=generator).tolist()
    return torch.stack([p.roll((dy, dx), (-2, -1)) for p, (dy, dx) in zip(pixels, moves, strict=True)])


def _digits() -> tuple[Data, Data]:
    train, held_out = digits.split()
    return digits.pictures(train), digits.pictures(held_out)


def _moving() -> tuple[Data, Data]:
    train, held_out = digits.split()
    return digits.moving(train, 1200, seed=1), digits.moving(held_out, 400, seed=2)


def _collages() -> tuple[Data, Data]:
    train, held_out = digits.split()
    return digits.collages(train, 3000, seed=3), digits.collages(held_out, 600, seed=4)


def _kinds(folder: Path) -> tuple[Data, Data]:
    return photos.kinds(folder / "train", 6_000, seed=5), photos.kinds(folder / "test", 2_000, seed=6)


def tasks(cifar: Path | None) -> tuple[DemoTask, ...]:
    """All tasks; that of photographs only when the folder that holds them is given."""
    if cifar is None:
        return DIGIT_TASKS
    about = "does this photograph show an animal or a vehicle; CIFAR-10, held out are test pictures"
    fit = FitConfig(epochs=2, batch=32, lr=2e-3, crop=0.8, flip=True)
    return (*DIGIT_TASKS, DemoTask("animal-or-vehicle", photos.KINDS, about, partial(_kinds, cifar), fit))


DIGIT_TASKS: tuple[DemoTask, ...] = (
    DemoTask(
        "digits", tuple(str(d) for d in range(10)),
        "which handwritten digit is it; scikit-learn's scans, enlarged to 32 x 32", _digits,
        FitConfig(epochs=20, batch=64, lr=3e-3), shift,
    ),
    DemoTask(
        "moving-digit", digits.DIRECTIONS,
        "which way does the digit go; 8-frame clips whose single frames do not tell", _moving,
        FitConfig(epochs=7, batch=16, lr=3e-3), frames=digits.FRAMES, temporal=True,
    ),
    DemoTask(
        "digit-collage", tuple(str(d) for d in range(10)),
        "which digits are there; one to four in a 2 x 2 grid, many labels at once", _collages,
        FitConfig(epochs=12, batch=16, lr=3e-3), score="sigmoid",
    ),
)  # fmt: skip
