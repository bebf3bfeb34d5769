"""What a device or a load raised, told to the log in full and to callers in one of our errors.

It knows torch's ways to run out of memory; it does not know batches, queues or HTTP.
"""

from __future__ import annotations

import logging
from contextlib import suppress

import torch

from adapters.errors import AdaptError, NoRoom
from service.errors import ComputeFailed

log = logging.getLogger(__name__)

LONGEST = 300
"""Characters of a foreign message that are repeated."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on whichever device; the CPU's allocator has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def one_line(error: BaseException) -> str:
    """The error's class and its first words."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:LONGEST]}"


def told(error: BaseException, doing: str) -> AdaptError:
    """Log a foreign error with its traceback, give cached memory back if it ran out; ComputeFailed or NoRoom."""
    log.error("%s failed: %s", doing, one_line(error), exc_info=error)
    if not out_of_memory(error):
        return ComputeFailed(f"{doing} failed: {type(error).__name__}; the server's log has the details")
    with suppress(RuntimeError):  # a lost device refuses this too
        torch.cuda.empty_cache()
    return NoRoom("the device has no memory left for this request; try again later, or with fewer frames or tasks")
