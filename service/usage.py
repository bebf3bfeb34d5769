"""Usage: how many pictures and clips the holders of keys have asked about, of their rates and quotas.

The numbers lie in a file of the data folder that all front ends have in memory, so a day's count outlives a restart.
Nobody locks: of two front ends that count for one key in the same instant one may not be seen, so that a key may have
some in a million more than it should.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters.atomic import replacing
from service.errors import OverQuota, OverRate
from service.keys import Key, Keys

log = logging.getLogger(__name__)

USAGE = "usage"
"""The file's name in the data folder."""
DAY_S = 86_400
SLACK_S = 1e-6
MOST_ITEMS = 4096
"""Of one request, at the most that a setting allows."""
NAME_BYTES = 16
LINE_BYTES = NAME_BYTES + 3 * 8
"""Of a holder: its name, hashed, and three numbers."""
DAY, USED, DUE = range(3)
"""The day since the epoch, how many it was asked about in it, and the time that the rate's next is due."""


@dataclass(frozen=True)
class _Limited:
    key: Key
    first: int  # of its numbers


class Consumption:
    """Rates by the generic cell rate algorithm (ITU-T I.371), quotas by a count for each day of UTC.

    It knows only holders that have one of them: all others cost one look in a table.
    """

    def __init__(
        self, keys: Keys, table: mmap.mmap | bytearray | None = None, *,
        refused: Callable[[str, str, int], None] = lambda *_: None, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """``table`` is that of ``open_table``, or one of this process alone; ``refused`` is told of whom and why."""
        limited = _limited(keys)
        whole = memoryview(bytearray(LINE_BYTES * len(limited)) if table is None else table)
        self._numbers: memoryview[float] = (whole if limited else memoryview(bytes(8))).cast("B").cast("d")
        self._refused, self._clock = refused, clock
        self._limited = {
            key.name: _Limited(key, (number * LINE_BYTES + NAME_BYTES) // 8) for number, key in enumerate(limited)
        }
        for key in limited:  # so that whoever watches sees the first refusal as a change
            for name in ("rate", "quota"):
                if getattr(key, name) is not None:
                    refused(key.name, name, 0)

    def admit(self, holder: str, items: int = 1) -> None:
        """Count so many pictures or clips of a holder. Raises OverRate or OverQuota, and then nothing is counted.

        More at once than the key ever may come through when it has rested, and are worked off after that.
        """
        limited = self._limited.get(holder)
        if limited is None:
            return
        key, first, numbers, now = limited.key, limited.first, self._numbers, self._clock()
        today = now // DAY_S
        used = items + (numbers[first + USED] if numbers[first + DAY] == today else 0)
        if key.quota is not None and used > key.quota:
            self._refused(holder, "quota", 1)
            wait = DAY_S - now % DAY_S
            raise OverQuota(
                f"key '{holder}' may ask about {key.quota} pictures or clips a day (quota), and has asked about "
                f"{int(used) - items} since midnight UTC; the next day begins in {wait / 3600:.1f} h",
                retry_after=wait, field="quota", limit=key.quota, value=int(used), reason="quota",
            )  # fmt: skip
        if key.rate is not None:
            ahead = numbers[first + DUE] - now
            if not 0 <= ahead <= max(key.at_once, MOST_ITEMS) / key.rate:  # it has rested, or the clock was set back
                ahead = 0.0
            wait = ahead + (items - max(key.at_once, items)) / key.rate
            if wait > SLACK_S:
                self._refused(holder, "rate", 1)
                raise OverRate(
                    f"key '{holder}' may ask about {key.rate:g} pictures or clips a second, {key.at_once} at once "
                    f"(rate, burst); try again in {wait:.2f} s",
                    retry_after=wait, field="rate", limit=key.rate, value=items, reason="rate",
                )  # fmt: skip
            numbers[first + DUE] = now + ahead + items / key.rate
        numbers[first + DAY], numbers[first + USED] = today, used


def prepare_table(path: Path, keys: Keys) -> None:
    """Write the file anew, for these keys, with what it says of them. For one process, before others open it.

    Where that fails there is none, and each front end counts for itself: said in the log.
    """
    limited = _limited(keys)
    try:
        old = path.read_bytes() if path.exists() else b""
        known = {old[at : at + NAME_BYTES]: old[at : at + LINE_BYTES] for at in range(0, len(old), LINE_BYTES)}
        lines = [known.get(_hash(key), b"") or _hash(key) for key in limited]
        if limited or old:
            with replacing(path, mode=0o600) as temporary:
                temporary.write_bytes(b"".join(line.ljust(LINE_BYTES, b"\0") for line in lines))
    except OSError as error:
        log.warning("the keys' counts cannot be kept in %s (%s): they begin at nothing", path, error.strerror or error)


def open_table(path: Path, keys: Keys) -> mmap.mmap | None:
    """What ``prepare_table`` made, shared with all who open it; None where there is none of these keys."""
    limited = _limited(keys)
    if not limited:
        return None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            table = mmap.mmap(descriptor, LINE_BYTES * len(limited))
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        log.warning("the keys' counts cannot be read from %s (%s): this process counts for itself", path, error)
        return None
    names = [table[at : at + NAME_BYTES] for at in range(0, len(table), LINE_BYTES)]
    return table if names == [_hash(key) for key in limited] else None


def _limited(keys: Keys) -> list[Key]:
    return [key for key in keys.all if key.rate is not None or key.quota is not None]


def _hash(key: Key) -> bytes:
    """By its name, so that the count stays where a key is replaced."""
    return hashlib.sha256(key.name.encode()).digest()[:NAME_BYTES]
