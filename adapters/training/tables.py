"""A table of labelled files (CSV or JSON lines) -> its rows, whatever its columns, separators and slashes are.

It looks whether files exist, and opens none but the table.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from adapters.errors import TrainingError
from adapters.training.names import Part, label_of, part_of

JSON_SUFFIXES = (".jsonl", ".ndjson")
SEPARATORS = (",", ";", "\t", "|", " ")
LOOKED_AT = 50
"""Rows by which a table's form is known."""
PATHS = (
    "path", "file_name", "filename", "file_path", "filepath", "file", "files", "image_path", "image_name", "image_file",
    "image", "images", "img_path", "img", "imgpath", "picture", "photo", "video_path", "video_name", "video", "clip",
    "image_id", "video_id", "name", "id", "uri",
)  # fmt: skip
LABELS = (
    "label_name", "class_name", "classname", "category_name", "label", "labels", "class", "classes", "category",
    "categories", "target", "tag", "species", "breed", "action", "type", "class_id", "label_id", "classid",
)  # fmt: skip
SPLITS = ("split", "set", "subset", "partition", "part", "dataset", "data_set", "phase", "usage")


@dataclass(frozen=True)
class Row:
    """One line: ``file`` is where it should be, ``name`` relative to the table's folder."""

    line: int
    file: Path
    name: str
    label: str
    part: Part | None


@dataclass(frozen=True)
class _Columns:
    """Which cell is what; ``classes`` are the names of one-hot columns, by index, in place of a label."""

    path: int
    label: int | None
    part: int | None
    head: bool
    classes: dict[int, str]


_Lines = list[tuple[int, list[str]]]


def read_table(table: Path) -> list[Row]:
    """Rows in the table's order; paths are relative to its folder. Raises TrainingError with the line at fault."""
    text = _text(table)
    lines = _json_lines(table, text) if _is_json(table, text) else _csv_lines(table, text)
    columns = _columns(table, lines)
    return [_row(table, number, cells, columns) for number, cells in lines[columns.head :]]


def _row(table: Path, line: int, cells: list[str], columns: _Columns) -> Row:
    where = f"{table.name} line {line}"
    needed = max(columns.path, columns.label or 0, *columns.classes)
    wrong = len(cells) <= needed
    if not columns.head:
        wrong = len(cells) != 2 and (len(cells) != 3 or part_of(cells[2]) is None)
    if wrong:
        raise TrainingError(
            f"{where}: expected path,label or path,label,split with split train, val or test, got {len(cells)} fields: "
            f"{','.join(cells)[:80]!r}; other columns need a first line that names them", field="data", line=line,
        )  # fmt: skip
    name = cells[columns.path]
    label = cells[columns.label] if columns.label is not None else _chosen(where, cells, columns)
    part: Part | None = None
    if columns.part is not None and columns.part < len(cells) and cells[columns.part]:
        part = part_of(cells[columns.part])
        if part is None:
            raise TrainingError(
                f"{where}: the split is {cells[columns.part][:40]!r}, expected train, val or test",
                field="data",
                line=line,
            )
    file = _find(table.parent, name)
    if file and file.is_relative_to(table.parent):
        name = file.relative_to(table.parent).as_posix()
    return Row(line, file or table.parent / name, name, label_of(label, where), part)


def _chosen(where: str, cells: list[str], columns: _Columns) -> str:
    """The one class of a one-hot line."""
    chosen = [name for i, name in columns.classes.items() if cells[i] not in ("0", "0.0", "")]
    if len(chosen) != 1:
        raise TrainingError(
            f"{where}: {cells[columns.path][:80]} has {len(chosen)} classes; training takes one label for each file",
            field="data",
        )
    return chosen[0]


def _find(folder: Path, name: str) -> Path | None:
    """The file of that name; also with backslashes for slashes, and in another Unicode form."""
    for slashes in dict.fromkeys((name, name.replace("\\", "/"))):
        for form in (slashes, unicodedata.normalize("NFC", slashes), unicodedata.normalize("NFD", slashes)):
            try:
                if (folder / form).is_file():
                    return folder / form
            except (OSError, ValueError):  # a name that no file can have
                return None
    return None


def _columns(table: Path, lines: _Lines) -> _Columns:
    """Known names first; then which cells are files."""
    first = lines[0][1] if lines else []
    names = [cell.casefold().replace(" ", "_").replace("-", "_") for cell in first]
    path, label, part = (_known(names, known) for known in (PATHS, LABELS, SPLITS))
    later = [cells for _, cells in lines[1:LOOKED_AT]]
    a_file = any("." in cell[-6:-1] for cell in first) or any(_find(table.parent, cell) for cell in first if cell)
    named = path is not None and label is not None
    if (a_file and not named) or (path is None and label is None and _place(table, later) is None):
        swapped = _place(table, [cells for _, cells in lines[:LOOKED_AT]]) == 1
        return _Columns(int(swapped), int(not swapped), 2, head=False, classes={})
    place = _place(table, later)
    if place is not None and place != label:
        path = place
    if path is None:
        path = next((i for i in range(len(names)) if i not in (label, part)), None)
    rest = [i for i, name in enumerate(names) if i not in (path, part) and name]
    if label is None and len(rest) == 1:
        label = rest[0]
    one_hot = (
        label is None
        and len(rest) > 1
        and all(cells[i] in ("0", "1") for cells in later if len(cells) > max(rest) for i in rest)
    )
    if path is None or (label is None and not one_hot) or label == path:
        raise TrainingError(
            f"{table.name} has the columns {', '.join(first)[:200]}, and which one is the label is not clear; call "
            "two of them path and label", field="data", got=first[:20],
        )  # fmt: skip
    return _Columns(path, label, part, head=True, classes={i: first[i] for i in rest} if one_hot else {})


def _known(names: Sequence[str], known: Sequence[str]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)


def _place(table: Path, rows: Sequence[Sequence[str]]) -> int | None:
    """The column in which files are."""
    return next((i for cells in rows for i, cell in enumerate(cells) if cell and _find(table.parent, cell)), None)


def _text(table: Path) -> str:
    try:
        content = table.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise TrainingError(f"{table} cannot be read: {reason}; check its permissions", field="data") from error
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise _no_table(table, error) from error


def _no_table(table: Path, error: Exception) -> TrainingError:
    return TrainingError(
        f"{table} is no CSV file of path,label in UTF-8 ({error}); give a folder, or save the table as CSV in UTF-8",
        field="data",
    )


def _is_json(table: Path, text: str) -> bool:
    return table.suffix.casefold() in JSON_SUFFIXES or text.lstrip().startswith("{")


def _json_lines(table: Path, text: str) -> _Lines:
    """The first object's keys, then every object's values in their order."""
    found: _Lines = []
    keys: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry: dict[str, Any] = dict(json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise TrainingError(
                f"{table.name} line {number}: expected one JSON object such as "
                f'{{"file_name": "a.jpg", "label": "cat"}} ({error})', field="data", line=number,
            ) from error  # fmt: skip
        if not keys:
            keys = list(entry)
            found.append((number, keys))
        cells = [entry.get(key, "") for key in keys]
        found.append((number, [cell.strip() if isinstance(cell, str) else json.dumps(cell) for cell in cells]))
    return found


def _csv_lines(table: Path, text: str) -> _Lines:
    """Cells without space around them, by the separator that makes most sense of the first rows."""

    def parse(separator: str) -> Any:
        return csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)

    def sense(separator: str) -> tuple[bool, bool, bool]:
        try:
            rows = [[c.strip() for c in row] for row in islice(parse(separator), LOOKED_AT) if any(row)]
        except csv.Error:
            return False, False, False
        widths = {len(row) for row in rows}
        if not widths or max(widths) < 2:
            return False, False, False
        names = [cell.casefold() for cell in rows[0]]
        named = _known(names, PATHS) is not None and _known(names, LABELS) is not None
        return named, _place(table, rows) is not None, len(widths) == 1

    best = max(SEPARATORS, key=sense)  # the first of equals
    found: _Lines = []
    try:
        reader = parse(best)
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                found.append((reader.line_num, cells))
    except csv.Error as error:
        raise _no_table(table, error) from error
    return found
