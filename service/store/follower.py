"""The follower: one thread of a server that brings into its mirror what other servers change in the store.

It asks for the next number of the store's log, again and again: one small request that mostly finds nothing. What a
number names is read until it has that change; see ``service.store.truth``. It knows no HTTP and no front ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from adapters.errors import AdaptError
from service.errors import StorageFailed, StoreAway, StoreRefused
from service.store.manifest import TaskInfo
from service.store.mirror import Mirror
from service.store.truth import ANNOUNCED_S, KEPT_LOG, Truth

A = TypeVar("A")
B = TypeVar("B")
log = logging.getLogger(__name__)

WATCH_S: Final = 4 * ANNOUNCED_S
"""How long a change that was announced is looked out for; its writer announces it anew long before."""
SOON_S, HURRY_S = 0.05, 1.0
"""How often it is looked for during the first second."""
READERS: Final = 16
"""Requests at once, where there is much to read."""
ALL_S: Final = 600.0
"""How often all manifests are listed, for whatever came into the store otherwise: by hand, or by a copy."""
LONG_AWAY_S: Final = 3600.0
"""After so long without the store the log may have been tidied: all manifests are listed. Tidying leaves a day."""


class Follower:
    """``start`` before the mirror is used by others, ``close`` before it is closed."""

    def __init__(self, mirror: Mirror, truth: Truth, *, every_s: float) -> None:
        """``truth`` is asked with less patience than those who change something have."""
        self._mirror, self._truth, self._every_s = mirror, truth, every_s
        self._seen, self._verified = 0, False
        self._watched: dict[str, tuple[list[int], float]] = {}  # changes that may come, and since when
        self._listed = -ALL_S
        self._stop = threading.Event()
        self._readers = ThreadPoolExecutor(READERS, "store-reader")
        self._lister = ThreadPoolExecutor(1, "store-lister")
        self._thread = threading.Thread(target=self._run, name="store-follower", daemon=True)
        self._quiet = False

    def start(self) -> None:
        """See what the store has, and follow it. Raises StoreRefused; a store that is away is followed when it is back.

        What the mirror knew before is served meanwhile.
        """
        try:
            self._verify(serving=False)
            self._round()
        except (StoreAway, StorageFailed) as error:
            log.warning("%s; what was known before is served, and the store is followed when it answers", error.message)
            self._quiet = True
        self._thread.start()

    def _verify(self, *, serving: bool) -> None:
        """Whether it is the store that the mirror is of, and whether it can be relied on."""
        self._mirror.is_of(self._truth.identity(), serving=serving)
        try:
            self._truth.prove()
        except StoreRefused as error:
            if "denied" not in error.facts:
                raise
            log.warning("%s; the store is read, and uploads, activations and deletions will fail", error.message)
        self._verified = True

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2 * self._every_s)
        for pool in (self._lister, self._readers):
            pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while not self._stop.wait(self._pause()):
            try:
                self._round()
            except AdaptError as error:
                if not self._quiet:
                    log.error("the store cannot be followed: %s; what is known is served", error.message)
                self._quiet = True
            except Exception:
                if not self._quiet:
                    log.exception("the store cannot be followed")
                self._quiet = True
            else:
                if self._quiet:
                    log.warning("the store is followed again")
                self._quiet = False

    def _pause(self) -> float:
        now = time.monotonic()
        hurry = any(now - since < HURRY_S for _, since in self._watched.values())
        return SOON_S if hurry else self._every_s

    def _round(self) -> None:
        if not self._verified:
            self._verify(serving=True)
        if self._mirror.store_age > LONG_AWAY_S:
            self._begin()
        elif time.monotonic() - self._listed > ALL_S:
            self._listed = time.monotonic()
            self._lister.submit(self._list_beside)  # a million take a minute, in which the log is read on
        self._read_log()
        self._read_watched()
        self._tell()

    def _read_log(self) -> None:
        """Watch every task that a new number names."""
        width = 1
        while True:
            numbers = range(self._seen + 1, self._seen + 1 + width)
            for name in self._each(self._truth.announced, numbers):
                if name is None:
                    return
                self._seen += 1
                if name:
                    earlier, _ = self._watched.get(name, ([], 0.0))
                    self._watched[name] = ([*earlier, self._seen], time.monotonic())
            width = READERS

    def _read_watched(self) -> None:
        found = self._read(self._watched)
        self._mirror.adopt(found)
        now = time.monotonic()
        there = {task.name: task.generation for task in found}
        left = {
            name: ([number for number in numbers if number > there.get(name, 0)], since)
            for name, (numbers, since) in self._watched.items() if now - since < WATCH_S
        }  # fmt: skip
        self._watched = {name: (numbers, since) for name, (numbers, since) in left.items() if numbers}

    def _begin(self) -> None:
        """All manifests, and where the log is to be read from: its last ones may be announced, and not made yet."""
        self._seen = max(self._seen, self._truth.last(self._seen) - KEPT_LOG)
        self._list()
        self._listed = time.monotonic()

    def _list_beside(self) -> None:
        try:
            self._list()
        except AdaptError as error:
            log.warning("the store's manifests could not be listed (%s); they are in ten minutes", error.message)

    def _list(self) -> None:
        """Every manifest whose state is not the one known here."""
        known = self._mirror.marks()
        listed = {name: (mark.tag, mark.version) for name, mark in self._truth.marks()}
        changed = [name for name, mark in listed.items() if known.get(name, ("", ""))[0] != mark[0]]
        for some in _parts(changed, 8 * READERS):
            self._mirror.adopt(self._read(some))
        gone = [name for name in known.keys() - listed.keys() if self._truth.task(name) is None]
        self._mirror.lose(gone)

    def _tell(self) -> None:
        """Which change all are seen up to: one that was announced may have been made since it was looked for."""
        self._mirror.heard(min((numbers[0] - 1 for numbers, _ in self._watched.values()), default=self._seen))

    def _read(self, names: Iterable[str]) -> list[TaskInfo]:
        """The tasks of those names that are in the store; one that cannot be read is left as it is known."""

        def read(name: str) -> TaskInfo | None:
            try:
                return self._truth.task(name)
            except StorageFailed as error:
                log.error("%s", error.message)
                return None

        return [task for task in self._each(read, list(names)) if task is not None]

    def _each(self, work: Callable[[A], B], items: Sequence[A]) -> Iterable[B]:
        return map(work, items) if len(items) < 2 else self._readers.map(work, items)


def _parts(items: Sequence[A], size: int) -> Iterable[Sequence[A]]:
    return (items[start : start + size] for start in range(0, len(items), size))
