"""The host cache: packed adapters in main memory, bounded in bytes, the least recently used dropped first.

The caller holds the lock.
"""

from __future__ import annotations

from collections import OrderedDict

from adapters.bank.pack import PackedAdapter


class HostCache:
    """At most ``limit`` bytes; ``nbytes`` are held, ``evictions`` counts what the bound drove out."""

    def __init__(self, limit: int) -> None:
        self.nbytes = self.evictions = 0
        self._limit = limit
        self._kept: OrderedDict[str, PackedAdapter] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def get(self, key: str) -> PackedAdapter | None:
        """What is kept under a key, and now is the one used last."""
        packed = self._kept.get(key)
        if packed is not None:
            self._kept.move_to_end(key)
        return packed

    def keep(self, key: str, packed: PackedAdapter) -> None:
        self.drop(key)
        self._kept[key] = packed
        self.nbytes += packed.nbytes
        while self.nbytes > self._limit:
            self.drop(next(iter(self._kept)))
            self.evictions += 1

    def drop(self, key: str) -> None:
        packed = self._kept.pop(key, None)
        if packed is not None:
            self.nbytes -= packed.nbytes
