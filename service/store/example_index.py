"""A task's examples as frozen values, their one JSON form, and each step that changes them on the disk.

    {"next": 3, "bytes": 5120, "examples": {"<sha256>": {"number": 1, "label": "cat", "modality": "image",
     "media_type": "image/jpeg", "bytes": 5120, "added": "2026-11-26T06:00:00+00:00"}}}

It keeps nothing in memory and decides nothing; ``service.store.examples`` does.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Final, Self, cast

from adapters.atomic import replacing
from adapters.config import Modality, is_task_name
from service.store.files import NotConfirmed, may_hold, safe_name
from service.store.staging import left_by, sync_folder

FOLDER: Final = "examples"
INDEX: Final = "index.json"
CLOCK_NS: Final = 100_000_000
"""By how much the kernel's times of files may be behind the clock, and more."""
DAY_NS: Final = 86_400_000_000_000
_DIGEST = re.compile(r"[0-9a-f]{64}")

Signature = tuple[int, int, int]
"""By which one state of an index is told from another: time in ns, which always grows, number and size of its file."""


@dataclass(frozen=True, slots=True)
class ExampleDraft:
    """An example on its way in; its ``data`` is left out once it lies on the disk."""

    label: str
    modality: Modality
    media_type: str
    data: bytes = field(repr=False)
    size: int = -1

    def stored(self) -> ExampleDraft:
        """The same without its bytes."""
        return replace(self, data=b"", size=len(self.data))


@dataclass(frozen=True, slots=True)
class ExampleFile:
    """One labelled picture or clip of a task. ``number`` grows in the order of adding; ``added`` is ISO 8601 in UTC."""

    number: int
    digest: str
    label: str
    modality: Modality
    media_type: str
    bytes: int
    added: str
    folder: Path = field(repr=False)

    @property
    def path(self) -> Path:
        """Where its bytes are."""
        return self.folder / "files" / self.digest


@dataclass(frozen=True)
class Tally:
    """What an addition came to: examples that are new, that were there, and that got another label.

    ``digests`` has one for each that was sent.
    """

    examples: ExampleSet
    digests: Sequence[str]
    added: int
    duplicates: int
    moved: int


@dataclass(frozen=True)
class ExampleSet:
    """A task's examples as of one moment, in the order of adding."""

    task: str
    folder: Path
    items: tuple[ExampleFile, ...] = ()
    next: int = 1
    signature: Signature | None = field(default=None, compare=False)

    @classmethod
    def empty(cls, root: Path, task: str) -> Self:
        """Raises BadTaskName."""
        return cls(task, folder_of(root, task))

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """How many of each label, in the order of the labels."""
        return dict(sorted(Counter(example.label for example in self.items).items()))

    @cached_property
    def bytes(self) -> int:
        """Of all together."""
        return sum(example.bytes for example in self.items)

    @cached_property
    def by_digest(self) -> Mapping[str, ExampleFile]:
        """The same, to look up."""
        return {example.digest: example for example in self.items}

    def get(self, digest: str) -> ExampleFile | None:
        """The one with those bytes."""
        return self.by_digest.get(digest)

    def without(self, digests: Collection[str]) -> Self:
        """As if these had never been; numbers go on."""
        return replace(self, items=tuple(e for e in self.items if e.digest not in digests))

    def adding(self, drafts: Sequence[tuple[ExampleDraft, str]]) -> tuple[Self, Tally]:
        """With these drafts and their digests; of equal bytes the later label wins."""
        items, number = dict(self.by_digest), self.next
        now = datetime.now(UTC).isoformat(timespec="seconds")
        added = duplicates = moved = 0
        for draft, digest in drafts:
            old = items.get(digest)
            if old is None:
                items[digest] = ExampleFile(
                    number, digest, draft.label, draft.modality, draft.media_type, draft.size, now, self.folder
                )
                number, added = number + 1, added + 1
            elif old.label == draft.label:
                duplicates += 1
            else:
                items[digest] = replace(old, label=draft.label)
                moved += 1
        new = replace(self, items=tuple(items.values()), next=number)
        return new, Tally(new, [digest for _, digest in drafts], added, duplicates, moved)


def folder_of(root: Path, task: str) -> Path:
    """Where a task's examples are. Raises BadTaskName; so no name leaves the root."""
    return root / FOLDER / safe_name(task)


def changed_since(known: ExampleSet) -> bool:
    """Whether the disk may have another index by now."""
    return _signature(known.folder / INDEX) != known.signature


def changed_within(folder: Path) -> bool:
    """Whether files came or went since the last change of a task's examples was whole, as where one was cut short."""
    with suppress(FileNotFoundError):
        return (folder / "files").stat().st_mtime_ns > (folder / INDEX).stat().st_mtime_ns
    return True


class ExampleIndex:
    """The folder of examples under ``root``. Every method blocks and raises OSError."""

    def __init__(self, root: Path, owner: str = "") -> None:
        self._root, self._staging, self._prefix = root, root / "staging", left_by(owner)

    def folders(self) -> Iterator[tuple[str, Signature]]:
        """The tasks that have an index, in no order."""
        try:
            with os.scandir(self._root / FOLDER) as entries:
                names = [entry.name for entry in entries if is_task_name(entry.name)]
        except FileNotFoundError:
            return
        for name in names:
            signature = _signature(self._root / FOLDER / name / INDEX)
            if signature is not None:
                yield name, signature

    def read(self, task: str) -> ExampleSet:
        """A task's examples as the disk has them. Raises OSError, also for what is no index."""
        empty = ExampleSet.empty(self._root, task)
        try:
            with (empty.folder / INDEX).open("rb") as file:
                signature, raw = _told(os.fstat(file.fileno())), file.read()
        except FileNotFoundError:
            return empty
        try:
            return _parsed(empty, raw, signature)
        except ValueError as error:
            raise OSError(None, f"the index of the examples of '{task}' cannot be read: {error}") from error

    def place(self, task: str, files: Mapping[str, Path], *, first: bool) -> None:
        """Bring staged files to their places by their digests, durably, where nobody sees them yet."""
        folder = folder_of(self._root, task) / "files"
        folder.mkdir(parents=True, exist_ok=True)
        for digest, path in files.items():
            path.chmod(0o600)
            path.replace(folder / digest)
        for changed in (folder, *folder.parents[: 3 if first else 0]):
            sync_folder(changed)

    def take_back(self, task: str, digests: Collection[str], *, whole: bool) -> None:
        """Remove what an addition left behind that failed before its index was there."""
        folder = folder_of(self._root, task)
        for digest in digests:
            with suppress(OSError):
                (folder / "files" / digest).unlink(missing_ok=True)
        for path in (folder / "files", folder) if whole else ():
            with suppress(OSError):
                path.rmdir()

    def write(self, new: ExampleSet) -> None:
        """The commit: replace the index in one rename, and make it last.

        Raises OSError where the old one stands, and NotConfirmed where the new one does, or may.
        """
        path, text = new.folder / INDEX, _rendered(new)
        old = _signature(path)
        moment = max(time.time_ns() - CLOCK_NS, old[0] + 1 if old else 0)  # readers go by it, so it must grow
        try:
            with replacing(path, within=self._staging, prefix=self._prefix, suffix=".index") as temporary:
                temporary.write_bytes(text)
                os.utime(temporary, ns=(moment, moment))
            sync_folder(new.folder)
        except OSError as error:
            if may_hold(path, text):
                raise NotConfirmed(error) from error
            raise

    def unsettle(self, task: str) -> None:
        """Before files go: until ``settle``, or until one has gone, ``changed_within`` says so."""
        moment = time.time_ns() + DAY_NS
        os.utime(folder_of(self._root, task) / "files", ns=(moment, moment))

    def settle(self, task: str) -> None:
        """After all files of a change came and went: nothing of it is left for ``changed_within`` to find."""
        folder = folder_of(self._root, task)
        index = _signature(folder / INDEX)
        if index is not None:
            os.utime(folder / "files", ns=(index[0] - 1, index[0] - 1))


def _signature(path: Path) -> Signature | None:
    try:
        return _told(path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return None


def _told(stat: os.stat_result) -> Signature:
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def _rendered(new: ExampleSet) -> bytes:
    examples = {
        e.digest: {
            "number": e.number, "label": e.label, "modality": e.modality, "media_type": e.media_type, "bytes": e.bytes,
            "added": e.added,
        }
        for e in new.items
    }  # fmt: skip
    document = {"next": new.next, "bytes": new.bytes, "examples": examples}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _parsed(empty: ExampleSet, raw: bytes, signature: Signature) -> ExampleSet:
    """Raises ValueError."""
    try:
        document = json.loads(raw)
        items = tuple(_example(digest, told, empty.folder) for digest, told in document["examples"].items())
        return replace(empty, items=items, next=int(document["next"]), signature=signature)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it has another form ({type(error).__name__}: {error})") from error


def _example(digest: str, told: Mapping[str, object], folder: Path) -> ExampleFile:
    if not _DIGEST.fullmatch(digest) or told["modality"] not in ("image", "video"):
        raise ValueError(f"it names no example at {digest[:80]!r}")
    return ExampleFile(
        number=int(cast(int, told["number"])), digest=digest, label=_shared(told["label"]),
        modality=cast(Modality, _shared(told["modality"])), media_type=_shared(told["media_type"]),
        bytes=int(cast(int, told["bytes"])), added=_shared(told["added"]), folder=folder,
    )  # fmt: skip


def _shared(text: object) -> str:
    """Few labels and many examples: one string for all of them."""
    return sys.intern(str(text))
