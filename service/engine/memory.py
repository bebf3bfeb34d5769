"""Memory that the processes of a server share, passed on as file descriptors; it has no name that could be left behind.

It does not know what lies in it.
"""

from __future__ import annotations

import mmap
import os
import tempfile


def create(size: int) -> int:
    """A descriptor of ``size`` zero bytes, which take memory as they are written."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("adaptserve")
    else:  # macOS
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def mapped(descriptor: int) -> mmap.mmap:
    """All of it, to read and to write."""
    return mmap.mmap(descriptor, os.fstat(descriptor).st_size)
