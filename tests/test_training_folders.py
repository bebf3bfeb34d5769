"""Layouts of folders that people have: understood, or ended with a line; never a classifier of 'train' and 'test'."""

from __future__ import annotations

import io
import unicodedata
from itertools import count
from pathlib import Path

import pytest
from PIL import Image

from adapters.errors import TrainingError
from adapters.training.data import find_examples, list_examples, split
from adapters.training.names import like_parts, part_of

NFC, NFD = (unicodedata.normalize(form, "Äpfel") for form in ("NFC", "NFD"))
_numbers = count()


def picture() -> bytes:
    file = io.BytesIO()
    number = next(_numbers)
    Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(file, "PNG")
    return file.getvalue()


def lay(root: Path, *places: str, files: int = 3) -> Path:
    """``files`` pictures in each place; ``train+val/cat+dog`` stands for the four folders of it."""
    for place in places:
        folders = [root]
        for step in place.split("/"):
            folders = [folder / name for folder in folders for name in step.split("+")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(files):
                (folder / f"{i}.png").write_bytes(picture())
    return root


def parts(root: Path, held_out: str | None = None) -> dict[str | None, int]:
    """Part -> files of it that training uses; the classes are cat and dog."""
    listing = find_examples(root, held_out)  # type: ignore[arg-type]
    assert listing.labels == ("cat", "dog")
    assert listing.bad == ()
    found: dict[str | None, int] = {}
    for example in listing.examples:
        found[example.part] = found.get(example.part, 0) + 1
    return found


def message(root: Path) -> str:
    with pytest.raises(TrainingError) as caught:
        find_examples(root)
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("place", "held_out"),
    [
        ("train+valid+test/cat+dog", "val"),
        ("train+validation+test/cat+dog", "val"),
        ("train+test/cat+dog", "test"),
        ("Train+Val+TEST/cat+dog", "val"),
        ("training+testing/cat+dog", "test"),
        ("train+dev/cat+dog", "val"),
        ("train+eval/cat+dog", "val"),
        ("dataset/train+val/cat+dog", "val"),
        ("my data/v2/images/train+val+test/cat+dog", "val"),
        ("train_set+test-set/cat+dog", "test"),
        ("train+val/images/cat+dog", "val"),
        ("cat+dog/train+val", "val"),
    ],
)
def test_splits_that_people_have(tmp_path: Path, place: str, held_out: str) -> None:
    assert parts(lay(tmp_path, place)) == {"train": 6, held_out: 6}


def test_the_third_part_is_left_alone_and_said(tmp_path: Path) -> None:
    lay(tmp_path, "train+valid+test/cat+dog", "test/bird")
    listing = find_examples(tmp_path)
    assert listing.notes == ("'test' (9 files) is left alone; 'val' is held out",)
    train, held = split(listing.examples, 0.2, 0)
    assert {listing.examples[i].name.split("/")[0] for i in held} == {"valid"}
    assert len(train) == len(held) == 6
    assert len(list_examples(tmp_path).examples) == 21
    with pytest.raises(TrainingError, match="class 'bird' is in 'test' but not in 'train'"):
        split(find_examples(tmp_path, "test").examples, 0.2, 0)


def test_another_part_can_be_held_out(tmp_path: Path) -> None:
    lay(tmp_path, "train+val+test/cat+dog")
    assert parts(tmp_path, "test") == {"train": 6, "test": 6}
    (tmp_path / "val").rename(tmp_path.with_name("away"))
    with pytest.raises(TrainingError, match="no 'val' to hold out; it has test, train"):
        find_examples(tmp_path, "val")
    with pytest.raises(TrainingError, match="it brings no split"):
        find_examples(lay(tmp_path / "plain", "cat+dog"), "test")


def test_kaggles_doubled_folders_and_what_lies_beside_a_split(tmp_path: Path) -> None:
    lay(tmp_path, "training_set/training_set/cat+dog", "test_set/test_set/cat+dog")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "about.txt").write_text("about")
    assert parts(tmp_path) == {"train": 6, "test": 6}
    assert find_examples(tmp_path).notes == ("docs/ holds no pictures or clips and is left alone",)


def test_pictures_beside_labels_of_another_kind(tmp_path: Path) -> None:
    lay(tmp_path, "images/train+val/cat+dog")
    for part in ("train", "val"):
        (tmp_path / "labels" / part).mkdir(parents=True)
        (tmp_path / "labels" / part / "0.txt").write_text("0 0.5 0.5 1 1")
    assert parts(tmp_path) == {"train": 6, "val": 6}


def test_an_unlabelled_test_folder_is_left_alone(tmp_path: Path) -> None:
    assert parts(lay(tmp_path, "train+val/cat+dog", "test")) == {"train": 6, "val": 6}
    assert find_examples(tmp_path).notes == ("test/ has no class folders and is left alone",)


@pytest.mark.parametrize(
    "places",
    [
        ["train/cat+dog"],
        ["test/cat+dog"],
        ["train/cat+dog", "test"],
        ["train+foo/cat+dog"],
        ["train+val+foo/cat+dog"],
        ["train+val+valid/cat+dog"],
        ["val+test/cat+dog"],
        ["train1+train2/cat+dog"],
        ["train1+train2+test/cat+dog"],
        ["fold1+fold2+fold3/cat+dog"],
        ["fold_0+fold_1/train+test/cat+dog"],
        ["seg_train/seg_train/cat+dog", "seg_test/seg_test/cat+dog", "seg_pred"],
        ["train+valid+test"],
        ["Train+Test"],
        ["train"],
        ["train1+train2"],
        ["fold0+fold1+fold2"],
        ["part1+part2/cat+dog"],
        ["trainA+trainB+testA+testB"],
        ["cat_train+cat_test+dog_train+dog_test"],
        ["data/train+valid+test"],
    ],
    ids=" ".join,
)
def test_what_looks_like_a_split_and_is_none_ends_with_a_line(tmp_path: Path, places: list[str]) -> None:
    told = message(lay(tmp_path, *places))
    assert "expected DATA/train/<class>/* and DATA/val/<class>/*" in told
    for name in places[0].split("/")[0].split("+"):
        assert f"{name}/ (" in told or name == "data"


@pytest.mark.parametrize(
    ("places", "labels"),
    [
        (["train+car+bus"], ("bus", "car", "train")),
        (["test+control"], ("control", "test")),
        (["valid+invalid"], ("invalid", "valid")),
        (["bullet_train+steam_train+car"], ("bullet_train", "car", "steam_train")),
        (["part1+part2"], ("part1", "part2")),
        (["cat+dog/morning+evening"], ("cat", "dog")),
        (["train+car+bus", "train/old"], ("bus", "car", "train")),
        (["0+1+2"], ("0", "1", "2")),
        (["animals/cat+dog"], ("cat", "dog")),
    ],
    ids=" ".join,
)
def test_classes_stay_classes(tmp_path: Path, places: list[str], labels: tuple[str, ...]) -> None:
    listing = find_examples(lay(tmp_path, *places))
    assert listing.labels == labels
    assert {e.part for e in listing.examples} == {None}


def test_what_systems_leave_behind_is_no_data(tmp_path: Path) -> None:
    lay(tmp_path, "train+val/cat+dog", "__MACOSX/train/cat", "train/.ipynb_checkpoints", "@eaDir")
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
        (tmp_path / "train" / "cat" / name).write_bytes(picture())
    assert parts(tmp_path) == {"train": 6, "val": 6}


@pytest.mark.parametrize("place", ["cat+dog", "train+val/cat+dog"])
def test_what_training_wrote_is_no_data(tmp_path: Path, place: str) -> None:
    lay(tmp_path, place)
    expected = find_examples(tmp_path)
    for folder in (tmp_path, tmp_path / "out", tmp_path / "runs" / "1", next(tmp_path.glob("**/cat"))):
        (folder / "a.safetensors.vpt.report").mkdir(parents=True)
        for name in ("a.safetensors", "a.safetensors.resume", "a.safetensors.vpt.report/index.html"):
            (folder / name).write_bytes(b"x")
    again = find_examples(tmp_path)
    assert (again.labels, again.digest, again.bad) == (expected.labels, expected.digest, ())


@pytest.mark.parametrize("places", [[NFC, NFD], [f"train/{NFC}", f"val/{NFD}"]])
def test_unicode_forms_of_a_name_are_one_class(tmp_path: Path, places: list[str]) -> None:
    lay(tmp_path, *places, places[0].replace(NFC, "dog"), places[1].replace(NFD, "dog"))
    assert find_examples(tmp_path).labels == ("dog", NFC)


def test_classes_that_differ_in_capitals_are_named(tmp_path: Path) -> None:
    listing = find_examples(lay(tmp_path, "train/cat+dog", "val/Cat+dog"))
    with pytest.raises(TrainingError, match="'Cat' is in 'val' but not in 'train', which has 'cat'; give both"):
        split(listing.examples, 0.2, 0)


def test_links_are_followed_but_not_back(tmp_path: Path) -> None:
    lay(tmp_path / "store", "a+b", files=2)
    data = tmp_path / "data"
    data.mkdir()
    (data / "cat").symlink_to(tmp_path / "store" / "a")
    (data / "dog").symlink_to(tmp_path / "store" / "b")
    (data / "self").symlink_to(data)
    assert parts(data) == {None: 4}


@pytest.mark.parametrize("where", ["", "train"])
def test_hugging_faces_metadata(tmp_path: Path, where: str) -> None:
    """A table beside the files of a folder, or of each part of a split."""
    for folder in (tmp_path / where, tmp_path / where.replace("train", "test")):
        lay(folder, "", files=4)
        rows = [f"{i}.png,{('cat', 'dog')[i % 2]}" for i in range(4)]
        (folder / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    assert parts(tmp_path) == ({"train": 4, "test": 4} if where else {None: 4})
    names = {e.name for e in find_examples(tmp_path).examples}
    assert f"{where}/0.png".strip("/") in names


def test_metadata_that_names_files_of_the_parts(tmp_path: Path) -> None:
    lay(tmp_path, "train+validation")
    lines = [f'{{"file_name": "{p}/{i}.png", "label": "{c}"}}' for p in ("train", "validation") for i, c in
             ((0, "cat"), (1, "dog"), (2, "cat"))]  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert parts(tmp_path) == {"train": 3, "val": 3}


def test_roboflows_table_of_ones(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        lay(tmp_path, part)
        (tmp_path / part / "_classes.csv").write_text("filename, cat, dog\n0.png, 1, 0\n1.png, 0, 1\n2.png, 1, 0\n")
    assert parts(tmp_path) == {"train": 3, "val": 3}
    (tmp_path / "train" / "_classes.csv").write_text("filename, cat, dog\n0.png, 1, 1\n1.png, 0, 1\n")
    assert "0.png has 2 classes; training takes one label" in message(tmp_path)


def test_files_in_no_class_folder_name_the_way_out(tmp_path: Path) -> None:
    lay(tmp_path, "")
    assert "0.png (it is in no class folder)" in message(tmp_path)
    (tmp_path / "labels.csv").write_text("path,label\n")
    assert "if labels.csv lists its files and their labels, give that file instead" in message(tmp_path)


def test_a_table_beside_a_flat_split_is_pointed_out(tmp_path: Path) -> None:
    (lay(tmp_path, "train+test") / "train.csv").write_text("image_id,label\n")
    assert "a CSV of path,label, such as train.csv if it lists them" in message(tmp_path)


def test_names() -> None:
    assert [part_of(name) for name in ("Training", "VALID", "dev", "tests", "test_images")] == [
        "train", "val", "val", "test", "test",
    ]  # fmt: skip
    assert not any(part_of(name) for name in ("trains", "value", "contest", "device", "evaluate me"))
    assert not like_parts(["cat", "dog"], folds=True)
