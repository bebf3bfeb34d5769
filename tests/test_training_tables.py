"""Tables of labels as people write them: other columns, separators, slashes and encodings give the same labels."""

from __future__ import annotations

import unicodedata
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.errors import TrainingError
from adapters.training.data import find_examples
from adapters.training.tables import read_table
from tests.test_training_folders import NFC, NFD, lay, message, picture

TABLES = {
    "plain": "a/0.png,x\na/1.png,y\n",
    "path,class": "path,class\na/0.png,x\na/1.png,y\n",
    "filename;label": "filename;label\na/0.png;x\na/1.png;y\n",
    "image,category": "Image, Category\na/0.png, x\na/1.png, y\n",
    "file,target": "file,target\na/0.png,x\na/1.png,y",
    "mark": "\ufefffilename;label\na/0.png;x\na/1.png;y\n",
    "tabs": "image\tlabel\na/0.png\tx\na/1.png\ty\n",
    "quoted": '"path";"label"\n"a/0.png";"x"\n"a/1.png";"y"\n',
    "swapped": "x,a/0.png\ny,a/1.png\n",
    "swapped with a head": "label,path\nx,a/0.png\ny,a/1.png\n",
    "backslashes": "path,label\na\\0.png,x\n.\\a\\1.png,y\n",
    "an index": ",path,label\n0,a/0.png,x\n1,a/1.png,y\n",
    "foreign names": "bild,klasse\na/0.png,x\na/1.png,y\n",
    "more columns": "id,image_path,width,label\n1,a/0.png,8,x\n2,a/1.png,8,y\n",
    "numbers and names": "image,label,class_name\na/0.png,0,x\na/1.png,1,y\n",
    "one-hot": "image,x,y\na/0.png,1,0\na/1.png,0,1\n",
    "spaces": "a/0.png x\na/1.png y\n",
    "windows": "path,label\r\na/0.png,x\r\na/1.png,y\r\n",
    "json": '{"file_name": "a/0.png", "label": "x"}\n\n{"label": "y", "file_name": "a/1.png"}\n',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lay(tmp_path, "a", files=4)


@pytest.mark.parametrize("form", TABLES)
def test_forms_of_a_table(folder: Path, form: str) -> None:
    (folder / "t.csv").write_text(TABLES[form], newline="")
    listing = find_examples(folder / "t.csv")
    assert [(e.name, e.label, e.part) for e in listing.examples] == [("a/0.png", "x", None), ("a/1.png", "y", None)]
    assert listing.bad == ()


def test_utf_16_as_excel_writes_it(folder: Path) -> None:
    (folder / "t.txt").write_bytes("path\tlabel\na/0.png\tä\na/1.png\ty\n".encode("utf-16"))
    assert find_examples(folder / "t.txt").labels == ("y", "ä")


def test_separators_within_labels_are_text(folder: Path) -> None:
    (folder / "t.csv").write_text("path;label\na/0.png;one, two\na/1.png;three, four\n")
    assert find_examples(folder / "t.csv").labels == ("one, two", "three, four")
    (folder / "t.csv").write_text('path,label\na/0.png,"one; two"\na/1.png,three; four\n')
    assert find_examples(folder / "t.csv").labels == ("one; two", "three; four")


def test_unicode_forms_of_labels_and_paths(folder: Path) -> None:
    (folder / "a" / f"{NFC}.png").write_bytes(picture())
    (folder / "t.csv").write_text(f"path,label\na/{NFD}.png,{NFD}\na/1.png,{NFC}\na/2.png,x\n")
    listing = find_examples(folder / "t.csv")
    assert listing.labels == ("x", NFC)
    assert listing.bad == ()
    assert unicodedata.is_normalized("NFC", listing.examples[0].label)


def test_splits_by_other_names(folder: Path) -> None:
    lines = ["path,label,subset", "a/0.png,x,Training", "a/1.png,x,validation", "a/2.png,y,TRAIN", "a/3.png,y,valid"]
    (folder / "t.csv").write_text("\n".join(lines))
    assert [e.part for e in find_examples(folder / "t.csv").examples] == ["train", "val", "train", "val"]
    (folder / "t.csv").write_text("\n".join(lines).replace("valid\n", "holdout\n").replace("validation", "later"))
    assert "line 3: the split is 'later', expected train, val or test" in message(folder / "t.csv")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path,width,height\na/0.png,3,4\na/1.png,3,5\n", "which one is the label is not clear"),
        ("path\na/0.png\n", "which one is the label is not clear"),
        ("path,label\nb/0.png,x\nb/1.png,y\n", r"b/0.png \(no such file or directory\); paths are relative"),
        ("path,label\na/0.png,x\na/0.png,y\n", "line 3: a/0.png has two labels"),
        ('{"file_name": "a/0.png", "label": "x"}\n[1]\n', "line 2: expected one JSON object"),
    ],
)
def test_mistakes_are_one_line(folder: Path, text: str, told: str) -> None:
    (folder / "t.csv").write_text(text)
    with pytest.raises(TrainingError, match=told):
        find_examples(folder / "t.csv")


def test_other_encodings_and_archives_say_what_to_do(folder: Path) -> None:
    for content in ("path;label\na/0.png;Äpfel\n".encode("latin-1"), b"PK\x03\x04\x00\xff"):
        (folder / "t.csv").write_bytes(content)
        assert "save the table as CSV in UTF-8" in message(folder / "t.csv")


CELLS = st.sampled_from(["path", "label", "a/0.png", "a\\1.png", "x", "train", "0", "", '"', "{", "\0", "#", "é"])
LINES = st.lists(st.lists(CELLS | st.text(max_size=5), max_size=4), max_size=6)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, separator=st.sampled_from([",", ";", "\t", " ", "\\"]))
def test_any_text_is_a_table_or_one_line(folder: Path, lines: list[list[str]], separator: str) -> None:
    text = "\n".join(separator.join(cells) for cells in lines)
    (folder / "t.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    with suppress(TrainingError):
        read_table(folder / "t.csv")
