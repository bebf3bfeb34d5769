"""Prefix cache: the tokens of pictures before a block, for who asks several tasks about a picture one after another.

Up to the first block that a task adapts, a picture's tokens depend on its pixels and their normalisation alone, so the
next task begins where they are kept. It knows no batch; tensors stay on the device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor


class PrefixCache:
    """At most ``max_bytes`` of tokens; the picture that was asked about least recently goes first. For one thread."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.hits = 0
        """Pictures that went on from kept tokens."""
        self._kept: OrderedDict[Hashable, dict[int, Tensor]] = OrderedDict()

    def __len__(self) -> int:
        """Pictures."""
        return len(self._kept)

    def last(self, picture: Hashable, block: int) -> int:
        """See ``streams.Prefixes``."""
        return max((kept for kept in self._kept.get(picture, ()) if kept <= block), default=0)

    def take(self, picture: Hashable, block: int) -> Tensor:
        """Tokens (frames, tokens, width) before a block of which ``last`` has just told."""
        self.hits += 1
        self._kept.move_to_end(picture)
        return self._kept[picture][block]

    def put(self, picture: Hashable, block: int, tokens: Tensor) -> None:
        """Keep tokens that nobody else writes; not those that are larger than the cache."""
        if tokens.nbytes > self.max_bytes:
            return
        blocks = self._kept.setdefault(picture, {})
        self._kept.move_to_end(picture)
        if block in blocks:
            return
        blocks[block] = tokens
        self.nbytes += tokens.nbytes
        while self.nbytes > self.max_bytes:
            _, gone = self._kept.popitem(last=False)
            self.nbytes -= sum(kept.nbytes for kept in gone.values())
