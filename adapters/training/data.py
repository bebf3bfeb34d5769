"""Labelled files on disk -> what to train on and what to hold out; what is wrong with them is one clear line.

It knows examples and parts; how folders and tables are read is ``folders.py`` and ``tables.py``. It looks at the first
bytes of a file, and knows no pixels and no model.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from adapters.config import Modality
from adapters.errors import MediaError, TrainingError
from adapters.media import sniff
from adapters.training.folders import HEAD_BYTES, TABLES, files_in, layout_of, table_beside
from adapters.training.names import Part, part_of
from adapters.training.tables import read_table

MAX_FILES = 2_000_000
NOUNS: dict[Modality, str] = {"image": "picture", "video": "clip"}


@dataclass(frozen=True)
class Example:
    """One file and its label.

    ``name`` is for people; ``place`` is what must not be empty, a class or its folder; ``part`` is None where the data
    brings no split.
    """

    path: Path
    name: str
    label: str
    place: str
    part: Part | None = None


@dataclass(frozen=True)
class BadFile:
    """A file that is left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ClassPlace:
    """A class, or its folder in one part of a split, which must not be empty."""

    label: str
    part: Part | None = None


@dataclass(frozen=True)
class DataListing:
    """What a data set holds; ``places`` by the name of a class or of its folder. ``notes``: how it was understood."""

    modality: Modality
    places: Mapping[str, ClassPlace]
    examples: tuple[Example, ...]
    bad: tuple[BadFile, ...]
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Sorted; their order is that of the adapter's classes."""
        return tuple(sorted({place.label for place in self.places.values()}))

    @property
    def digest(self) -> str:
        """sha256 over the examples' names, labels and sizes in bytes: other data, another digest."""
        digest = hashlib.sha256()
        for e in self.examples:
            digest.update(repr((e.name, e.label, e.part, e.path.stat().st_size)).encode())
        return digest.hexdigest()


def find_examples(data: Path, held_out: Part | None = None) -> DataListing:
    """What training uses of the data: where it brings a split, ``train`` and the part that is held out.

    ``held_out`` names that part; otherwise it is ``val``, or ``test`` where there is no ``val``. Files whose first
    bytes are no picture or clip are listed as bad. Raises TrainingError where nothing can be learnt: no files, one
    class, a class without files, pictures among clips, a label that is too long, folders like a split that is none.
    """
    listing = _without_the_third_part(list_examples(data), held_out)
    check_classes(listing, listing.examples)
    return listing


def list_examples(data: Path) -> DataListing:
    """All labelled files: ``DATA/<class>/*``, ``DATA/{train,val,test}/<class>/*``, or a table of paths and labels.

    Raises TrainingError as ``find_examples`` does, but for a class that has no files or no other beside it.
    """
    if data.is_dir():
        found = _folders(data)
    elif data.is_file():
        found = _Found()
        _add_table(found, data)
    else:
        raise TrainingError(
            f"{data} does not exist; give a folder with one folder of pictures or clips per class, or a CSV file",
            field="data", got=str(data),
        )  # fmt: skip
    examples, bad, kinds = _sniffed(found.files)
    modality = _modality(data, kinds, [*found.bad, *bad])
    return DataListing(modality, found.places, tuple(examples), (*found.bad, *bad), tuple(found.notes))


def _without_the_third_part(listing: DataListing, held_out: Part | None) -> DataListing:
    """Leave out what is neither trained on nor held out, and say so."""
    there = {e.part for e in listing.examples} - {None}
    if held_out and held_out not in there:
        seen = f"it has {', '.join(sorted(filter(None, there)))}" if there else "it brings no split"
        raise TrainingError(f"the data has no '{held_out}' to hold out; {seen}", field="held_out", got=held_out)
    if not there:
        return listing
    chosen: Part = held_out or ("val" if "val" in there else "test")
    used = [e for e in listing.examples if e.part in ("train", chosen)]
    third: Part = "test" if chosen == "val" else "val"
    unused = {e.place for e in listing.examples} - {e.place for e in used}
    notes = list(listing.notes)
    if left := len(listing.examples) - len(used):
        notes.append(f"'{third}' ({left} files) is left alone; '{chosen}' is held out")
    places = {name: p for name, p in listing.places.items() if p.part != third and name not in unused}
    return replace(listing, examples=tuple(used), places=places, notes=tuple(notes))


def check_classes(listing: DataListing, readable: Iterable[Example]) -> None:
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
    if any(e.part for e in examples):
        return _given_split(examples)
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


def _given_split(examples: Sequence[Example]) -> tuple[list[int], list[int]]:
    train = [i for i, e in enumerate(examples) if e.part == "train"]
    held = [i for i, e in enumerate(examples) if e.part != "train"]
    if not held:
        raise TrainingError("the split holds nothing out: put some files of each class under 'val'", field="val")
    known = {examples[i].label for i in train}
    lost = {examples[i].label for i in held} - known
    if lost:
        name, part = min(lost), examples[held[0]].part
        alike = next((label for label in known if label.casefold() == name.casefold()), None)
        raise TrainingError(
            f"class '{name}' is in '{part}' but not in 'train'{f', which has {alike!r}' if alike else ''}; "
            f"{'give both the same name' if alike else 'give it files there'}", field="train",
        )  # fmt: skip
    return train, held


@dataclass
class _Found:
    """Files before any is opened."""

    files: list[Example] = field(default_factory=list)
    places: dict[str, ClassPlace] = field(default_factory=dict)
    bad: list[BadFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _folders(root: Path) -> _Found:
    layout = layout_of(root)
    found = _Found(notes=layout.notes)
    for folder, label, part in layout.classes:
        place = folder.relative_to(root).as_posix()
        found.places[place] = ClassPlace(label, part)
        for path in files_in(folder):
            _bound(len(found.files))
            found.files.append(Example(path, path.relative_to(root).as_posix(), label, place, part))
    for table, part in layout.tables:
        _add_table(found, table, table.parent.relative_to(root), part)
    found.bad += [BadFile(p.relative_to(root).as_posix(), "it is in no class folder") for p in layout.stray]
    if not layout.classes and not layout.tables and (hint := table_beside(layout.stray)):
        raise TrainingError(
            f"{root} has no class folders; if {hint.name} lists its files and their labels, give that file instead",
            field="data",
        )
    return found


def _add_table(found: _Found, table: Path, place: Path = Path(), part: Part | None = None) -> None:
    """``place``: the table's folder below the data, which is what its paths are relative to."""
    labels: dict[Path, str] = {e.path: e.label for e in found.files}
    for row in read_table(table):
        if labels.setdefault(row.file, row.label) != row.label:
            raise TrainingError(
                f"{table.name} line {row.line}: {row.name} has two labels, '{labels[row.file]}' and '{row.label}'; "
                "leave one",
                field="data", line=row.line,
            )  # fmt: skip
        _bound(len(found.files))
        found.places[row.label] = ClassPlace(row.label)
        name, given = (place / row.name).as_posix(), part or row.part
        if given is None and table.name in TABLES and len(parts := Path(row.name).parts) > 1:
            given = part_of(parts[0])
        found.files.append(Example(row.file, name, row.label, row.label, given))
    if len({e.path for e in found.files}) < len(found.files):
        repeated = Counter(e.name for e in found.files).most_common(1)[0][0]
        raise TrainingError(f"{table.name} lists {repeated} more than once; leave one line of it", field="data")
    if len({e.part is None for e in found.files}) > 1:
        raise TrainingError(
            f"{table.name} gives a split for some lines only; give it for all or for none", field="data"
        )


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
        seen = f"; {len(bad)} files are none, such as {bad[0].name} ({bad[0].reason})" if bad else ""
        wanted = "paths are relative to its folder" if data.is_file() else "expected one folder of them per class"
        raise TrainingError(f"no picture or clip was found in {data}{seen}; {wanted}", field="data", got=0)
    return next(iter(kinds))


def _bound(count: int) -> None:
    if count >= MAX_FILES:
        raise TrainingError(
            f"the data has more than {MAX_FILES} files, which no setting changes; give fewer",
            field="data",
            limit=MAX_FILES,
        )


def reason_of(error: Exception) -> str:
    """A few words without the path."""
    if isinstance(error, MediaError):
        return error.message
    return ((error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__).lower()
