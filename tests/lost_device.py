"""`adaptserve` with a device that is lost when a file appears: from then on every forward pass raises.

It stands in for a CUDA error that sticks, which no test can cause for real.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from service import supervisor
from tests import children

LOST = "TEST_DEVICE_LOST"
"""The variable that names the file."""
MESSAGE = "CUDA error: an illegal memory access was encountered"


def _lose(process: str) -> None:
    if process == children.FRONT_END:
        return
    from adapters.forward.banked import BankedForward

    inner, sign = BankedForward.__call__, Path(os.environ[LOST])

    def forward(self: BankedForward, jobs: Any) -> Any:
        if sign.exists():
            raise RuntimeError(f"{MESSAGE}\nSearch for `cudaErrorIllegalAddress' in the manual.")
        return inner(self, jobs)

    BankedForward.__call__ = forward  # type: ignore[method-assign]


if __name__ == "__main__":
    supervisor.TRIES = 1  # each is an engine's start, and all end alike
    children.run("tests.lost_device", _lose)
