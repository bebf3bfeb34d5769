"""A folder whose files `<task>.safetensors` are to be tasks: what lies in it, whether it is at rest, what is wrong.

It knows names and bytes; it does not know adapters, and what becomes of them.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from adapters.atomic import replacing
from adapters.config import is_task_name
from adapters.errors import AdaptError, AdapterTooLarge, NotAnAdapter
from adapters.header import PICKLE_SUFFIXES, refuse_pickle_name
from service.errors import BadTaskName
from service.store.staging import Staging

log = logging.getLogger(__name__)

SUFFIX, ERROR = ".safetensors", ".error.txt"
CHUNK = 1024 * 1024
_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)  # fmt: skip


class State(NamedTuple):
    """What tells one state of a file from the next. ``changed_ns``, which nobody can set, is when it was put there."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> State:
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@dataclass(frozen=True)
class Look:
    """What a look found: the files by name, the names of what lies there with an error told beside it, and a count."""

    files: Mapping[str, State]
    told: set[str] = field(default_factory=set)
    more: int = 0


class WatchedFolder:
    """Every method blocks. Links lead to files within the folder, as Kubernetes has them, or are refused."""

    def __init__(self, path: Path, *, max_files: int, max_bytes: int) -> None:
        self.path, self._max_files, self._max_bytes = path, max_files, max_bytes

    def look(self) -> Look:
        """All files that are named like one of ours. Raises OSError where the folder cannot be read."""
        files: dict[str, State] = {}
        told: set[str] = set()
        more = 0
        with os.scandir(self.path) as entries:
            for entry in entries:
                name = entry.name
                if name.endswith(ERROR):
                    told.add(name.removesuffix(ERROR))
                elif is_ours(name):
                    if len(files) >= self._max_files:
                        more += 1
                        continue
                    with suppress(FileNotFoundError):  # it has gone this moment
                        files[name] = State.of(entry.stat(follow_symlinks=not entry.is_symlink() or _leads(entry.path)))
        return Look(files, {name for name in told if is_ours(name)}, more)

    def read(self, name: str, state: State, staging: Staging) -> bool:
        """Copy a file; False where it is not in that state any more. Raises what is wrong with it, or OSError."""
        with open(self._opened(name), "rb", closefd=True) as file:  # noqa: PTH123
            found = os.fstat(file.fileno())
            self._check(name, found)
            if State.of(found) != state:
                return False
            while chunk := file.read(CHUNK):
                staging.write(chunk)
            return State.of(os.fstat(file.fileno())) == state

    def tell(self, name: str, sentence: str) -> None:
        """Write what is wrong beside the file, unless it stands there; where the folder takes nothing, say so."""
        beside, content = self.path / f"{name}{ERROR}", f"{sentence}\n"
        try:
            with suppress(FileNotFoundError, UnicodeDecodeError):
                if not beside.is_symlink() and beside.read_text("utf-8") == content:
                    return
            with replacing(beside, mode=0o644) as temporary:
                temporary.write_text(content, "utf-8")
        except OSError as error:
            log.debug("nothing can be written beside %s (%s)", shown(name), error.strerror)

    def clear(self, name: str) -> None:
        """Nothing is wrong with it any more, or it is gone."""
        with suppress(OSError):
            (self.path / f"{name}{ERROR}").unlink(missing_ok=True)

    def _opened(self, name: str) -> int:
        path = self.path / name
        if path.is_symlink():
            inside, path = self.path.resolve(), path.resolve()
            if not path.is_relative_to(inside):
                raise NotAnAdapter(f"{shown(name)} is a link that leads out of the folder; put the file itself here")
            if not path.exists():
                raise NotAnAdapter(f"{shown(name)} is a link to a file that is not there; put the file itself here")
        else:
            self._check(name, path.lstat())  # a device would do something when it is opened
        try:
            return _open(path)
        except PermissionError as error:
            raise NotAnAdapter(
                f"{shown(name)} cannot be read ({error.strerror}); let the server's user read it, then touch it"
            ) from error

    def _check(self, name: str, found: os.stat_result) -> None:
        for is_kind, kind in _KINDS:
            if is_kind(found.st_mode):
                raise NotAnAdapter(f"{shown(name)} is {kind}; put a file here, named <task>{SUFFIX}")
        if found.st_size > self._max_bytes:
            raise AdapterTooLarge(
                f"the file has {found.st_size} bytes, the limit is {self._max_bytes} (max_adapter_bytes)",
                field="max_adapter_bytes", limit=self._max_bytes, value=found.st_size,
            )  # fmt: skip


def is_ours(name: str) -> bool:
    """Whether somebody means it to be taken: no hidden file, no other kind; a pickle is told what it is."""
    return not name.startswith(".") and name.lower().endswith((SUFFIX, *PICKLE_SUFFIXES))


def task_of(name: str) -> str:
    """The task that a file is for. Raises BadTaskName or NotAnAdapter."""
    refuse_pickle_name(name)
    task = name.removesuffix(SUFFIX)
    if task == name or not is_task_name(task):
        raise BadTaskName(
            f"'{shown(name)}' is not named <task>{SUFFIX}: a task's name has 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "first a letter or digit; rename the file",
            field="task", got=shown(task),
        )  # fmt: skip
    return task


def shown(name: str) -> str:
    """A file's name for people, whatever bytes it is of."""
    text = name.encode("utf-8", "replace").decode("utf-8")
    return "".join(character if character.isprintable() else "?" for character in text)[:100]


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)


def _leads(path: str) -> bool:
    """Whether a link leads anywhere."""
    return os.path.exists(path)  # noqa: PTH110


def wrong(error: OSError) -> AdaptError:
    """What the disk said of one file, as the file's own problem."""
    return NotAnAdapter(f"the file cannot be read ({error.strerror}); put it here again")
