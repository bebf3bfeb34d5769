"""`adaptserve` with a device that is lost when a file appears: from then on every forward pass raises.

It stands in for a CUDA error that sticks, which no test can cause for real.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapters.forward.banked import BankedForward, Job
from service.cli import main

LOST = "TEST_DEVICE_LOST"
"""The variable that names the file."""
MESSAGE = "CUDA error: an illegal memory access was encountered"


def _lose(sign: Path) -> None:
    inner = BankedForward.__call__

    def forward(self: BankedForward, jobs: Sequence[Job]) -> list[NDArray[np.float32]]:
        if sign.exists():
            raise RuntimeError(f"{MESSAGE}\nSearch for `cudaErrorIllegalAddress' in the manual.")
        return inner(self, jobs)

    BankedForward.__call__ = forward  # type: ignore[method-assign]


if __name__ == "__main__":
    _lose(Path(os.environ[LOST]))
    main()
