"""An import that is checked says how far it is from the training's own answers, and fails where that is far."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters.errors import ImportRefused
from adapters.importers.check import read_expected
from adapters.media import Preprocess
from adapters.scores import probabilities
from tests.imports import LABELS, Base, Bed
from tests.media_samples import encode, scene
from tests.official import official_logits, random_state
from tests.references import normalised


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def bed(tmp_path: Path, base: Base) -> Bed:
    return Bed(tmp_path, base)


def pictures(folder: Path) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    files = {f"{n}.png": folder / f"{n}.png" for n in range(3)}
    for number, file in enumerate(files.values()):
        file.write_bytes(encode(scene(90 + 20 * number, 70), "PNG"))
    return files


def table(path: Path, rows: dict[str, Sequence[float]], header: Sequence[str] | None = None) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if header:
            writer.writerow(["file", *header])
        writer.writerows([name, *values] for name, values in rows.items())
    return path


@torch.inference_mode()
def test_an_import_is_compared_with_the_trainings_own_scores(bed: Bed) -> None:
    folder, state = bed.folder / "pictures", random_state(bed.backbone)
    source, files = bed.checkpoint(state), pictures(bed.folder / "pictures")
    adapter = bed.made("adaptformer", source)
    transform = Preprocess(adapter.config.input)
    with_pillow = np.stack([transform(scene(90 + 20 * number, 70)) for number in range(3)])
    logits = official_logits(state, normalised(bed.backbone, torch.from_numpy(with_pillow))).numpy()
    table(folder / "scores.csv", dict(zip(files, logits.tolist(), strict=True)))
    told = bed.run("adaptformer", source, "--check", str(folder))
    assert told.exit_code == 0, told.output
    assert "checked: 3 of 3 pictures have the same best label" in told.output
    assert "in logits" in told.output
    # The same as probabilities, in other columns, in a file of another place.
    order = [3, 1, 4, 0, 2]
    shares = {
        name: probabilities(row.astype(np.float32), "softmax")[order] for name, row in zip(files, logits, strict=True)
    }
    other = table(bed.folder / "other.csv", shares, [LABELS[n] for n in order])
    told = bed.run("adaptformer", source, "--check", str(folder), "--against", str(other))
    assert told.exit_code == 0, told.output
    assert "in logits" not in told.output
    wrong = bed.run("adaptformer", source, "--check", str(folder), "--scale", "9")
    assert wrong.exit_code == 1
    assert "does not answer as expected" in wrong.stderr
    assert bed.out.exists()
    assert bed.run("adaptformer", source, "--against", str(other)).exit_code == 2


@pytest.mark.parametrize(
    ("rows", "header", "reason"),
    [
        ({}, None, "names 0 pictures"),
        ({"0.png": [1, 2, 3]}, None, "3 values, the task has 5 classes"),
        ({"0.png": [1, 2, 3, 4, 5], "9.png": [1, 2, 3, 4, 5]}, None, "no file '9.png'"),
        ({"0.png": [1, 2, 3, 4, "x"]}, None, "could not convert"),
        ({"0.png": [1, 2, 3, 4, "nan"]}, None, "not finite"),
        ({"0.png": [1, 2, 3, 4, 5]}, ["cat", "dog", "a/b", "été", "other"], "are not the labels"),
    ],
)
def test_a_table_that_cannot_be_compared_is_refused(
    tmp_path: Path, rows: dict[str, list[float]], header: list[str] | None, reason: str
) -> None:
    pictures(tmp_path)
    path = table(tmp_path / "t.csv", rows, header)
    with pytest.raises(ImportRefused, match=reason):
        read_expected(tmp_path, None, LABELS, "softmax")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ImportRefused, match="no CSV of UTF-8"):
        read_expected(tmp_path, path, LABELS, "softmax")
    path.unlink()
    with pytest.raises(ImportRefused, match="holds 0 CSV files"):
        read_expected(tmp_path, None, LABELS, "softmax")


def test_columns_of_other_names_are_taken_in_their_order(tmp_path: Path) -> None:
    pictures(tmp_path)
    path = table(tmp_path / "t.csv", {"0.png": [0.1, 0.2, 0.3, 0.4, 0]}, ["0", "1", "2", "3", "4"])
    found = read_expected(tmp_path, path, LABELS, "softmax")
    assert (found.files, found.values.tolist(), found.logits) == (("0.png",), [[0.1, 0.2, 0.3, 0.4, 0]], False)
    table(path, {"0.png": [0.1, 0.2, 0.3, 0.5, 0]})
    assert read_expected(tmp_path, path, LABELS, "softmax").logits
    assert not read_expected(tmp_path, path, LABELS, "sigmoid").logits
