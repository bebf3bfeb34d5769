"""What one process knows of a folder that several change: it reads anew what the journal says others changed.

It writes nothing to the disk; ``service.store.repository`` does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from adapters.config import is_task_name
from service.store.index import Index
from service.store.journal import Journal
from service.store.manifest import NO_VERSIONS, TaskInfo
from service.store.recovery import Recovered, read_task, unreadable
from service.store.staging import disk_errors

log = logging.getLogger(__name__)


class View(Index):
    """An index of the folder ``root``, as of some generation of the journal."""

    def __init__(self, root: Path, journal: Journal) -> None:
        super().__init__()
        self.root, self._journal = root, journal
        self._seen = 0  # the generation that the index agrees with, or a later one
        self._indexing = threading.Lock()  # held for moments: no disk is written under it
        self._unconfirmed: set[str] = set()  # tasks whose last change can be seen, but may not last

    @property
    def behind(self) -> bool:
        """Whether another process changed something since the last ``follow``. For every request: one comparison."""
        return self._journal.generation != self._seen

    def follow(self) -> None:
        """See what other processes changed: reads the manifests of those tasks. Blocks, but waits for no writer.

        Raises a storage error where any task may have changed, and the folder cannot be listed.
        """
        with self._indexing, disk_errors():
            now, names = self._journal.since(self._seen)
            if names is None:
                names = {path.name for path in (self.root / "tasks").iterdir()} | self._tasks.keys()
            if not names:
                return
            for name in names | self._sealed.keys():
                self._reread(name)
            if self._journal.doubtful > self._seen:
                self._unconfirmed |= names
            self._seen = now

    def _scan(self, read: Callable[[], Recovered]) -> list[str]:
        """Know what ``read`` finds, and nothing else; whatever changes from its first step on is there to follow."""
        with self._indexing:
            seen = self._journal.generation
            found = read()
            self._remember_all(found.tasks, found.sealed)
            self._unconfirmed = set(found.tasks) if self._journal.doubtful else set()
            self._seen = seen
        return found.said

    def _reread(self, name: str) -> None:
        """Have one task as the disk has it, with what was learned about it here."""
        if not is_task_name(name):
            return
        old = self._tasks.get(name) or TaskInfo(name, NO_VERSIONS, None, 1)
        try:
            task, _ = read_task(self.root, name, old.versions)
        except FileNotFoundError:  # a publish that failed; or somebody removed it by hand
            task = old.emptied()
        except (ValueError, OSError) as error:
            if name not in self._sealed:
                log.error("task '%s' is not served: %s", name, unreadable(error))
            self._sealed[name] = unreadable(error)
            task = old.emptied()
        else:
            self._sealed.pop(name, None)
            task = task if task.told is not None else task.telling(old.about)
        if task != old:
            self._remember(task)

    def _tell(self, task: TaskInfo, *, confirmed: bool) -> None:
        """Know, and let all know, what is on the disk now. For the write lock's holder."""
        with self._indexing:
            self._remember(task)
            self._journal.append(task.name, confirmed=confirmed)
            self._seen = self._journal.generation
