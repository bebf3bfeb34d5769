"""Torch on one thread, for products and copies too small to be worth waking others for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch computes on the calling thread alone; what other threads compute is as before.

    A tensor of 50,000 numbers is shared out among torch's threads, which takes as long as the copy itself on an idle
    machine, and a hundred times that where another forward pass has the cores: its threads wait for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
