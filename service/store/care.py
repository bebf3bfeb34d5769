"""Care of a store: every digest verified, tasks moved to another store, and what nothing names any more removed.

It knows folders of one server and stores that several share; it does not know the command line.
"""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Final

from adapters.errors import AdaptError
from service.errors import Conflict, StorageFailed
from service.store.manifest import TaskInfo, VersionInfo
from service.store.objects import Listed, Missing, Preceded
from service.store.packs import SharedHistory
from service.store.past import made, wrong
from service.store.stock import SharedStock, Stock
from service.store.truth import BLOBS, KEPT_LOG, LOG, Truth

WORKERS: Final = 8
OLD: Final = timedelta(days=1)
"""What is younger may belong to an upload that is under way, or to a server that is catching up."""


@dataclass(frozen=True)
class Step:
    """One thing done of ``total``; ``problem`` where it went wrong, ``line`` where it is worth one."""

    done: int
    total: int
    problem: str = ""
    line: str = ""


def check(of: Stock) -> Iterator[Step]:
    """Read every file of every version, and hold it against its digest; a step for each."""
    versions, problems = _all(of)
    first: dict[str, VersionInfo] = {}
    named: dict[str, list[VersionInfo]] = {}
    for version in versions:
        # In a folder each version has a file of its own, in a shared store those of one digest have one together.
        key = version.digest if isinstance(of, SharedStock) else f"{version.task}/{version.number}"
        first.setdefault(key, version)
        named.setdefault(key, []).append(version)
    total, done = len(first) + len(problems), 0
    for problem in problems:
        done += 1
        yield Step(done, total, problem)
    with ThreadPoolExecutor(WORKERS) as pool:
        for key, found in zip(first, pool.map(lambda one: _wrong(of, one), first.values()), strict=True):
            done += 1
            whose = " and ".join(f"version {v.number} of '{v.task}'" for v in named[key][:3])
            yield Step(done, total, f"{whose}: {found}" if found else "")


def copy(of: Stock, to: Stock) -> Iterator[Step]:
    """Bring every task that ``to`` never had, with its versions and numbers; a step for each.

    What is there already is left as it is: so a copy that was cut off goes on where it was.
    """
    names = of.names()
    for done, name in enumerate(names, 1):
        try:
            yield Step(done, len(names), line=_copied(of, to, name))
        except AdaptError as error:
            yield Step(done, len(names), f"task '{name}' is not copied: {error.message}")


def tidy(truth: Truth, *, dry: bool) -> Iterator[Step]:
    """Remove files that no manifest names and that are older than a day, and old numbers of the log; a step for each.

    Raises StorageFailed where a manifest cannot be read: nobody knows what it names.
    """
    now = _now(truth)
    old = [one for one in truth.objects.list(BLOBS) if now - one.modified > OLD]
    named = {version.digest for version in _named(truth)}
    loose = [one for one in old if one.key.removeprefix(f"{BLOBS}/") not in named]
    last = truth.last()
    passed = [
        one for one in truth.objects.list(LOG)
        if now - one.modified > OLD and int(one.key.rpartition("/")[2]) <= last - KEPT_LOG
    ]  # fmt: skip
    probes = [one for one in truth.objects.list("probe") if now - one.modified > OLD]
    total = len(loose) + len(passed) + len(probes)
    kept = passed if dry else _packed(truth, passed)
    for done, one in enumerate(chain(loose, kept, probes), 1):
        if not dry and _is_still(truth, one.key, one.modified):
            truth.objects.delete([one.key])
        yield Step(done, total, line=f"{one.key}, {one.size} bytes" if one in loose else "")


def _packed(truth: Truth, passed: Sequence[Listed]) -> Iterator[Listed]:
    """Each, once the history has its event elsewhere."""
    numbers = [int(one.key.rpartition("/")[2]) for one in passed]
    for one, _ in zip(passed, SharedHistory(truth).pack(numbers), strict=True):
        yield one


def _is_still(truth: Truth, key: str, modified: datetime) -> bool:
    """Nobody has put it anew since it was listed. Whoever does so this moment looks again, with its manifest there."""
    try:
        return truth.objects.head(key).modified == modified
    except Missing:
        return False


def _named(truth: Truth) -> Iterator[VersionInfo]:
    with ThreadPoolExecutor(WORKERS) as pool:
        for task in pool.map(truth.task, [name for name, _ in truth.marks()]):
            if task is not None:
                yield from task.versions.values()


def _now(truth: Truth) -> datetime:
    """By the store's own clock, which has dated everything in it."""
    key = f"probe/{uuid.uuid4().hex}"
    truth.objects.put(key, b"now")
    try:
        return truth.objects.head(key).modified
    finally:
        truth.objects.delete([key])


def _all(of: Stock) -> tuple[list[VersionInfo], list[str]]:
    """Every version, and what is wrong with manifests and histories."""
    versions, problems = list[VersionInfo](), list[str]()
    with ThreadPoolExecutor(WORKERS) as pool:
        for task, problem in pool.map(lambda name: _task(of, name), of.names()):
            versions += task.versions.values() if task is not None else ()
            problems += [problem] if problem else []
    return versions, problems


def _task(of: Stock, name: str) -> tuple[TaskInfo | None, str]:
    """The task, and what is wrong with it."""
    try:
        task = of.task(name)
    except StorageFailed as error:
        return None, error.message
    found = wrong(of.announced, task) if task is not None else ""
    return task, f"task '{name}': {found}" if found else ""


def _wrong(of: Stock, version: VersionInfo) -> str:
    """What is wrong with a version's bytes; "" where nothing is."""
    hashed, size = hashlib.sha256(), 0
    try:
        for part in of.read(version):
            hashed.update(part)
            size += len(part)
    except Missing:
        return "its file is not there"
    except OSError as error:
        return f"its file cannot be read ({error.strerror})"
    if hashed.hexdigest() != version.digest:
        return f"its file has other bytes than its digest says ({size} of {version.size} bytes)"
    return ""


def _copied(of: Stock, to: Stock, name: str) -> str:
    """What came of one task. Raises an AdaptError where it could not be copied whole."""
    task = of.task(name)
    if task is None:
        return ""
    there = to.task(name)
    if there is not None:
        if {n: v.digest for n, v in there.versions.items()} == {n: v.digest for n, v in task.versions.items()}:
            return ""
        raise Conflict("the other store has, or had, a task of that name with other versions", task=name)
    with tempfile.TemporaryDirectory(prefix="adaptserve-copy-") as folder:
        files = {number: Path(folder) / str(number) for number in task.versions}
        for number, path in files.items():
            version, hashed = task.versions[number], hashlib.sha256()
            try:
                with path.open("wb") as file:
                    for part in of.read(version):
                        hashed.update(part)
                        file.write(part)
            except Missing as error:
                raise StorageFailed(f"the file of version {number} is not there", task=name) from error
            if hashed.hexdigest() != version.digest:
                raise StorageFailed(f"the file of version {number} has other bytes than its digest says", task=name)
        try:
            to.add(task, files, list(made(of.announced, task))[::-1])
        except Preceded as error:
            raise Conflict("somebody published a task of that name this moment", task=name) from error
    return f"{name}: {len(files)} versions"
