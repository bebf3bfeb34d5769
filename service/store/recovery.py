"""Reading a data folder: as a server left it, setting aside what no manifest names; or while others work on it.

It decides what is there; ``service.store.repository`` keeps it from then on.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from adapters.config import is_task_name
from service.store.example_index import FOLDER, INDEX, ExampleIndex, changed_within
from service.store.manifest import NO_VERSIONS, TaskInfo, VersionInfo, parse
from service.store.staging import left_by

RECENT = "recent"
"""Inputs that were kept for feedback, until the server starts again."""


@dataclass
class Recovered:
    """What a folder holds: its tasks, the names that nobody may write to, and a sentence per thing found wrong."""

    tasks: dict[str, TaskInfo] = field(default_factory=dict)
    sealed: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def seal(self, name: str, error: Exception) -> None:
        """It is there, but cannot be read."""
        self.sealed[name] = unreadable(error)
        self.said.append(f"task '{name}' is not served: {self.sealed[name]}")

    def miss(self, name: str, numbers: Iterable[int]) -> None:
        """Versions whose file is gone."""
        self.said.extend(f"version {n} of '{name}' is missing or has another size; it is not served" for n in numbers)


def unreadable(error: Exception) -> str:
    """Why a task is sealed."""
    why = error.strerror if isinstance(error, OSError) else error
    return f"its folder could not be read ({why})"


def recover(root: Path) -> Recovered:
    """Before anybody else uses the folder: what no manifest names is set aside, and staging is emptied.

    Reads one small file and one folder per task. Raises OSError where the folder itself cannot be read.
    """
    with _no_collections():
        found = Recovered()
        for left in sorted((root / "staging").iterdir()):
            _remove(left, found)
        for name, is_folder in _folders(root):
            if is_folder and is_task_name(name):
                _recover_task(root, name, found)
            else:
                _set_aside(root, root / "tasks" / name, "it is not a task's folder", found)
        _recover_examples(root, found)
        for kept in sorted((root / RECENT).iterdir()) if (root / RECENT).is_dir() else ():
            _tidy(found, kept.unlink, f"removed an input that was kept for feedback: {kept.name}")
        return found


def load(root: Path, owner: str) -> Recovered:
    """While others use the folder: nothing is moved, and of staging only what a process of that name left is removed.

    What changes meanwhile is read as it was before or after. Raises OSError where the folder itself cannot be read.
    """
    with _no_collections():
        found = Recovered()
        for left in sorted((root / "staging").iterdir()):
            if owner and left.name.startswith(left_by(owner)):
                _remove(left, found)
        for name, is_folder in _folders(root):
            if is_folder and is_task_name(name):
                _load_task(root, name, found)
        return found


def read_task(root: Path, name: str, known: Mapping[int, VersionInfo] = NO_VERSIONS) -> tuple[TaskInfo, Sequence[int]]:
    """A task as the disk has it, also while others change it, without the versions whose file is not there; and these.

    The files of ``known`` versions are not looked for. Raises ValueError for what is no manifest, FileNotFoundError
    where there is none, and OSError.
    """
    folder = f"{root}/tasks/{name}"
    raw = _manifest(folder)
    while True:
        task = parse(name, raw)
        lost = [n for n, v in task.versions.items() if known.get(n) != v and _size(folder, n) != v.size]
        if not lost or (again := _manifest(folder)) == raw:
            return task.without(lost), lost
        raw = again  # deleted since: a manifest goes first, and its files after it


def _load_task(root: Path, name: str, found: Recovered) -> None:
    try:
        task, lost = read_task(root, name)
    except FileNotFoundError:
        return  # its first version is just being published
    except (ValueError, OSError) as error:
        found.seal(name, error)
        return
    found.tasks[name] = task
    found.miss(name, lost)


def _recover_task(root: Path, name: str, found: Recovered) -> None:
    folder = f"{root}/tasks/{name}"
    try:
        task = parse(name, _manifest(folder))
        sizes = _sizes(f"{folder}/versions")
    except FileNotFoundError:
        _set_aside(root, Path(folder), "it has no manifest, so nothing in it was ever published", found)
        return
    except ValueError as error:
        _set_aside(root, Path(folder), f"its manifest cannot be read ({error})", found)
        return
    except OSError as error:
        found.seal(name, error)  # it may be whole, and come back: nothing is moved, and nothing may be written over it
        return
    lost = [n for n, v in task.versions.items() if sizes.pop(f"{n}.safetensors", None) != v.size]
    found.miss(name, lost)
    for stray in sorted(sizes):
        _set_aside(root, Path(folder, "versions", stray), "no manifest names it", found)
    found.tasks[name] = task.without(lost)


def _recover_examples(root: Path, found: Recovered) -> None:
    """Remove files of additions that never ended; only where something changed after the index is all looked at."""
    if not (root / FOLDER).is_dir():
        return
    index = ExampleIndex(root)
    for folder in sorted((root / FOLDER).iterdir()):
        if not is_task_name(folder.name) or not folder.is_dir():
            _set_aside(root, folder, "it is not a folder of a task's examples", found)
        elif not (folder / INDEX).exists():
            _tidy(found, partial(shutil.rmtree, folder), f"removed examples of '{folder.name}' that were never added")
        elif changed_within(folder):
            _recover_index(root, index, folder, found)


def _recover_index(root: Path, index: ExampleIndex, folder: Path, found: Recovered) -> None:
    try:
        known = index.read(folder.name)
        sizes = _sizes(str(folder / "files"))
    except OSError as error:
        if error.errno is None:
            _set_aside(root, folder, str(error.strerror), found)
        else:  # it may be whole, and come back
            found.said.append(f"the examples of '{folder.name}' cannot be read ({error.strerror})")
        return
    lost = {e.digest for e in known.items if sizes.get(e.digest) != e.bytes}
    for stray in sorted(sizes.keys() - (known.by_digest.keys() - lost)):
        sentence = f"removed a file that is no example of '{folder.name}': {stray}"
        _tidy(found, (folder / "files" / stray).unlink, sentence)
    if lost:
        sentence = f"left out {len(lost)} examples of '{folder.name}' whose files are missing or have another size"
        _tidy(found, partial(index.write, known.without(lost)), sentence)
    with suppress(OSError):
        index.settle(folder.name)


@contextmanager
def _no_collections() -> Iterator[None]:
    """All that is made here stays: to look through it again and again takes a third of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _folders(root: Path) -> list[tuple[str, bool]]:
    with os.scandir(root / "tasks") as entries:
        return sorted((entry.name, entry.is_dir()) for entry in entries)


def _manifest(folder: str) -> bytes:
    with open(f"{folder}/manifest.json", "rb", buffering=0) as file:  # noqa: PTH123 - ten thousand of them
        return file.read()


def _size(folder: str, number: int) -> int:
    """The size of a version's file; -1 where there is none."""
    try:
        return os.stat(f"{folder}/versions/{number}.safetensors").st_size  # noqa: PTH116
    except FileNotFoundError:
        return -1


def _sizes(folder: str) -> dict[str, int]:
    """Every name in a folder, with a file's size; -1 for what is no file."""
    try:
        with os.scandir(folder) as entries:
            return {e.name: e.stat().st_size if e.is_file() else -1 for e in entries}
    except FileNotFoundError:
        return {}


def _remove(left: Path, found: Recovered) -> None:
    """What a stop left in staging."""
    if left.is_dir():
        _tidy(found, partial(shutil.rmtree, left), f"removed the files of a deleted task: {left.name}")
    else:
        _tidy(found, left.unlink, f"removed an upload that never ended: {left.name}")


def _set_aside(root: Path, path: Path, why: str, found: Recovered) -> None:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    aside = root / "quarantine" / f"{stamp}-{path.parent.name}-{path.name}"[:200]
    moved = _tidy(found, lambda: path.replace(aside), f"set aside {path.relative_to(root)}: {why}")
    if not moved and path.parent == root / "tasks":
        found.sealed[path.name] = why


def _tidy(found: Recovered, action: Callable[[], object], sentence: str) -> bool:
    """Mend something found wrong, or say that the disk did not let it be mended."""
    try:
        action()
    except OSError as error:
        found.said.append(f"should have {sentence}; but the disk refuses ({error.strerror})")
        return False
    found.said.append(sentence)
    return True
