"""Torch on one thread for the one who asks for it, and for nobody else."""

from __future__ import annotations

import threading

import pytest
import torch

from adapters.threads import one_thread


def test_only_the_calling_thread_computes_alone() -> None:
    before, seen = torch.get_num_threads(), []
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with one_thread():
            seen.append(torch.get_num_threads())
            inside.set()
            assert done.wait(10)
        seen.append(torch.get_num_threads())

    torch.set_num_threads(2)
    try:
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
        assert torch.get_num_threads() == 2
        done.set()
        thread.join()
        assert seen == [1, 2]
        with pytest.raises(ValueError, match="broken"), one_thread():
            raise ValueError("broken")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
