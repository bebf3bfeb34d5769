"""Labelled examples of tasks on disk: pictures and clips by their digest, and one small index a task that is the truth.

An example exists if and only if its task's ``index.json`` names it; that is replaced in one rename, the only commit
point. Several processes may each have an ``Examples`` over one folder: whoever changes it holds the folder's write
lock, and the others see by the index's time that it changed. Files are opaque bytes here, and no name or label of a
client is ever a path.

    root/examples/<task>/index.json          as ``service.store.example_index`` tells
    root/examples/<task>/files/<sha256>
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from adapters.errors import AdaptError
from service.errors import Draining, UnknownExample
from service.store.example_index import (
    ExampleDraft,
    ExampleFile,
    ExampleIndex,
    ExampleSet,
    Signature,
    Tally,
    changed_since,
    folder_of,
)
from service.store.example_limits import ExampleLimits
from service.store.files import NotConfirmed
from service.store.locks import write_lock
from service.store.staging import Reserve, Staging, disk_errors, left_by, sync_folder

__all__ = ["ExampleDraft", "ExampleFile", "ExampleLimits", "ExampleSet", "Examples", "Tally"]

CACHED = 50_000
"""Examples whose description a process keeps in memory, some 400 bytes each; an index beyond that is read again."""


class Examples:
    """Blocking; callers on an event loop use threads. Every method raises BadTaskName and storage errors too."""

    def __init__(self, root: Path, limits: ExampleLimits | None = None, owner: str = "") -> None:
        """``root`` is the data folder. ``owner`` names this process among those that share it, as a Repository's."""
        self.limits = limits or ExampleLimits()
        self.root, self._folder, self._owner = root, root / "examples", owner
        self._index = ExampleIndex(root, owner)
        self._reserve = Reserve(root, owner)
        self._lock = threading.Lock()
        self._known: OrderedDict[str, ExampleSet] = OrderedDict()
        self._sizes: dict[str, tuple[Signature, int]] = {}  # of each task: as of which index, and its bytes

    def of(self, task: str) -> ExampleSet:
        """A task's examples as of now, in the order of adding; an empty set where it has none."""
        with self._lock:
            known = self._known.get(task)
        if known is not None and not changed_since(known):
            return known
        with disk_errors():
            found = self._index.read(task)
        self._keep(found)
        return found

    def tasks(self) -> list[str]:
        """The tasks that have examples, in order."""
        with disk_errors():
            return sorted(name for name, _ in self._index.folders())

    def has(self, task: str) -> bool:
        """Whether a task has any."""
        return folder_of(self.root, task).is_dir()

    def example(self, task: str, digest: str) -> ExampleFile:
        """Raises UnknownExample."""
        found = self.of(task).get(digest)
        if found is None:
            raise UnknownExample(f"task '{task}' has no example {digest[:64]}", task=task, digest=digest[:64])
        return found

    def read(self, task: str, digest: str) -> bytes:
        """The bytes of one. Raises UnknownExample."""
        with self.open(task, digest) as file, disk_errors():
            return file.read()

    def open(self, task: str, digest: str) -> BinaryIO:
        """The file of one. Raises UnknownExample, also for one that is deleted this moment."""
        with disk_errors():
            try:
                return self.example(task, digest).path.open("rb")
            except FileNotFoundError as error:
                raise UnknownExample(f"this example of '{task}' was deleted a moment ago", task=task) from error

    def adding(self, task: str) -> Adding:
        """Several examples that are to be seen together or not at all, for a ``with``."""
        folder_of(self.root, task)
        return Adding(self, task, self._owner)

    def add(self, task: str, drafts: Sequence[ExampleDraft]) -> Tally:
        """Add some at once, all or none, durable before this returns.

        Bytes that the task has already are not taken twice; under another label they move there. Raises NoRoom with the
        setting that is passed.
        """
        with self.adding(task) as adding:
            for place, draft in enumerate(drafts):
                adding.put(place, draft)
            return adding.commit()

    def remove(self, task: str, *, digest: str | None = None, label: str | None = None) -> int:
        """Remove one example, or those of a label; how many that were. Raises UnknownExample where there are none."""
        folder_of(self.root, task)
        with ExitStack() as after, disk_errors(), write_lock(self.root):
            old = self._index.read(task)
            gone = [e for e in old.items if digest in (None, e.digest) and label in (None, e.label)]
            if not gone:
                what = f"example {digest[:64]}" if digest is not None else f"example of the label '{label}'"
                raise UnknownExample(f"task '{task}' has no {what}", task=task)
            if len(gone) == len(old.items):
                self._take_away(task, after)
            else:
                new = old.without({e.digest for e in gone})
                self._index.unsettle(task)
                self._reserve.spend(lambda: self._write(new))
                with suppress(OSError):  # recovery removes what is left
                    for example in gone:
                        example.path.unlink(missing_ok=True)
                    self._index.settle(task)
                self._reserve.fill()
        return len(gone)

    def clear(self, task: str) -> bool:
        """Remove all examples of a task, also where their index cannot be read; True if there was anything.

        A full disk does not hinder it.
        """
        if not self.has(task):
            return False
        with ExitStack() as after, disk_errors(), write_lock(self.root):
            return self._take_away(task, after)

    def commit(self, task: str, staged: Sequence[tuple[ExampleDraft, str, Path]]) -> Tally:
        """For ``Adding``: take files that lie in staging, in this order."""
        with disk_errors(), write_lock(self.root):
            old = self._index.read(task)
            new, tally = old.adding([(draft, digest) for draft, digest, _ in staged])
            self._check_room(old, new)
            wanted = {e.digest for e in new.items} - {e.digest for e in old.items}
            places = {digest: path for _, digest, path in staged if digest in wanted}
            if new.items == old.items:
                return tally
            first = not old.folder.exists()
            try:
                self._index.place(task, places, first=first)
                self._write(new)
            except NotConfirmed:
                raise
            except BaseException:
                self._index.take_back(task, places, whole=first)
                raise
            with suppress(OSError):  # the next start looks at the files then, and finds them right
                self._index.settle(task)
            return tally

    def _check_room(self, old: ExampleSet, new: ExampleSet) -> None:
        limits = self.limits
        limits.check_task(old, new)
        if new.bytes > old.bytes:
            total = self._bytes_of_others(new.task) + new.bytes
            limits.check("examples_total_bytes", total, f"the examples of all tasks would have {total} bytes")
        if not old.items:
            tasks = sum(name != new.task for name, _ in self._index.folders()) + 1
            limits.check("max_tasks", tasks, f"{tasks} tasks would have examples")

    def _bytes_of_others(self, task: str) -> int:
        """From memory where an index is as it was; one that cannot be read is no other task's business."""
        total, seen = 0, dict[str, tuple[Signature, int]]()
        for name, signature in self._index.folders():
            known = self._sizes.get(name)
            if known is None or known[0] != signature:
                known = signature, 0
                with suppress(OSError):
                    known = signature, self._index.read(name).bytes
            seen[name] = known
            total += known[1] if name != task else 0
        self._sizes = seen
        return total

    def _write(self, new: ExampleSet) -> None:
        self._forget(new.task)
        self._index.write(new)

    def _take_away(self, task: str, after: ExitStack) -> bool:
        """Take a task's folder away in one step; its files are removed ``after`` the lock is given back."""
        folder = folder_of(self.root, task)
        if not folder.is_dir():
            return False
        staging, made = self.root / "staging", list[str]()
        prefix = left_by(self._owner)
        self._reserve.spend(lambda: made.append(tempfile.mkdtemp(dir=staging, prefix=prefix, suffix=".deleted")))
        aside = Path(made[-1])
        # Ten thousand files may take half a minute; what a stop leaves of them the next start removes.
        remover = threading.Thread(target=shutil.rmtree, args=(aside, True), name="remove-examples", daemon=True)
        after.callback(remover.start)
        folder.replace(aside)
        self._forget(task)
        sync_folder(self._folder)
        return True

    def _keep(self, found: ExampleSet) -> None:
        with self._lock:
            self._known[found.task] = found
            self._known.move_to_end(found.task)
            while sum(len(one.items) + 1 for one in self._known.values()) > CACHED and len(self._known) > 1:
                self._known.popitem(last=False)

    def _forget(self, task: str) -> None:
        with self._lock:
            self._known.pop(task, None)


class Adding:
    """Files on their way in; ``put`` may be called by several threads, and what is not committed is removed at the end.

    ``place`` orders them: of equal bytes the later one's label wins.
    """

    def __init__(self, examples: Examples, task: str, owner: str) -> None:
        self._examples, self._task, self._owner = examples, task, owner
        self._lock = threading.Lock()
        self._staged: dict[int, tuple[ExampleDraft, str, Staging]] = {}
        self._bytes, self._closed = 0, False

    def put(self, place: int, draft: ExampleDraft) -> None:
        """Bring a file to the disk, durably. Raises NoRoom as soon as there are too many bytes, Draining if closed."""
        size, limits = len(draft.data), self._examples.limits
        with self._lock:
            self._bytes += size
            limits.check("max_examples_bytes", self._bytes, f"this call brings {self._bytes} bytes of examples")
        with disk_errors():
            staging = Staging(self._examples.root / "staging", size, self._owner)
        try:
            staging.write(draft.data)
            digest = staging.finish()
            with self._lock:
                if self._closed:
                    raise Draining("the call that brought this example has ended")
                self._staged[place] = draft.stored(), digest, staging
        except BaseException:
            _discard(staging)
            raise

    def commit(self) -> Tally:
        """Let all that was put be seen. Raises NoRoom; then nothing is."""
        with self._lock:  # from here on they are not removed by whoever gives up waiting
            staged, self._staged = [one for _, one in sorted(self._staged.items())], {}
        try:
            return self._examples.commit(self._task, [(draft, digest, file.path) for draft, digest, file in staged])
        finally:
            for _, _, file in staged:
                _discard(file)

    def close(self) -> None:
        """Remove what is still in staging; safe to repeat."""
        with self._lock:
            self._closed = True
            staged, self._staged = list(self._staged.values()), {}
        for _, _, file in staged:
            _discard(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _discard(file: Staging) -> None:
    with suppress(AdaptError):  # the next start removes it
        file.discard()
