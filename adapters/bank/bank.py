"""Who is resident: load into a free slot, pin while in use, evict whoever is wanted least.

Loading runs on a thread of its own and ends before anybody is told, so a batch never waits for another
task's load. A live slot is never written. It knows nothing of requests, rows or tasks: its key is a digest.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial

from adapters.bank.host import HostCache
from adapters.bank.pack import PackedAdapter
from adapters.bank.policy import LoadPace, LoadQueue, Usage, due
from adapters.bank.slabs import Slabs
from adapters.bank.slots import BankStats, Lease, Resident, Slots, refuse
from adapters.errors import LoadsBehind, NoRoom

Loader = Callable[[], PackedAdapter]

YIELD_AFTER_S = 0.1
"""How long a newcomer waits for an idle slot before a resident in use is asked to yield its own."""
REMEMBERED = 1024
"""Keys, beside 16 for each slot, whose use is remembered after they were evicted."""
CLOSE_S = 2.0
"""How long ``close`` waits for a load in progress; one that hangs is left behind on its thread."""


class Bank:
    """Slots on the device, and under them a host cache of packed adapters bounded in bytes.

    Loads run one at a time: what is asked for again and again first, else the earliest deadline. One that nobody
    waits for any more is not begun, and one whose last caller leaves while its file is read evicts nobody. A newcomer
    takes a free slot, else that of the idle resident that was used least of late (``policy.Usage``): a flood of tasks
    that are each asked once passes through the slots of its own kind, and tasks that are asked again and again stay.
    Where no slot is idle for ``YIELD_AFTER_S``, the least used resident yields: its running requests end, its new ones
    queue behind the newcomer, and it goes on as if nothing had been if another slot comes free first. So more tasks
    than slots take turns, none starves, and each turn costs at most one resident one pause.
    """

    def __init__(
        self, slabs: Slabs, *, host_cache_bytes: int, on_load: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.slabs, self._clock = slabs, clock
        self._on_load = on_load or (lambda _: None)
        self._change = threading.Condition()  # its only waiter is the loader
        self._usage = Usage(REMEMBERED + 16 * slabs.slots)
        self._slots = Slots(slabs.slots, slabs.page_count, self._usage)
        self._host = HostCache(host_cache_bytes)
        self._queue: LoadQueue[Future[Lease], Loader] = LoadQueue()
        self._loading: str | None = None
        self._forgotten = False  # the adapter that is loaded now was forgotten meanwhile
        self._pace = LoadPace()
        self._loads = {"host": 0, "device": 0}
        self._closed = False
        self._loader: threading.Thread | None = None

    def pin(self, key: str) -> Lease | None:
        """What ``acquire`` gives at once where the adapter is resident, without a future; else None."""
        with self._change:
            resident = self._slots.resident.get(key)
            if resident is None:
                return None
            self._usage.saw(key, self._clock())
            resident.pins += 1
            return Lease(resident, self._release)

    def acquire(self, key: str, load: Loader, deadline: float = math.inf, hope_s: float = math.inf) -> Future[Lease]:
        """A future of a pinned slot; done at once when the adapter is resident. Never blocks.

        ``load`` runs on the loader thread, only if the host cache lacks the key, and only if somebody still waits.
        Callers whose loaders are equal share what one of them raises; another one's is tried for the others.
        Cancelling the future lets all of it go. ``deadline`` is on the bank's clock; the future gets LoadsBehind once
        it is too late to begin. Raises that at once if it would take over ``hope_s`` seconds, NoRoom when closed.
        """
        future: Future[Lease] = Future()
        with self._change:
            if self._closed:
                raise NoRoom("the bank is closed")
            lease, now = self.pin(key), self._clock()
            if lease is not None:
                future.set_result(lease)
                return future
            by = due(deadline, now, self._usage.wanted(key, now))
            self._usage.saw(key, now)
            if hope_s < math.inf:
                self._check((key,), by, now, hope_s)
            self._queue.add(key, future, load, deadline, by)
            if self._loader is None:
                self._loader = threading.Thread(target=self._run, name="bank-loader", daemon=True)
                self._loader.start()
            self._change.notify()
        future.add_done_callback(partial(self._left, key))
        return future

    def check(self, keys: Sequence[str], deadline: float, hope_s: float) -> None:
        """Whether ``acquire`` would take these keys together now; ask before costly work. Raises LoadsBehind."""
        with self._change:
            cold, now = [key for key in keys if key not in self._slots.resident], self._clock()
            try:
                self._check(cold, due(deadline, now, all(self._usage.wanted(key, now) for key in cold)), now, hope_s)
            except LoadsBehind:
                for key in cold:  # who is refused and comes back is let in before others
                    self._usage.saw(key, now)
                raise

    def resident(self, key: str) -> bool:
        """Whether a slot holds the key; it may lose it the next moment."""
        return key in self._slots.resident

    @property
    def residents(self) -> list[str]:
        """The keys that slots hold now."""
        return list(self.stats().resident)

    def forget(self, key: str) -> None:
        """Drop a key from both caches; requests that run on it end first."""
        with self._change:
            self._host.drop(key)
            if self._loading == key:
                self._forgotten = True
            self._slots.forget(key)
            self._change.notify()

    def keep(self, keys: Iterable[str]) -> None:
        """From now on these, and no others, stay in the slots that they have or get; ``forget`` ends it for one."""
        self._slots.kept = frozenset(keys)

    def tier(self, key: str) -> str:
        """Where a key is now: ``device``, ``host`` or ``disk``."""
        with self._change:
            return "device" if key in self._slots.resident else "host" if key in self._host else "disk"

    def stats(self) -> BankStats:
        with self._change:
            slots, host, loads = self._slots, self._host, dict(self._loads)
            evictions = {"host": host.evictions, "device": slots.evictions}
            known = tuple(slots.resident), self._queue.keys
            return BankStats(self.slabs.slots, slots.used, slots.pinned, host.nbytes, loads, evictions, *known)

    @property
    def alive(self) -> bool:
        """Whether the loader's thread runs; after ``close`` it does only if a load hangs."""
        return self._loader is not None and self._loader.is_alive()

    def close(self) -> None:
        """Refuse what waits and stop the loader, waiting at most ``CLOSE_S``. Leases still held stay valid."""
        with self._change:
            self._closed = True
            waiting = self._queue.clear()
            self._change.notify()
        refuse(waiting, NoRoom("the bank is closed"))
        if self._loader is not None:
            self._loader.join(CLOSE_S)

    def _check(self, keys: Sequence[str], by: float, now: float, hope_s: float) -> None:
        wait = self._pace.wait(*self._queue.ahead(keys, by), now)
        if keys and wait > hope_s:
            raise self._behind(wait)

    def _behind(self, wait: float) -> LoadsBehind:
        waiting = len(self._queue) + (self._loading is not None)
        return LoadsBehind(f"{waiting} adapters wait to be loaded, which takes about {wait:.1f} s", wait_s=wait)

    def _left(self, key: str, future: Future[Lease]) -> None:
        """A future is done: if it was cancelled, its claim goes, and perhaps the need for a slot that is waited for."""
        if future.cancelled():
            with self._change:
                self._queue.remove(key, future)
                self._change.notify()

    def _run(self) -> None:
        """The loader's thread: the most urgent load that somebody waits for, then the next."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or len(self._queue))
                if self._closed:
                    return
                key, late = self._queue.take(self._clock(), self._pace.seconds)
                behind = self._behind((len(self._queue) + 1) * self._pace.seconds) if late else None
                self._loading, self._forgotten = key, False
                self._pace.begin(None if key is None else self._clock())
            refuse(late, behind)
            late, behind = [], None  # this frame lives on while nothing waits, and must hold nobody's future
            while key is not None and not self._load(key):
                pass  # somebody came after the last other one had left

    def _load(self, key: str) -> bool:
        """Read it, then a slot, then the copy, then everybody who still waits. False: somebody came after that."""
        resident: Resident | None = None
        try:
            packed = self._read(key)
            resident = None if packed is None else self._bring(key, packed)
        except BaseException as error:  # whatever it was, the waiting callers must hear of it
            self._refuse(key, error)
        with self._change:
            if resident is None and self._queue.waits(key):
                return False
            taken = self._pace.end(self._clock())
            self._loading = None
            if resident is None:
                self._queue.end(key)
                return True
            waiting = self._claimed(resident)
            self._loads["device"] += 1
            if self._forgotten:
                self._slots.drain(resident)
            else:
                self._slots.resident[key] = resident
        for future in waiting:
            future.set_result(Lease(resident, self._release))
        self._on_load(taken)
        return True

    def _claimed(self, resident: Resident) -> list[Future[Lease]]:
        """Who still waits for a load that has ended, each with a pin."""
        waiting = [future for future in self._queue.end(resident.key) if future.set_running_or_notify_cancel()]
        resident.pins += len(waiting)
        return waiting

    def _read(self, key: str) -> PackedAdapter | None:
        """From the host cache, else with the callers' loaders, the first one's first; None once nobody waits."""
        with self._change:
            packed = self._host.get(key)
        if packed is not None:
            return packed
        while True:
            with self._change:
                load = next(iter(self._queue.claims(key).values()), None)
            if load is None:
                return None
            try:
                packed = load()
            except BaseException as error:
                self._refuse(key, error, load)
                continue
            with self._change:
                self._loads["host"] += 1
                if not self._forgotten:
                    self._host.keep(key, packed)
            return packed

    def _refuse(self, key: str, error: BaseException, load: Loader | None = None) -> None:
        """Tell those who claim a key, or of them those with that loader, what went wrong."""
        with self._change:
            failed = [f for f, own in self._queue.claims(key).items() if load is None or own == load]
            for future in failed:
                self._queue.remove(key, future)
        refuse(failed, error)

    def _bring(self, key: str, packed: PackedAdapter) -> Resident | None:
        place = self._reserve(key, len(packed.pages))
        if place is None:
            return None
        slot, pages = place
        try:
            self.slabs.write(slot, pages, packed)
        except BaseException:
            with self._change:
                self._slots.give_back(slot, pages)
            raise
        return Resident(key, packed.meta, slot, tuple(pages))

    def _reserve(self, key: str, pages: int) -> tuple[int, list[int]] | None:
        """Take a free slot and pages, evicting or waiting while somebody waits; None if nobody does any more."""
        with self._change:
            self._slots.check(pages, key)
            place = self._wait_for_place(key, pages)
            again = [(r, self._claimed(r)) for r in self._slots.go_on() if self._queue.waits(r.key)]
        for resident, futures in again:
            for future in futures:
                future.set_result(Lease(resident, self._release))
        return place

    def _wait_for_place(self, key: str, pages: int) -> tuple[int, list[int]] | None:
        asked = self._clock()
        patience = min(YIELD_AFTER_S, (self._queue.deadline(key) - asked) / 2)
        while not self._slots.room(pages):
            if not self._queue.waits(key):  # also when the bank is closed
                return None
            if self._slots.evict_idle():
                continue
            left = asked + patience - self._clock()
            if left <= 0:
                self._slots.ask_to_yield(pages)
            self._change.wait(left if left > 0 else None)
        return self._slots.take(pages)

    def _release(self, lease: Lease) -> None:
        with self._change:
            resident = lease.end()
            if resident is not None:
                self._slots.unpin(resident)
                if not resident.pins and self._loading is not None:
                    self._change.notify()  # a slot that is idle or free, for whoever waits for one
