"""Labelled files on disk -> what to train on and what to hold out; what is wrong with them is one clear line.

It knows folders, CSV files and splits; it looks at the first bytes of a file, and knows no pixels and no model.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapters.config import MAX_LABEL_CHARS, Modality
from adapters.errors import MediaError, TrainingError
from adapters.media import sniff

MAX_FILES = 2_000_000
HEAD_BYTES = 512
"""Enough of a file to know its format by."""
NOUNS: dict[Modality, str] = {"image": "picture", "video": "clip"}
SPLITS = {"train": False, "val": True}
"""Names of a split that the data brings along -> whether it is held out."""


@dataclass(frozen=True)
class Example:
    """One file and its label.

    ``name`` is for people; ``place`` is what must not be empty, a class or its folder; ``held_out`` is None where
    the data does not say.
    """

    path: Path
    name: str
    label: str
    place: str
    held_out: bool | None = None


@dataclass(frozen=True)
class BadFile:
    """A file that is left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """All that a data set holds. ``places``: class or class folder -> its label."""

    modality: Modality
    places: Mapping[str, str]
    examples: tuple[Example, ...]
    bad: tuple[BadFile, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Sorted; their order is that of the adapter's classes."""
        return tuple(sorted(set(self.places.values())))

    @property
    def digest(self) -> str:
        """sha256 over the examples' names, labels and sizes in bytes: other data, another digest."""
        digest = hashlib.sha256()
        for e in self.examples:
            digest.update(repr((e.name, e.label, e.held_out, e.path.stat().st_size)).encode())
        return digest.hexdigest()


def find_examples(data: Path) -> Listing:
    """``DATA/{train,val}/<class>/*``, ``DATA/<class>/*``, or a CSV of ``path,label`` (and ``split``, if named).

    Files whose first bytes are no picture or clip are listed as bad. Raises TrainingError where nothing can be
    learnt: no files, one class, a class without files, pictures among clips, a label that is too long.
    """
    if data.is_dir():
        found = _folders(data)
    elif data.is_file():
        found = _table(data)
    else:
        raise TrainingError(
            f"{data} does not exist; give a folder with one folder of pictures or clips per class, or a CSV file",
            field="data", got=str(data),
        )  # fmt: skip
    examples, bad, kinds = _sniffed(found.files)
    modality = _modality(data, kinds, bad)
    listing = Listing(modality, found.places, tuple(examples), (*found.bad, *bad))
    check_classes(listing, examples)
    return listing


def check_classes(listing: Listing, readable: Iterable[Example]) -> None:
    """Raise TrainingError unless there are two classes, and every place has a readable file."""
    full = {example.place for example in readable}
    for place in listing.places:
        if place not in full:
            raise TrainingError(
                f"class '{place}' has no readable {NOUNS[listing.modality]}; put some there or remove it",
                field="data", got=place,
            )  # fmt: skip
    if len(listing.labels) < 2:
        raise TrainingError(
            f"there is one class, '{listing.labels[0]}'; a task needs at least two to choose from",
            field="data", expected=2, got=1,
        )  # fmt: skip


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out: as the data says, or ``share`` of every class, at least one, by ``seed``.

    Raises TrainingError where a class would have nothing to train on, or nothing would be held out.
    """
    if any(e.held_out is not None for e in examples):
        train = [i for i, e in enumerate(examples) if not e.held_out]
        held = [i for i, e in enumerate(examples) if e.held_out]
        if not held:
            raise TrainingError("the split holds nothing out: put some files of each class under 'val'", field="val")
        lost = {e.label for e in examples} - {examples[i].label for i in train}
        if lost:
            raise TrainingError(
                f"class '{min(lost)}' is in 'val' but not in 'train'; give it files there", field="train"
            )
        return train, held
    by_label: dict[str, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        by_label[example.label].append(i)
    random, held_out = np.random.default_rng(seed), set[int]()
    for label, members in sorted(by_label.items()):
        if len(members) < 2:
            raise TrainingError(
                f"class '{label}' has one file; it needs at least two, one to train on and one to hold out",
                field="data", expected=2, got=1,
            )  # fmt: skip
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out |= {members[k] for k in random.permutation(len(members))[:count]}
    everything = range(len(examples))
    return [i for i in everything if i not in held_out], sorted(held_out)


@dataclass(frozen=True)
class _Found:
    """Files before any is opened."""

    files: list[Example]
    places: dict[str, str]
    bad: list[BadFile]


def _folders(root: Path) -> _Found:
    top = _subfolders(root)
    fixed = {p.name: p for p in top if p.name in SPLITS and _subfolders(p)}
    parts: list[tuple[Path, bool | None]]
    parts = [(fixed[name], held) for name, held in SPLITS.items()] if len(fixed) == len(SPLITS) else [(root, None)]
    found = _Found([], {}, [])
    for part, held_out in parts:
        for folder in _subfolders(part):
            _check_label(folder.name, str(folder))
            place = folder.relative_to(root).as_posix()
            found.places[place] = folder.name
            for path in _files(folder):
                _bound(len(found.files))
                found.files.append(Example(path, path.relative_to(root).as_posix(), folder.name, place, held_out))
    if parts[0][1] is None:
        found.bad.extend(BadFile(p.name, "it is in no class folder") for p in _visible(root) if p.is_file())
    return found


def _table(path: Path) -> _Found:
    """Paths are relative to the CSV file's folder. A first row ``path,label[,split]`` is taken as its head."""
    found, labels = _Found([], {}, []), dict[Path, str]()
    for line, row in _csv_rows(path):
        if len(row) != 2 and (len(row) != 3 or row[2] not in SPLITS):
            raise TrainingError(
                f"{path.name} line {line}: expected path,label or path,label,split with split train or val, got "
                f"{len(row)} fields: {','.join(row)[:80]!r}", field="data", line=line,
            )  # fmt: skip
        file, label = path.parent / row[0], row[1]
        _check_label(label, f"{path.name} line {line}")
        if labels.setdefault(file, label) != label:
            raise TrainingError(
                f"{path.name} line {line}: {row[0]} has two labels, '{labels[file]}' and '{label}'; leave one",
                field="data", line=line,
            )  # fmt: skip
        _bound(len(found.files))
        found.places[label] = label
        found.files.append(Example(file, row[0], label, label, SPLITS[row[2]] if len(row) == 3 else None))
    if len({e.path for e in found.files}) < len(found.files):
        repeated = Counter(e.name for e in found.files).most_common(1)[0][0]
        raise TrainingError(f"{path.name} lists {repeated} more than once; leave one line of it", field="data")
    if len({e.held_out is None for e in found.files}) > 1:
        raise TrainingError(f"{path.name} gives a split for some lines only; give it for all or for none", field="data")
    return found


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                cells = [cell.strip() for cell in row]
                head = reader.line_num == 1 and [c.lower() for c in cells[:2]] == ["path", "label"]
                if any(cells) and not head:
                    yield reader.line_num, cells
    except (csv.Error, UnicodeDecodeError) as error:
        raise TrainingError(
            f"{path} is no CSV file of path,label in UTF-8 ({error}); give a folder or such a file", field="data"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _sniffed(files: Iterable[Example]) -> tuple[list[Example], list[BadFile], dict[Modality, list[str]]]:
    examples, bad, kinds = [], [], defaultdict[Modality, list[str]](list)
    for example in files:
        try:
            with example.path.open("rb") as file:
                kinds[sniff(file.read(HEAD_BYTES))].append(example.name)
            examples.append(example)
        except (MediaError, OSError, ValueError) as error:  # ValueError: a name from a table that no file can have
            bad.append(BadFile(example.name, reason_of(error)))
    return examples, bad, kinds


def _modality(data: Path, kinds: dict[Modality, list[str]], bad: Sequence[BadFile]) -> Modality:
    if len(kinds) > 1:
        raise TrainingError(
            f"{data} mixes {len(kinds['image'])} pictures with {len(kinds['video'])} clips, such as "
            f"{kinds['image'][0]} and {kinds['video'][0]}; a task takes one or the other",
            field="data", expected="pictures or clips", got="both",
        )  # fmt: skip
    if not kinds:
        seen = f"; {len(bad)} files are none, such as {bad[0].name}" if bad else ""
        raise TrainingError(
            f"no picture or clip was found in {data}{seen}; expected one folder of them per class", field="data", got=0
        )
    return next(iter(kinds))


def _check_label(label: str, where: str) -> None:
    if not 1 <= len(label) <= MAX_LABEL_CHARS:
        raise TrainingError(
            f"{where[:120]}: the label has {len(label)} characters, expected 1 to {MAX_LABEL_CHARS}; shorten it",
            field="label", limit=MAX_LABEL_CHARS, value=len(label),
        )  # fmt: skip
    if not label.isprintable():  # so is no byte of a folder's name that is not UTF-8
        raise TrainingError(f"{where[:120]!r}: the label has characters that cannot be shown; rename it", field="label")


def _bound(count: int) -> None:
    if count >= MAX_FILES:
        raise TrainingError(f"the data has more than {MAX_FILES} files; give fewer", field="data", limit=MAX_FILES)


def _subfolders(folder: Path) -> list[Path]:
    return [p for p in _visible(folder) if p.is_dir()]


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise _unreadable(folder, error) from error


def _files(folder: Path) -> Iterator[Path]:
    """All files below, in a fixed order; hidden ones are no data."""
    for path in _visible(folder):
        if not path.is_dir():
            yield path
        elif not path.is_symlink():
            yield from _files(path)


def reason_of(error: Exception) -> str:
    """A few words without the path."""
    if isinstance(error, MediaError):
        return error.message
    return ((error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__).lower()


def _unreadable(path: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"{path} cannot be read: {reason_of(error)}; check its permissions", field="data", got=str(path)
    )
