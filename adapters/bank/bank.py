"""Who is resident: load into a free slot, pin while in use, evict whoever is wanted least.

Loading runs on a thread of its own and ends before anybody is told, so a batch never waits for another
task's load. A live slot is never written. It knows nothing of requests, rows or tasks: its key is a digest.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from adapters.bank.pack import AdapterMeta, PackedAdapter
from adapters.bank.policy import LoadQueue, Usage, due
from adapters.bank.slabs import Slabs
from adapters.errors import AdapterTooLarge, LoadsBehind, NoRoom

Loader = Callable[[], PackedAdapter]

YIELD_AFTER_S = 0.1
"""How long a newcomer waits for an idle slot before a resident in use is asked to yield its own."""
SMOOTH = 0.8
"""Share of the old value that the expected time of a load keeps at each load."""
REMEMBERED = 1024
"""Keys, beside 16 for each slot, whose use is remembered after they were evicted."""
CLOSE_S = 2.0
"""How long ``close`` waits for a load in progress; one that hangs is left behind on its thread."""


@dataclass(eq=False)
class _Resident:
    key: str
    meta: AdapterMeta
    slot: int
    pages: tuple[int, ...]
    pins: int = 0
    draining: bool = False


class Lease:
    """The right to read one slot until ``release``; releasing twice is harmless."""

    __slots__ = ("_bank", "_open", "_resident", "meta", "pages", "slot")

    def __init__(self, bank: Bank, resident: _Resident) -> None:
        self.meta, self.slot, self.pages = resident.meta, resident.slot, resident.pages
        self._bank, self._resident, self._open = bank, resident, True

    def release(self) -> None:
        self._bank._release(self)


@dataclass
class BankStats:
    """Counters since start, and what is held now."""

    slots: int
    used: int = 0
    pinned: int = 0
    host_bytes: int = 0
    loads: dict[str, int] = field(default_factory=lambda: {"host": 0, "device": 0})
    evictions: dict[str, int] = field(default_factory=lambda: {"host": 0, "device": 0})


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
        self,
        slabs: Slabs,
        *,
        host_cache_bytes: int,
        on_load: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slabs = slabs
        self._host_limit = host_cache_bytes
        self._on_load = on_load or (lambda _: None)
        self._clock = clock
        self._change = threading.Condition()  # its only waiter is the loader
        self._free_slots = list(range(slabs.slots, 0, -1))
        self._free_pages = list(range(slabs.page_count, 0, -1))
        self._resident: dict[str, _Resident] = {}
        self._yielding: dict[str, _Resident] = {}  # in use, and out of reach for the sake of a newcomer
        self._usage = Usage(REMEMBERED + 16 * slabs.slots)
        self._queue: LoadQueue[Future[Lease], Loader] = LoadQueue()
        self._loading: str | None = None
        self._begun = 0.0
        self._forgotten = False  # the adapter that is being loaded was forgotten meanwhile
        self._load_s: float | None = None
        self._host: OrderedDict[str, PackedAdapter] = OrderedDict()
        self._stats = BankStats(slots=slabs.slots)
        self._closed = False
        self._loader: threading.Thread | None = None

    def pin(self, key: str) -> Lease | None:
        """What ``acquire`` gives at once where the adapter is resident, without a future; else None."""
        with self._change:
            return self._pin(key, self._clock())

    def acquire(self, key: str, load: Loader, deadline: float = math.inf, hope_s: float = math.inf) -> Future[Lease]:
        """A future of a pinned slot; done at once when the adapter is resident. Never blocks.

        ``load`` runs on the loader thread, only if the host cache lacks the key, and only if somebody still waits.
        Callers whose loaders are equal share what one of them raises; another one's is tried for the others.
        Cancelling the future gives the pin back, and all that it held. ``deadline`` is on the bank's clock; the
        future gets LoadsBehind once it is too late to begin. Raises LoadsBehind if the loads before this one are
        expected to take over ``hope_s`` seconds, NoRoom when the bank is closed.
        """
        future: Future[Lease] = Future()
        with self._change:
            if self._closed:
                raise NoRoom("the bank is closed")
            now = self._clock()
            lease = self._pin(key, now)
            if lease is not None:
                future.set_result(lease)
                return future
            by = due(deadline, now, self._usage.wanted(key, now))
            self._usage.saw(key, now)
            if hope_s < math.inf:
                self._check((key,), by, now, hope_s)
            self._queue.add(key, future, load, deadline, by)
            self._start()
            self._change.notify()
        future.add_done_callback(partial(self._left, key))
        return future

    def check(self, keys: Sequence[str], deadline: float, hope_s: float) -> None:
        """Whether ``acquire`` would take these keys together now; ask before costly work. Raises LoadsBehind."""
        with self._change:
            cold, now = [key for key in keys if key not in self._resident], self._clock()
            try:
                self._check(cold, due(deadline, now, all(self._usage.wanted(key, now) for key in cold)), now, hope_s)
            except LoadsBehind:
                for key in cold:  # who is refused and comes back is let in before others
                    self._usage.saw(key, now)
                raise

    def resident(self, key: str) -> bool:
        """Whether a slot holds the key; it may lose it the next moment."""
        return key in self._resident

    def keep_on_host(self, key: str, packed: PackedAdapter) -> None:
        """Put a packed adapter into the host cache, dropping the least recently used ones past the bound."""
        with self._change:
            self._drop_from_host(key)
            self._host[key] = packed
            self._stats.host_bytes += packed.nbytes
            while self._stats.host_bytes > self._host_limit:
                self._drop_from_host(next(iter(self._host)))
                self._stats.evictions["host"] += 1

    def forget(self, key: str) -> None:
        """Drop a key from both caches; requests that run on it end first."""
        with self._change:
            self._drop_from_host(key)
            if self._loading == key:
                self._forgotten = True
            resident = self._resident.get(key) or self._yielding.pop(key, None)
            if resident is not None:
                self._drain(resident)

    def tier(self, key: str) -> str:
        """Where a key is now: ``device``, ``host`` or ``disk``."""
        with self._change:
            return "device" if key in self._resident else "host" if key in self._host else "disk"

    def stats(self) -> BankStats:
        with self._change:
            s = self._stats
            used = s.slots - len(self._free_slots)
            pinned = sum(r.pins > 0 for r in (*self._resident.values(), *self._yielding.values()))
            return BankStats(s.slots, used, pinned, s.host_bytes, dict(s.loads), dict(s.evictions))

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
        _fail(waiting, NoRoom("the bank is closed"))
        if self._loader is not None:
            self._loader.join(CLOSE_S)

    def _pin(self, key: str, now: float) -> Lease | None:
        resident = self._resident.get(key)
        if resident is None:
            return None
        self._usage.saw(key, now)
        resident.pins += 1
        return Lease(self, resident)

    def _start(self) -> None:
        if self._loader is None:
            self._loader = threading.Thread(target=self._run, name="bank-loader", daemon=True)
            self._loader.start()

    def _check(self, keys: Sequence[str], by: float, now: float, hope_s: float) -> None:
        before, own = self._queue.ahead(keys, by)
        if not keys or (self._loading is None and not before):
            return  # nothing is before them: how long a load takes is then found out by loading
        each, rest = self._load_s or 0.0, 0.0
        if self._loading is not None:
            running = now - self._begun
            rest = each - running if running < each else running  # what takes longer than usual may take as long again
        wait = (before + own) * each + rest
        if wait > hope_s:
            raise self._behind(wait)

    def _behind(self, wait: float) -> LoadsBehind:
        waiting = len(self._queue) + (self._loading is not None)
        return LoadsBehind(
            f"{waiting} adapters wait to be loaded, which takes about {wait:.1f} s", wait_s=wait, loads=waiting
        )

    def _left(self, key: str, future: Future[Lease]) -> None:
        """A future is done: if it was cancelled, its claim and all that hangs on it goes."""
        if future.cancelled():
            with self._change:
                self._queue.remove(key, future)
                self._change.notify()  # perhaps the slot that is waited for is not needed any more

    def _run(self) -> None:
        """The loader's thread: the most urgent load that somebody waits for, then the next."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or len(self._queue))
                if self._closed:
                    return
                key, late = self._queue.take(self._clock(), self._load_s or 0.0)
                behind = self._behind((len(self._queue) + 1) * (self._load_s or 0.0)) if late else None
                self._loading, self._begun, self._forgotten = key, self._clock(), False
            if behind is not None:
                _fail(late, behind)
            late, behind = [], None  # this frame lives on while nothing waits, and must hold nobody's future
            while key is not None and not self._load(key):
                pass  # somebody came after the last other one had left

    def _load(self, key: str) -> bool:
        """Read it, then a slot, then the copy, then everybody who still waits. False: somebody came after that."""
        resident: _Resident | None = None
        try:
            packed = self._read(key)
            resident = None if packed is None else self._bring(key, packed)
        except BaseException as error:  # whatever it was, the waiting callers must hear of it
            self._refuse(key, error)
        with self._change:
            if resident is None and self._queue.waits(key):
                return False
            taken = self._clock() - self._begun
            self._load_s = taken if self._load_s is None else SMOOTH * self._load_s + (1 - SMOOTH) * taken
            waiting = [f for f in self._queue.end(key) if f.set_running_or_notify_cancel()]
            self._loading = None
            if resident is None:
                return True
            self._stats.loads["device"] += 1
            resident.pins += len(waiting)
            if self._forgotten:
                self._drain(resident)
            else:
                self._resident[key] = resident
        for future in waiting:
            future.set_result(Lease(self, resident))
        self._on_load(taken)
        return True

    def _read(self, key: str) -> PackedAdapter | None:
        """From the host cache, else with the callers' loaders, the first one's first; None once nobody waits."""
        with self._change:
            packed = self._host.get(key)
            if packed is not None:
                self._host.move_to_end(key)
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
                self._stats.loads["host"] += 1
                forgotten = self._forgotten
            if not forgotten:
                self.keep_on_host(key, packed)
            return packed

    def _refuse(self, key: str, error: BaseException, load: Loader | None = None) -> None:
        """Tell those who claim a key, or of them those with that loader, what went wrong."""
        with self._change:
            failed = [f for f, own in self._queue.claims(key).items() if load is None or own == load]
            for future in failed:
                self._queue.remove(key, future)
        _fail(failed, error)

    def _bring(self, key: str, packed: PackedAdapter) -> _Resident | None:
        place = self._reserve(key, len(packed.pages))
        if place is None:
            return None
        slot, pages = place
        try:
            self.slabs.write(slot, pages, packed)
        except BaseException:
            with self._change:
                self._give_back(slot, pages)
            raise
        return _Resident(key, packed.meta, slot, tuple(pages))

    def _reserve(self, key: str, pages: int) -> tuple[int, list[int]] | None:
        """Take a free slot and ``pages`` free pages, evicting or waiting for as long as that takes and somebody waits.

        None if nobody does and nothing is free.
        """
        if pages > self.slabs.page_count:
            raise AdapterTooLarge(
                f"the head needs {pages} pages, the bank has {self.slabs.page_count}",
                limit=self.slabs.page_count, value=pages,
            )  # fmt: skip
        with self._change:
            place = self._wait_for_place(key, pages)
            again = self._go_on()
        for future, resident in again:
            future.set_result(Lease(self, resident))
        return place

    def _wait_for_place(self, key: str, pages: int) -> tuple[int, list[int]] | None:
        asked = self._clock()
        patience = min(YIELD_AFTER_S, (self._queue.deadline(key) - asked) / 2)
        while not (self._free_slots and len(self._free_pages) >= pages):
            if not self._queue.waits(key):  # also when the bank is closed
                return None
            idle = self._usage.least(k for k, resident in self._resident.items() if not resident.pins)
            if idle is not None:
                self._drain(self._resident[idle])
                continue
            left = asked + patience - self._clock()
            if left <= 0:
                self._ask_to_yield(pages)
            self._change.wait(left if left > 0 else None)
        return self._free_slots.pop(), [self._free_pages.pop() for _ in range(pages)]

    def _ask_to_yield(self, pages: int) -> None:
        """Put the least used residents out of reach until what they will free is enough."""
        while self._resident:
            coming = len(self._free_pages) + sum(len(r.pages) for r in self._yielding.values())
            if (self._free_slots or self._yielding) and coming >= pages:
                return
            key = self._usage.least(self._resident)
            assert key is not None
            resident = self._resident.pop(key)
            resident.draining = True
            self._yielding[key] = resident

    def _go_on(self) -> list[tuple[Future[Lease], _Resident]]:
        """The newcomer has its slot, or left: who was asked to yield and has not stays, and takes who waits for it."""
        again = []
        for key, resident in self._yielding.items():
            resident.draining = False
            self._resident[key] = resident
            if self._queue.waits(key):
                waiting = [f for f in self._queue.end(key) if f.set_running_or_notify_cancel()]
                resident.pins += len(waiting)
                again += [(future, resident) for future in waiting]
        self._yielding.clear()
        return again

    def _drain(self, resident: _Resident) -> None:
        """Take a resident out of reach; its slot is freed now or when its last request ends."""
        if self._resident.get(resident.key) is resident:
            del self._resident[resident.key]
        resident.draining = True
        if resident.pins == 0:
            self._free(resident)

    def _release(self, lease: Lease) -> None:
        with self._change:
            if not lease._open:
                return
            lease._open = False
            resident = lease._resident
            resident.pins -= 1
            if resident.pins:
                return
            if resident.draining:
                if self._yielding.get(resident.key) is resident:
                    del self._yielding[resident.key]
                self._free(resident)
            elif self._loading is not None:
                self._change.notify()  # an idle slot, for whoever waits for one

    def _free(self, resident: _Resident) -> None:
        self._stats.evictions["device"] += 1
        self._give_back(resident.slot, resident.pages)

    def _give_back(self, slot: int, pages: Sequence[int]) -> None:
        self._free_slots.append(slot)
        self._free_pages.extend(pages)
        self._change.notify()

    def _drop_from_host(self, key: str) -> None:
        packed = self._host.pop(key, None)
        if packed is not None:
            self._stats.host_bytes -= packed.nbytes


def _fail(futures: Iterable[Future[Lease]], error: BaseException) -> None:
    for future in futures:
        if future.set_running_or_notify_cancel():
            future.set_exception(error)
