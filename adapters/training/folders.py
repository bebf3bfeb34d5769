"""Folders of labelled files -> what lies in which class and which part of a split, or what is not understood.

It goes by names and places, and opens a file only to know whether a folder holds pictures at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from adapters.errors import MediaError, TrainingError
from adapters.media import sniff
from adapters.training.names import Part, is_no_data, is_ours, label_of, like_parts, part_of
from adapters.training.tables import JSON_SUFFIXES

HEAD_BYTES = 512
"""Enough of a file to know its format by."""
MAX_WRAPPERS = 5
"""Folders around the data that hold nothing but one folder."""
MAX_TRIED = 100
"""Files that are looked at to know whether a folder holds pictures."""
MAX_PARTS = 3
TABLES = ("metadata.csv", "metadata.jsonl", "_classes.csv")
"""Tables of labels that lie beside the files: Hugging Face's and Roboflow's."""
EXPECTED = "expected DATA/train/<class>/* and DATA/val/<class>/* (and test), or DATA/<class>/*, or a CSV of path,label"


@dataclass
class FolderLayout:
    """``classes``: folder, label and part of each class. ``tables``: tables of labels and their parts."""

    classes: list[tuple[Path, str, Part | None]] = field(default_factory=list)
    tables: list[tuple[Path, Part | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stray: list[Path] = field(default_factory=list)


def layout_of(data: Path) -> FolderLayout:
    """How a folder is laid out. Raises TrainingError for folders that look like a split and are not understood."""
    root = _unwrapped(data)
    children = subfolders(root)
    table = _table_in(root)
    if table and all(part_of(child.name) and not subfolders(child) for child in children):
        return FolderLayout(tables=[(table, None)])
    among_others = not all(part_of(child.name) for child in children)
    parts = {
        child: part
        for child in children
        if (part := part_of(child.name)) and _is_split(child) and not (among_others and _holds_media(child, 1))
    }
    if parts:
        return _split(root, parts, [child for child in children if child not in parts])
    if table and len(children) == 1:
        return FolderLayout(tables=[(table, None)])
    _refuse_parts_as_classes(root, children)
    stray = _files(root)
    if len(children) > 1 and all(_is_class_first(child) for child in children):
        labels = {child: label_of(child.name, str(child)) for child in children}
        classes = [(part, label, part_of(part.name)) for child, label in labels.items() for part in subfolders(child)]
        return FolderLayout(classes, stray=stray)
    return FolderLayout([(child, label_of(child.name, str(child)), None) for child in children], stray=stray)


def subfolders(folder: Path) -> list[Path]:
    """Folders that may hold data, sorted; those that hold nothing but what training wrote do not."""
    found = (Path(entry.path) for entry in _entries(folder) if entry.is_dir())
    return [path for path in found if not _only_ours(path) and not _around(path, folder)]


def files_in(folder: Path) -> Iterator[Path]:
    """All files below, in a fixed order; folders that are links are not followed."""
    for entry in _entries(folder):
        if not entry.is_dir():
            yield Path(entry.path)
        elif not entry.is_symlink():
            yield from files_in(Path(entry.path))


def _files(folder: Path) -> list[Path]:
    """The files that lie in the folder itself."""
    return [Path(entry.path) for entry in _entries(folder) if entry.is_file()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted, without hidden files and what is no data; millions of files are not looked at."""
    try:
        with os.scandir(folder) as found:
            return sorted((e for e in found if not is_no_data(e.name) and not is_ours(e.name)), key=lambda e: e.name)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise TrainingError(
            f"{folder} cannot be read: {reason}; check its permissions", field="data", got=str(folder)
        ) from error


def _unwrapped(data: Path) -> Path:
    """The first folder on the way down that holds more than one folder, or more than one with pictures and a split."""
    for _ in range(MAX_WRAPPERS):
        inner = subfolders(data)
        if len(inner) > 1 and not any(part_of(path.name) for path in inner):  # images/train beside labels
            split = [path for path in inner if len({part_of(p.name) for p in subfolders(path)} - {None}) > 1]
            full = [path for path in inner if _holds_media(path)] if split else []
            inner = full if len(full) == 1 and full[0] in split else inner
        if len(inner) != 1 or not subfolders(inner[0]) or part_of(inner[0].name) or _table_in(data):
            break
        data = inner[0]
    return data


def _split(root: Path, parts: dict[Path, Part], others: Sequence[Path]) -> FolderLayout:
    """``root/{train,val,test}/<class>/*``, or a table of labels in each."""
    found = FolderLayout()
    for other in others:
        if part_of(other.name) and part_of(other.name) not in parts.values():
            found.notes.append(f"{other.name}/ has no class folders and is left alone")
        elif _holds_media(other):
            raise _not_understood(
                root,
                f"{other.name}/ is no part of a split; move it away, or if the others are classes too, give a CSV",
            )
        else:
            found.notes.append(f"{other.name}/ holds no pictures or clips and is left alone")
    if len(set(parts.values())) < len(parts):
        raise _not_understood(root, "two of these mean the same part; leave one of them")
    if "train" not in parts.values():
        raise _not_understood(root, "nothing of it is to train on")
    if len(parts) == 1:
        alone = next(iter(parts))
        raise _not_understood(root, f"nothing is to be held out; give {alone} itself, and a share of it is")
    wrapped = all(len(subfolders(folder)) == 1 for folder in parts)
    for folder, part in parts.items():
        inner = subfolders(folder)
        table = _table_in(folder)
        if table and len(inner) <= 1:
            found.tables.append((table, part))
            continue
        if len(inner) == 1 and (wrapped or part_of(inner[0].name)) and subfolders(inner[0]):  # train/train/<class>/*
            inner = subfolders(inner[0])
        found.stray += _files(folder)
        found.classes += [(child, label_of(child.name, str(child)), part) for child in inner]
    return found


def _refuse_parts_as_classes(root: Path, children: Sequence[Path]) -> None:
    """Raise TrainingError where class folders are called as the parts of a split are."""
    names = [child.name for child in children]
    if len(names) == 1 and part_of(names[0]):
        raise _not_understood(root, "it looks like a split without class folders")
    folds = like_parts(names, folds=True) and any(subfolders(child) for child in children)
    if folds or like_parts(names, folds=False):
        raise _not_understood(root, "they look like the parts of a split; if they are classes, give a CSV")


def _not_understood(root: Path, why: str) -> TrainingError:
    seen = ", ".join(f"{child.name}/ ({_content(child)})" for child in islice(subfolders(root), 8))
    table = table_beside(_files(root))
    hint = f", such as {table.name} if it lists them" if table else ""
    return TrainingError(f"{root} holds {seen}: {why}; {EXPECTED}{hint}", field="data", expected=EXPECTED, got=seen)


def table_beside(files: Sequence[Path]) -> Path | None:
    """A file among them that may be a table of labels."""
    return next((path for path in files if path.suffix.casefold() in (".csv", ".tsv", *JSON_SUFFIXES)), None)


def _content(folder: Path) -> str:
    inner = [path.name for path in subfolders(folder)]
    if not inner:
        return f"{len(_files(folder))} files"
    return f"{len(inner)} folders such as {inner[0]}/" if len(inner) > 1 else f"{inner[0]}/"


def _is_split(folder: Path) -> bool:
    return bool(subfolders(folder)) or _table_in(folder) is not None


def _is_class_first(folder: Path) -> bool:
    """``<class>/{train,val}/*``: nothing but parts lies in the folder, train among them."""
    inner = [part_of(entry.name) for entry in islice(_entries(folder), MAX_PARTS + 1)]
    return len(inner) > 1 and None not in inner and len(set(inner)) == len(inner) and "train" in inner


def _table_in(folder: Path) -> Path | None:
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def _holds_media(folder: Path, depth: int = 0) -> bool:
    """Whether a picture or clip is among the first files below; with ``depth`` 1 among those in the folder itself."""
    files = iter(_files(folder)) if depth else files_in(folder)
    for path in islice(files, MAX_TRIED):
        try:
            with path.open("rb") as file:
                sniff(file.read(HEAD_BYTES))
            return True
        except (MediaError, OSError):
            continue
    return False


def _only_ours(folder: Path) -> bool:
    """Whether training wrote all that is in a folder, and there is something."""
    try:
        with os.scandir(folder) as entries:
            found = 0
            for entry in entries:
                if is_no_data(entry.name):
                    continue
                found += 1
                deeper = entry.is_dir() and not entry.is_symlink()
                if not is_ours(entry.name) and not (deeper and _only_ours(Path(entry.path))):
                    return False
            return found > 0
    except OSError:
        return False  # whoever reads it says so


def _around(path: Path, folder: Path) -> bool:
    """Whether a link leads back to where it lies."""
    return path.is_symlink() and folder.resolve().is_relative_to(path.resolve())
