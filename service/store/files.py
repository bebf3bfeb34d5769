"""Where tasks lie on the disk, and each step that changes it: what holds after a step fails is said here.

It keeps nothing in memory and decides nothing; ``service.store.repository`` does.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from adapters.atomic import replacing
from adapters.config import is_task_name
from service.errors import BadTaskName
from service.store.manifest import TaskInfo, VersionInfo, parse, render
from service.store.staging import NotConfirmed, Staging, left_by, sync_folder

__all__ = ["NotConfirmed", "TaskFiles", "may_hold", "safe_name"]

MAX_KNOWN = 4096
"""Paths that are kept, since every request names some, and joining one takes longer than all else about it."""


class TaskFiles:
    """The folder of tasks under ``root``. Every method blocks and raises OSError."""

    def __init__(self, root: Path, owner: str = "") -> None:
        self._root, self._staging, self._prefix = root, root / "staging", left_by(owner)
        self._known: dict[tuple[str, int], Path] = {}

    def prepare(self) -> None:
        """Make the folders and the file that writers lock; a read-only disk that has folders will do for serving."""
        try:
            for folder in ("tasks", "staging", "quarantine"):
                (self._root / folder).mkdir(parents=True, exist_ok=True)
            (self._root / "writing").touch()
            sync_folder(self._root)
            with suppress(OSError):  # it may belong to somebody else
                sync_folder(self._root.absolute().parent)
        except OSError as error:
            if error.errno != errno.EROFS or not (self._root / "tasks").is_dir():
                raise

    def folder(self, name: str) -> Path:
        """Raises BadTaskName; so no name leaves the root."""
        return self._root / "tasks" / safe_name(name)

    def path(self, name: str, number: int) -> Path:
        """Where a version's file is."""
        known = self._known.get((name, number))
        if known is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            known = self._known[name, number] = self.folder(name) / "versions" / f"{number}.safetensors"
        return known

    def place(self, staging: Staging, info: VersionInfo, *, first: bool) -> None:
        """Bring a staged file to its place, durably, where nobody sees it yet."""
        path = self.path(info.task, info.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.path.chmod(0o644)
        staging.path.replace(path)
        for changed in path.parents[: 3 if first else 1]:
            sync_folder(changed)

    def take_back(self, info: VersionInfo, *, whole_task: bool) -> None:
        """Remove what a publish left behind that failed before its manifest was there; and nothing if it is there."""
        path = self.path(info.task, info.number)
        if _may_name(path.parents[1] / "manifest.json", info):
            return
        with suppress(OSError):
            path.unlink(missing_ok=True)
        for folder in path.parents[: 2 if whole_task else 0]:
            with suppress(OSError):
                folder.rmdir()

    def move_away(self, name: str) -> Path | None:
        """Take a task's files out of its folder in one step, since it may come back while they are being removed.

        Returns the folder to remove; None where the disk gives no place for it: then they are removed at once.
        """
        files = self.folder(name) / "versions"
        try:
            aside = Path(tempfile.mkdtemp(dir=self._staging, prefix=self._prefix, suffix=".deleted"))
        except OSError:
            shutil.rmtree(files, ignore_errors=True)
            return None
        try:
            return files.replace(aside)
        except OSError:
            shutil.rmtree(files, ignore_errors=True)
            return aside

    def write_manifest(self, task: TaskInfo) -> None:
        """The commit: replace the manifest in one rename, and make it last.

        Raises OSError where the old one stands, and NotConfirmed where the new one does, or may.
        """
        folder, text = self.folder(task.name), render(task)
        manifest = folder / "manifest.json"
        try:
            with replacing(manifest, within=self._staging, prefix=self._prefix, suffix=".manifest") as temporary:
                temporary.write_bytes(text)
            sync_folder(folder)
        except OSError as error:
            if may_hold(manifest, text):
                raise NotConfirmed(error) from error
            raise


def safe_name(name: str) -> str:
    """The name, if it is a task's, which can be that of a folder. Raises BadTaskName."""
    if not is_task_name(name):
        raise BadTaskName(
            f"'{name[:80]}' is not a task name; use 1 to 64 of a-z, 0-9, '.', '_' and '-', first a letter or digit",
            field="task", got=name[:80],
        )  # fmt: skip
    return name


def may_hold(path: Path, text: bytes) -> bool:
    """Whether the disk has a file with this text; True where it does not say."""
    try:
        return path.read_bytes() == text
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _may_name(manifest: Path, info: VersionInfo) -> bool:
    """Whether the disk's manifest names a version; True where it does not say."""
    try:
        return info.number in parse(info.task, manifest.read_bytes()).versions
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
