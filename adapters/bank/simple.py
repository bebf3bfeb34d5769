"""SimpleBank: adapters by name, all of them resident, for one thread; it grows where they no longer fit.

A server has more adapters than slots, and many threads; its bank is ``bank.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from adapters.bank.pack import pack
from adapters.bank.policy import Usage
from adapters.bank.slabs import Slabs
from adapters.bank.slots import Resident, Slots
from adapters.config import InputConfig
from adapters.file import Adapter
from adapters.heads import pages_of
from adapters.layout import Layout


class SimpleBank:
    """Room at first for ``slots`` adapters of ``rank`` and ``pages`` together, or more where ``adapters`` need it.

    ``seen`` as in ``Slabs``. ``slabs`` is another object after the bank grew: then every adapter was packed and written
    again.
    """

    def __init__(
        self,
        layout: Layout,
        adapters: Mapping[str, Adapter],
        *,
        dtype: torch.dtype,
        device: torch.device,
        slots: int = 1,
        rank: int = 1,
        pages: int = 1,
        seen: InputConfig | None = None,
    ) -> None:
        slots = max(slots, len(adapters))
        pages = max(pages, slots, sum(map(_pages, adapters.values())))
        rank = max([rank, *map(_rank, adapters.values())])
        self.layout, self._seen = layout, seen
        self.slabs = Slabs(layout, slots=slots, rank=rank, pages=pages, dtype=dtype, device=device, seen=seen)
        self._slots = Slots(slots, pages, Usage(0))
        self._residents: dict[str, Resident] = {}
        self._adapters: dict[str, Adapter] = {}
        for name, adapter in adapters.items():
            self._write(name, adapter)

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """What is held, by name."""
        return self._adapters

    def __getitem__(self, name: str) -> Resident:
        """Where an adapter is. Raises KeyError."""
        return self._residents[name]

    def put(self, name: str, adapter: Adapter) -> None:
        """Hold an adapter that ``Adapter.check`` accepted, in place of one of that name. Raises NoRoom."""
        if _rank(adapter) <= self.slabs.rank and self._slots.room(_pages(adapter)):
            self._write(name, adapter)
        else:
            self._grow({**self._adapters, name: adapter})

    def drop(self, name: str) -> None:
        """Let an adapter go. Raises KeyError."""
        gone = self._residents.pop(name)
        self._slots.give_back(gone.slot, gone.pages)
        del self._adapters[name]

    def _write(self, name: str, adapter: Adapter) -> None:
        packed = pack(adapter, self.layout, self.slabs.rank, self.slabs.dtype)
        slot, pages = self._slots.take(len(packed.pages))
        try:
            self.slabs.write(slot, pages, packed)
        except BaseException:
            self._slots.give_back(slot, pages)
            raise
        old = self._residents.get(name)
        self._adapters[name] = adapter
        self._residents[name] = Resident(adapter.digest, packed.meta, slot, tuple(pages))
        if old is not None:
            self._slots.give_back(old.slot, old.pages)

    def _grow(self, adapters: Mapping[str, Adapter]) -> None:
        """Into new memory; the old one stays until every adapter is there."""
        slabs = self.slabs
        grown = SimpleBank(
            self.layout, adapters, dtype=slabs.dtype, device=slabs.device, rank=slabs.rank, seen=self._seen,
            slots=_roomy(slabs.slots, len(adapters)),
            pages=_roomy(slabs.page_count, sum(map(_pages, adapters.values()))),
        )  # fmt: skip
        self.slabs, self._slots = grown.slabs, grown._slots
        self._residents, self._adapters = grown._residents, grown._adapters


def _rank(adapter: Adapter) -> int:
    return max((site.rank for site in adapter.config.sites), default=1)


def _pages(adapter: Adapter) -> int:
    return pages_of(adapter.config)


def _roomy(now: int, wanted: int) -> int:
    """Doubled where it is too little, so that adding adapters one by one costs no more than a few rewrites."""
    return now if wanted <= now else max(wanted, 2 * now)
