"""The slots of a bank: which are free, who is resident in the others, who is pinned, and who gives one up.

Bookkeeping alone: it copies nothing and waits for nothing, and the caller holds the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from adapters.bank.policy import Usage
from adapters.errors import AdapterTooLarge, NoRoom
from adapters.meta import AdapterMeta


@dataclass(eq=False)
class Resident:
    """An adapter in its slot; one that is ``draining`` is out of reach, and gone when its last pin is."""

    key: str
    meta: AdapterMeta
    slot: int
    pages: tuple[int, ...]
    pins: int = 0
    draining: bool = False


class Lease:
    """The right to read one slot until ``release``; releasing twice is harmless."""

    __slots__ = ("_give_back", "_open", "_resident", "meta", "pages", "slot")

    def __init__(self, resident: Resident, give_back: Callable[[Lease], None]) -> None:
        self.meta, self.slot, self.pages = resident.meta, resident.slot, resident.pages
        self._resident, self._give_back, self._open = resident, give_back, True

    def release(self) -> None:
        self._give_back(self)

    def end(self) -> Resident | None:
        """Whose pin this was, the first time; None after that."""
        was, self._open = self._open, False
        return self._resident if was else None


@dataclass
class BankStats:
    """Counters since start, and what is held now."""

    slots: int
    used: int = 0
    pinned: int = 0
    host_bytes: int = 0
    loads: dict[str, int] = field(default_factory=lambda: {"host": 0, "device": 0})
    evictions: dict[str, int] = field(default_factory=lambda: {"host": 0, "device": 0})
    resident: tuple[str, ...] = ()
    """Keys that have a slot, the latest comer last."""
    waiting: tuple[str, ...] = ()
    """Keys that somebody waits for."""


class Slots:
    """``resident`` by key are those that can be pinned; ``evictions`` counts slots that were given up."""

    def __init__(self, slots: int, pages: int, usage: Usage) -> None:
        self.resident: dict[str, Resident] = {}
        self.evictions = 0
        self.kept: frozenset[str] = frozenset()
        """Keys whose residents make room for nobody."""
        self._usage = usage
        self._yielding: dict[str, Resident] = {}  # in use, and out of reach for the sake of a newcomer
        self._count, self._page_count = slots, pages
        self._free_slots = list(range(slots, 0, -1))
        self._free_pages = list(range(pages, 0, -1))

    @property
    def used(self) -> int:
        return self._count - len(self._free_slots)

    @property
    def pinned(self) -> int:
        return sum(r.pins > 0 for r in (*self.resident.values(), *self._yielding.values()))

    def check(self, pages: int, key: str) -> None:
        """Whether a slot and so many pages could ever be free for a key. Raises AdapterTooLarge or NoRoom."""
        if pages > self._page_count:
            raise AdapterTooLarge(
                f"the head needs {pages} pages, the bank has {self._page_count}", limit=self._page_count, value=pages
            )
        stay = [r for r in (*self.resident.values(), *self._yielding.values()) if r.key in self.kept and r.key != key]
        left = self._page_count - sum(len(r.pages) for r in stay)
        if pages > left or len(stay) >= self._count:
            raise NoRoom(
                f"the head needs a slot and {pages} pages, and {len(stay)} pinned adapters leave {left} of "
                f"{self._page_count} pages and {self._count - len(stay)} of {self._count} slots; pin fewer tasks",
                limit=left, value=pages,
            )  # fmt: skip

    def room(self, pages: int) -> bool:
        """Whether a slot and so many pages are free."""
        return bool(self._free_slots) and len(self._free_pages) >= pages

    def take(self, pages: int) -> tuple[int, list[int]]:
        """A free slot and so many free pages."""
        return self._free_slots.pop(), [self._free_pages.pop() for _ in range(pages)]

    def give_back(self, slot: int, pages: Sequence[int]) -> None:
        self._free_slots.append(slot)
        self._free_pages.extend(pages)

    def unpin(self, resident: Resident) -> None:
        """One of its requests has ended."""
        resident.pins -= 1
        if resident.draining and not resident.pins:
            if self._yielding.get(resident.key) is resident:
                del self._yielding[resident.key]
            self._evict(resident)

    def drain(self, resident: Resident) -> None:
        """Take a resident out of reach; its slot is freed now or when its last request ends."""
        for table in (self.resident, self._yielding):
            if table.get(resident.key) is resident:
                del table[resident.key]
        resident.draining = True
        if not resident.pins:
            self._evict(resident)

    def forget(self, key: str) -> None:
        """Drain whoever is there under a key."""
        resident = self.resident.get(key) or self._yielding.get(key)
        if resident is not None:
            self.drain(resident)

    def evict_idle(self) -> bool:
        """Free the slot of the least used resident that nobody has pinned; False if there is none."""
        key = self._usage.least(key for key, r in self.resident.items() if not r.pins and key not in self.kept)
        if key is not None:
            self.drain(self.resident[key])
        return key is not None

    def ask_to_yield(self, pages: int) -> None:
        """Put the least used residents out of reach until what they will free is enough."""
        while self.resident:
            coming = len(self._free_pages) + sum(len(r.pages) for r in self._yielding.values())
            if (self._free_slots or self._yielding) and coming >= pages:
                return
            key = self._usage.least(key for key in self.resident if key not in self.kept)
            if key is None:
                return
            resident = self._yielding[key] = self.resident.pop(key)
            resident.draining = True

    def go_on(self) -> list[Resident]:
        """Whoever was asked to yield, has not, and need not any more is within reach again."""
        stay = list(self._yielding.values())
        self._yielding.clear()
        for resident in stay:
            resident.draining = False
            self.resident[resident.key] = resident
        return stay

    def _evict(self, resident: Resident) -> None:
        self.evictions += 1
        self.give_back(resident.slot, resident.pages)


def refuse(futures: Iterable[Future[Lease]], error: BaseException | None) -> None:
    """Tell those who still wait why they get no lease."""
    for future in futures:
        if future.set_running_or_notify_cancel():
            future.set_exception(error)
