"""Truth: tasks in a store that several servers share, and how two of them change one task without losing anything.

    adaptserve.json        which store this is: {"format": 1, "id": ...}
    blobs/<sha256>         the bytes of a version
    tasks/<task>.json      a task's manifest, as ``service.store.manifest`` tells, with the numbers of its changes
    log/<number>           the task that change is about, and its event; the numbers have no gaps

A change takes the next number of the log by creating it, and then replaces the manifest on condition that nobody else
has: that is the commit. So whoever reads the log up to a number, and then the manifests of the tasks it names until
they have that number, has seen every change up to it that was acknowledged; and what a killed server announced and did
not do costs some looks in vain. It knows no disk of this machine and keeps nothing.
"""

from __future__ import annotations

import json
import random
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from adapters.config import is_task_name
from adapters.errors import AdaptError
from service.errors import StorageFailed, StoreAway, StoreRefused
from service.store.changes import Step
from service.store.events import Cause, numbered
from service.store.manifest import NO_VERSIONS, TaskInfo, parse, render
from service.store.objects import Mark, Missing, Objects, Preceded

FORMAT: Final = 1
NAME, BLOBS, TASKS, LOG = "adaptserve.json", "blobs", "tasks", "log"
NUMBER_DIGITS: Final = 16
KEPT_LOG: Final = 1000
"""Numbers of the log that are kept however old they are, so that its end is found."""
ANNOUNCED_S: Final = 15.0
"""A change is made, or announced anew, so soon after it was announced: readers look out for it four times as long."""
CHANGE_S: Final = 20.0
"""How long a change tries again while others change the same task."""


class Truth:
    """Every method blocks; raises StoreAway and StoreRefused beside what it says."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def identity(self, *, make: bool = True) -> str:
        """Which store this is; the first server that asks names it. Raises StoreRefused for a later format.

        Without ``make`` also for one that is none yet.
        """
        while True:
            try:
                content, _ = self.objects.get(NAME)
            except Missing as error:
                if not make:
                    raise StoreRefused("there is no store of adaptserve at this address") from error
                with suppress(Preceded):
                    self.objects.create(NAME, json.dumps({"format": FORMAT, "id": uuid.uuid4().hex}).encode())
                continue
            try:
                found = json.loads(content)
                number, name = int(found["format"]), str(found["id"])
            except (ValueError, KeyError, TypeError) as error:
                raise StoreRefused(f"the store's {NAME} cannot be read; is it a store of adaptserve?") from error
            if number > FORMAT:
                raise StoreRefused(f"the store has format {number}, this server knows {FORMAT}; update the server")
            return name

    def prove(self) -> None:
        """Whether the store keeps its conditions, on which all else stands. Raises StoreRefused where it does not."""
        key = f"probe/{uuid.uuid4().hex}"
        mark = self.objects.create(key, b"1")
        try:
            wrong = Mark('"0123456789abcdef0123456789abcdef"', "1")
            for condition in (None, wrong):
                try:
                    if condition is None:
                        self.objects.create(key, b"2")
                    else:
                        self.objects.replace(key, b"2", condition)
                except Preceded:
                    continue
                raise StoreRefused(
                    "the store does not heed conditions (If-Match, If-None-Match): two servers would overwrite each "
                    "other's tasks; use one that does, such as S3, Google Cloud Storage, Azure or a recent MinIO"
                )
            try:
                self.objects.replace(key, b"3", mark)
            except Preceded as error:
                raise StoreRefused("the store refuses a condition that holds; it cannot be used") from error
        finally:
            self.objects.delete([key])

    def task(self, name: str) -> TaskInfo | None:
        """The task as it is now, deleted or not; None where it never was. Raises StorageFailed for one unreadable."""
        try:
            content, mark = self.objects.get(_task(name))
        except Missing:
            return None
        try:
            found = parse(name, content)
            if not all(re.fullmatch("[0-9a-f]{64}", version.digest) for version in found.versions.values()):
                raise ValueError("it has a version without a digest")
            return replace(found, mark=(mark.tag, mark.version))
        except ValueError as error:
            raise StorageFailed(f"the store's manifest of task '{name}' cannot be read ({error})", task=name) from error

    def marks(self) -> Iterator[tuple[str, Mark]]:
        """Every task that ever was, and what tells its state."""
        for found in self.objects.list(TASKS):
            name = found.key.rpartition("/")[2].removesuffix(".json")
            if found.key == _task(name) and is_task_name(name):
                yield name, found.mark

    def announced(self, number: int) -> str | None:
        """The task that change is about, "" for one that nobody can make sense of; None where it is yet to come."""
        try:
            content, _ = self.objects.get(entry(number))
        except Missing:
            return None
        name = content.partition(b"\n")[0].decode("ascii", "replace")
        return name if is_task_name(name) else ""

    def announce(self, name: str, after: int, told: bytes = b"") -> int:
        """Take the next number for a change of that task; more than ``after``, which is a number that was taken.

        ``told`` is the event's line, whose own number is not in it: it is the object's.
        """
        number, misses = after + 1, 0
        while True:
            try:
                self.objects.create(entry(number), name.encode() + b"\n" + told)
            except Preceded:
                misses += 1
                number = number + 1 if misses < 4 else self.last(number) + 1
            else:
                return number

    def last(self, known: int = 0) -> int:
        """The last number that was taken, 0 for none; ``known`` is one that was. Some looks, however long the log."""
        if not known:
            first = next(iter(self.objects.list(LOG)), None)
            if first is None:
                return 0
            known = int(first.key.rpartition("/")[2])
        step = 1
        while self._is_taken(known + step):
            known, step = known + step, 2 * step
        while step > 1:
            step //= 2
            if self._is_taken(known + step):
                known += step
        return known

    def change(self, name: str, known: TaskInfo | None, seen: int, step: Step, cause: Cause) -> TaskInfo:
        """Make one change of a task, whatever others do; the task with it.

        What is announced is what is made: whoever comes second announces anew, since it changes another task by then.

        ``known`` is what was last known of it: where ``step`` refuses that, or has nothing to do, it is asked again
        about the task as it is. Raises what it raises then. A StoreAway with the fact ``changed`` None: the change may
        have been made, or still be.
        """
        began, base, fresh = time.monotonic(), known, False
        if base is None or base.mark is None:
            base, fresh = self._base(name), True
        mine = set[int]()
        while True:
            try:
                new = step(base)
            except AdaptError:
                if fresh:
                    raise
                new = base
            if new is base:
                if fresh:
                    return base
                base, fresh = self._base(name), True
                continue
            told = cause.event(base, new).line()
            number = self.announce(name, max(base.generation, seen, *mine), told)
            mine.add(number)
            made = self._replace(numbered(new, number), base)
            if made is not None:
                return made
            base, fresh = self._base(name), True
            if not mine.isdisjoint(base.log):  # by a try of ours whose answer was lost
                return base
            if time.monotonic() - began > CHANGE_S:
                raise StoreAway(f"other servers change task '{name}' without end; try again in a moment", task=name)
            time.sleep(random.uniform(0, 0.02))  # noqa: S311

    def write(self, task: TaskInfo, cause: Cause) -> None:
        """Have a task as another store has it, where this one has none of that name. Raises Preceded."""
        new = replace(task, log=(), mark=None)
        told = cause.event(TaskInfo(task.name, NO_VERSIONS, None, 1), new).line()
        number = self.announce(task.name, self.last(), told)
        self.objects.create(_task(task.name), render(numbered(new, number)))

    def put_blob(self, digest: str, content: Path) -> None:
        """Have the bytes; those that are there under that digest may be damaged, and are replaced."""
        try:
            self.objects.put(blob(digest), content)
        except Missing as error:
            raise StorageFailed("the file has gone from this server's disk meanwhile; upload it again") from error

    def has_blob(self, digest: str) -> bool:
        try:
            self.objects.head(blob(digest))
        except Missing:
            return False
        return True

    def blob(self, digest: str) -> Iterator[bytes]:
        """The bytes, in parts, unchecked. Raises Missing."""
        return self.objects.stream(blob(digest))

    def _replace(self, new: TaskInfo, base: TaskInfo) -> TaskInfo | None:
        """The commit; None where somebody else was first, or this very change was made by a try that was cut off."""
        content = render(replace(new, mark=None))
        try:
            if base.mark is None:
                mark = self.objects.create(_task(new.name), content)
            else:
                mark = self.objects.replace(_task(new.name), content, Mark(*base.mark))
        except Preceded:
            return None
        except StoreAway as error:
            return self._after_all(new, error)
        return replace(new, mark=(mark.tag, mark.version))

    def _after_all(self, new: TaskInfo, error: StoreAway) -> TaskInfo:
        """It did not say whether it was done: it may have been."""
        try:
            found = self._base(new.name)
        except StoreAway:
            found = None
        if found is not None and new.generation in found.log:
            return found
        raise StoreAway(f"{error.message}; the change may have been made, or still be", changed=None) from error

    def _base(self, name: str) -> TaskInfo:
        return self.task(name) or TaskInfo(name, NO_VERSIONS, None, 1)

    def _is_taken(self, number: int) -> bool:
        try:
            self.objects.head(entry(number))
        except Missing:
            return False
        return True


def blob(digest: str) -> str:
    """The key of those bytes."""
    return f"{BLOBS}/{digest}"


def _task(name: str) -> str:
    return f"{TASKS}/{name}.json"


def entry(number: int) -> str:
    """The key of that change of the log."""
    return f"{LOG}/{number:0{NUMBER_DIGITS}}"
