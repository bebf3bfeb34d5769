"""The engine's heap: what a forward freed is there for the next one, on whatever thread it runs."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

BIG = 48 << 20
FAULTS = f"""
import resource, sys, threading
from service.engine.heap import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = []
def work():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        len(b"x" * {BIG})
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(max(faults[1:]))
"""


def faults(way: str) -> int:
    """Page faults for a large block that was there before, in a process of its own."""
    ran = subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, timeout=60, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_taken_again_without_the_kernel() -> None:
    assert faults("usual") > 1000
    assert faults("keep") < 100
