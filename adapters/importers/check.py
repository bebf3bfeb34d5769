"""The proof of an import: pictures through the adapter file, against what the training's own code said of them.

It knows no foreign format; what is compared stands in a CSV with a line for each picture.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapters.backbone import Backbone
from adapters.errors import ImportRefused
from adapters.file import Adapter
from adapters.limits import MediaLimits
from adapters.predictor import Predictor
from adapters.scores import probabilities

MAX_BYTES = 64 * 2**20
MAX_PICTURES = 10_000
SUM_TOLERANCE = 1e-3
"""Of a line's probabilities to 1; values that are off by more are logits."""
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Expected:
    """Values (pictures, classes) of the training's own code, in the order of the labels; ``files`` as the CSV names
    them."""

    folder: Path
    files: tuple[str, ...]
    values: Values
    logits: bool


@dataclass(frozen=True)
class Agreement:
    """How far the adapter's answers are from what was expected.

    ``probability`` and ``logit`` are the largest differences, the latter with each picture's mean taken off; None where
    probabilities were given. ``worst`` is the picture of the first; ``same_best`` counts equal first labels.
    """

    pictures: int
    same_best: int
    probability: float
    logit: float | None
    worst: str

    def __str__(self) -> str:
        logits = "" if self.logit is None else f", {self.logit:.2g} in logits"
        return (
            f"{self.same_best} of {self.pictures} pictures have the same best label; the largest difference is "
            f"{self.probability:.2g} in probability{logits} ({self.worst})"
        )


def read_expected(folder: Path, table: Path | None, labels: Sequence[str], score: str) -> Expected:
    """The pictures' CSV: a file's name in ``folder``, and a value for each class.

    Without ``table`` it is the one CSV in the folder. A first line whose first cell names no file is a header; where
    its names are the labels, they give the order of the columns. Raises ImportRefused, OSError.
    """
    path = table or _only_table(folder)
    if path.stat().st_size > MAX_BYTES:
        raise ImportRefused(f"{path.name} has more than {MAX_BYTES} bytes", limit=MAX_BYTES, field="against")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if any(cell.strip() for cell in line)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ImportRefused(f"{path.name} is no CSV of UTF-8 ({error})", field="against") from error
    order = list(range(len(labels)))
    if lines and not (folder / lines[0][0]).is_file():
        header = [cell.strip() for cell in lines.pop(0)[1:]]
        if set(header) == set(labels) and len(header) == len(labels):
            order = [header.index(label) for label in labels]
        elif set(header) & set(labels):
            raise ImportRefused(f"the columns of {path.name} are not the labels; give a column for each of the "
                                f"{len(labels)}, or no names", field="against")  # fmt: skip
    if not 0 < len(lines) <= MAX_PICTURES:
        raise ImportRefused(f"{path.name} names {len(lines)} pictures, expected 1 to {MAX_PICTURES}", field="against")
    files, values = [], []
    for number, line in enumerate(lines, 1):
        if len(line) != 1 + len(labels):
            raise ImportRefused(f"{path.name}, picture {number}: {len(line) - 1} values, the task has {len(labels)} "
                                "classes", field="against", expected=len(labels), got=len(line) - 1)  # fmt: skip
        if not (folder / line[0]).is_file():
            raise ImportRefused(f"{path.name}, picture {number}: there is no file {line[0][:200]!r} in {folder}",
                                field="against")  # fmt: skip
        try:
            row = [float(line[1 + column]) for column in order]
        except ValueError as error:
            raise ImportRefused(f"{path.name}, {line[0][:200]}: {error}", field="against") from error
        files.append(line[0])
        values.append(row)
    found = np.array(values, np.float64)
    if not np.isfinite(found).all():
        raise ImportRefused(f"{path.name} holds values that are not finite numbers", field="against")
    return Expected(folder, tuple(files), found, not _are_probabilities(found, score))


def agreement(backbone: Backbone, adapter: Adapter, expected: Expected) -> Agreement:
    """Ask the adapter about every picture. Raises a MediaError for one that cannot be read; OSError."""
    score = adapter.config.score
    limits = MediaLimits(max_frames=max(MediaLimits.max_frames, adapter.config.rows))
    results = Predictor(backbone, adapter, limits=limits).stream(expected.folder / name for name in expected.files)
    scores, off = [], 0.0
    for result, wanted in zip(results, expected.values, strict=True):
        scores.append(result.scores)
        if expected.logits and result.logits.ndim == 1:
            apart = result.logits.astype(np.float64) - wanted
            off = max(off, float(np.abs(apart - (apart.mean() if score == "softmax" else 0.0)).max()))
    found, wanted = np.stack(scores), expected.values
    right = np.stack([probabilities(row.astype(np.float32), score) for row in wanted]) if expected.logits else wanted
    apart = np.abs(found - right).max(1)
    return Agreement(
        len(found), int((found.argmax(1) == right.argmax(1)).sum()), float(apart.max()),
        off if expected.logits and adapter.config.views == 1 else None, expected.files[int(apart.argmax())],
    )  # fmt: skip


def _only_table(folder: Path) -> Path:
    found = sorted(folder.glob("*.csv"))
    if len(found) != 1:
        raise ImportRefused(f"{folder} holds {len(found)} CSV files; name the one to compare with by --against FILE",
                            field="against")  # fmt: skip
    return found[0]


def _are_probabilities(values: Values, score: str) -> bool:
    within = bool(((values >= 0) & (values <= 1)).all())
    return within and (score == "sigmoid" or bool((np.abs(values.sum(1) - 1) <= SUM_TOLERANCE).all()))
