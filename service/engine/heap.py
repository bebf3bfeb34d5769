"""The heap of a process that computes on the CPU: freed memory stays there for the next batch.

glibc gives a large block back to the kernel as soon as it is freed, and takes the next one as untouched pages. A
forward's activations are such blocks: 18,000 page faults for eight pictures of ViT-S, at every forward again.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Whether it was done: glibc alone. Call it once, before the first thread and the first forward.

    One arena for all threads, for an arena of a thread's own lives in heaps of 64 MiB that are given back. The process
    then keeps what its largest batch needed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_ARENA_MAX, 1), mallopt(M_MMAP_THRESHOLD, LARGEST), mallopt(M_TRIM_THRESHOLD, LARGEST)])
