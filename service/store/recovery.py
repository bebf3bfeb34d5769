"""Recovery: read a data folder as it was left, and set aside what no manifest names.

It decides what is there; ``service.store.repository`` keeps it from then on.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType

from adapters.config import is_task_name
from service.store.manifest import TaskInfo, parse


@dataclass
class Recovered:
    """What a folder holds: its tasks, the names that nobody may write to, and a sentence per thing found wrong."""

    tasks: dict[str, TaskInfo] = field(default_factory=dict)
    sealed: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


def recover(root: Path) -> Recovered:
    """Reads one small file and one folder per task. Raises OSError where the folder itself cannot be read."""
    collecting = gc.isenabled()
    gc.disable()  # all that is made here stays: to look through it again and again takes a third of the time
    try:
        return _recover(root)
    finally:
        if collecting:
            gc.enable()


def _recover(root: Path) -> Recovered:
    found = Recovered()
    for left in sorted((root / "staging").iterdir()):
        if left.is_dir():
            _tidy(found, partial(shutil.rmtree, left), f"removed the files of a deleted task: {left.name}")
        else:
            _tidy(found, left.unlink, f"removed an upload that never ended: {left.name}")
    with os.scandir(root / "tasks") as entries:
        folders = sorted((entry.name, entry.is_dir()) for entry in entries)
    for name, is_folder in folders:
        if is_folder and is_task_name(name):
            _recover_task(root, name, found)
        else:
            _set_aside(root, root / "tasks" / name, "it is not a task's folder", found)
    return found


def _recover_task(root: Path, name: str, found: Recovered) -> None:
    folder = f"{root}/tasks/{name}"
    try:
        with open(f"{folder}/manifest.json", "rb", buffering=0) as file:  # noqa: PTH123 - ten thousand of them
            task = parse(name, file.read())
        sizes = _sizes(f"{folder}/versions")
    except FileNotFoundError:
        _set_aside(root, Path(folder), "it has no manifest, so nothing in it was ever published", found)
        return
    except ValueError as error:
        _set_aside(root, Path(folder), f"its manifest cannot be read ({error})", found)
        return
    except OSError as error:
        # It may be whole, and come back: nothing is moved, and nothing may be written over it.
        found.sealed[name] = f"its folder could not be read at the start ({error.strerror})"
        found.said.append(f"task '{name}' is not served: {found.sealed[name]}")
        return
    kept = {n: v for n, v in task.versions.items() if sizes.pop(f"{n}.safetensors", None) == v.size}
    for number in task.versions.keys() - kept.keys():
        found.said.append(f"version {number} of '{name}' is missing or has another size; it is not served")
    for stray in sorted(sizes):
        _set_aside(root, Path(folder, "versions", stray), "no manifest names it", found)
    if len(kept) != len(task.versions):
        active = task.active if task.active in kept else None
        task = replace(task, versions=MappingProxyType(kept), active=active)
    found.tasks[name] = task


def _sizes(folder: str) -> dict[str, int]:
    """Every name in a folder, with a file's size; -1 for what is no file."""
    try:
        with os.scandir(folder) as entries:
            return {e.name: e.stat().st_size if e.is_file() else -1 for e in entries}
    except FileNotFoundError:
        return {}


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
