"""Who is resident: load into a free slot, pin while in use, evict the least recently used.

Loading runs on a thread of its own and ends before anybody is told, so a batch never waits for another
task's load. A live slot is never written. It knows nothing of requests, rows or tasks: its key is a digest.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from adapters.bank.pack import AdapterMeta, PackedAdapter
from adapters.bank.slabs import Slabs
from adapters.errors import AdapterTooLarge, NoRoom

log = logging.getLogger(__name__)

Loader = Callable[[], PackedAdapter]


@dataclass
class _Resident:
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

    When every slot is pinned, the least recently used resident is drained: its running requests end, its new
    ones queue behind the newcomer. So more tasks than slots take turns, and none starves.
    """

    def __init__(self, slabs: Slabs, *, host_cache_bytes: int, on_load: Callable[[float], None] | None = None) -> None:
        self.slabs = slabs
        self._host_limit = host_cache_bytes
        self._on_load = on_load or (lambda _: None)
        self._change = threading.Condition()
        self._free_slots = list(range(slabs.slots, 0, -1))
        self._free_pages = list(range(slabs.page_count, 0, -1))
        self._resident: OrderedDict[str, _Resident] = OrderedDict()  # least recently used first
        self._waiting: dict[str, list[Future[Lease]]] = {}
        self._host: OrderedDict[str, PackedAdapter] = OrderedDict()
        self._stats = BankStats(slots=slabs.slots)
        self._closed = False
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bank-loader")

    def acquire(self, key: str, load: Loader) -> Future[Lease]:
        """A future of a pinned slot; done at once when the adapter is resident. Never blocks.

        ``load`` runs on the loader thread and only if the host cache lacks the key; what it raises, every
        waiting future gets. Cancelling the future gives the pin back.
        """
        future: Future[Lease] = Future()
        with self._change:
            if self._closed:
                raise NoRoom("the bank is closed")
            resident = self._resident.get(key)
            if resident is not None:
                self._resident.move_to_end(key)
                resident.pins += 1
                future.set_result(Lease(self, resident))
            elif key in self._waiting:
                self._waiting[key].append(future)
            else:
                self._waiting[key] = [future]
                self._loader.submit(self._load, key, load)
        return future

    def keep_on_host(self, key: str, packed: PackedAdapter) -> None:
        """Put a packed adapter into the host cache, dropping the least recently used ones past the bound."""
        with self._change:
            self._host[key] = packed
            self._host.move_to_end(key)
            self._stats.host_bytes = sum(p.nbytes for p in self._host.values())
            while self._stats.host_bytes > self._host_limit and len(self._host) > 0:
                _, dropped = self._host.popitem(last=False)
                self._stats.host_bytes -= dropped.nbytes
                self._stats.evictions["host"] += 1

    def forget(self, key: str) -> None:
        """Drop a key from both caches; requests that run on it end first."""
        with self._change:
            packed = self._host.pop(key, None)
            if packed is not None:
                self._stats.host_bytes -= packed.nbytes
            resident = self._resident.get(key)
            if resident is not None:
                self._drain(key, resident)

    def tier(self, key: str) -> str:
        """Where a key is now: ``device``, ``host`` or ``disk``."""
        with self._change:
            return "device" if key in self._resident else "host" if key in self._host else "disk"

    def stats(self) -> BankStats:
        with self._change:
            s = self._stats
            used = s.slots - len(self._free_slots)
            pinned = sum(r.pins > 0 for r in self._resident.values())
            return BankStats(s.slots, used, pinned, s.host_bytes, dict(s.loads), dict(s.evictions))

    def close(self) -> None:
        """Refuse what waits and stop the loader. Leases still held stay valid."""
        with self._change:
            self._closed = True
            waiting = [f for futures in self._waiting.values() for f in futures]
            self._waiting.clear()
            self._change.notify_all()
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(NoRoom("the bank is closed"))
        self._loader.shutdown(wait=True, cancel_futures=True)

    def _load(self, key: str, load: Loader) -> None:
        """On the loader thread: host cache or ``load``, then a slot, then the copy, then everybody who waits."""
        start = time.perf_counter()
        try:
            resident = self._bring(key, load)
        except BaseException as error:  # whatever it was, the waiting callers must hear of it
            for future in self._pop_waiting(key):
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
            return
        with self._change:
            self._resident[key] = resident
            self._stats.loads["device"] += 1
            waiting = [f for f in self._waiting.pop(key, []) if f.set_running_or_notify_cancel()]
            resident.pins += len(waiting)
        for future in waiting:
            future.set_result(Lease(self, resident))
        self._on_load(time.perf_counter() - start)

    def _pop_waiting(self, key: str) -> list[Future[Lease]]:
        with self._change:
            return self._waiting.pop(key, [])

    def _bring(self, key: str, load: Loader) -> _Resident:
        with self._change:
            packed = self._host.get(key)
            if packed is not None:
                self._host.move_to_end(key)
        if packed is None:
            packed = load()
            with self._change:
                self._stats.loads["host"] += 1
            self.keep_on_host(key, packed)
        slot, pages = self._reserve(len(packed.pages))
        try:
            self.slabs.write(slot, pages, packed)
        except BaseException:
            with self._change:
                self._give_back(slot, pages)
            raise
        return _Resident(packed.meta, slot, tuple(pages))

    def _reserve(self, pages: int) -> tuple[int, list[int]]:
        """Take a free slot and ``pages`` free pages, evicting or waiting for as long as that takes."""
        if pages > self.slabs.page_count:
            raise AdapterTooLarge(
                f"the head needs {pages} pages, the bank has {self.slabs.page_count}",
                limit=self.slabs.page_count, value=pages,
            )  # fmt: skip
        with self._change:
            while not (self._free_slots and len(self._free_pages) >= pages):
                if self._closed:
                    raise NoRoom("the bank is closed")
                if not self._evict_one():
                    self._change.wait()
            return self._free_slots.pop(), [self._free_pages.pop() for _ in range(pages)]

    def _evict_one(self) -> bool:
        """Evict the least recently used unpinned resident; else drain the least recently used one. False: wait."""
        for key, resident in self._resident.items():
            if resident.pins == 0:
                self._drain(key, resident)
                return True
        if self._resident:
            key = next(iter(self._resident))
            self._drain(key, self._resident[key])
        return False

    def _drain(self, key: str, resident: _Resident) -> None:
        """Take a resident out of reach; its slot is freed now or when its last request ends."""
        del self._resident[key]
        resident.draining = True
        if resident.pins == 0:
            self._stats.evictions["device"] += 1
            self._give_back(resident.slot, resident.pages)

    def _give_back(self, slot: int, pages: Sequence[int]) -> None:
        self._free_slots.append(slot)
        self._free_pages.extend(pages)
        self._change.notify_all()

    def _release(self, lease: Lease) -> None:
        with self._change:
            if not lease._open:
                return
            lease._open = False
            resident = lease._resident
            resident.pins -= 1
            if resident.draining and resident.pins == 0:
                self._stats.evictions["device"] += 1
                self._give_back(resident.slot, resident.pages)
