"""`adaptserve` whose device answers zeros at once: what is left is what serving costs.

`python -m benchmarks.null serve` takes the options of `adaptserve serve`.
It starts its processes through itself, so that the engine's has the forward pass that computes nothing.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a front end imports no torch
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from adapters.forward.streams import Job

ENGINE, FRONT_END = "service.engine.process", "service.web.process"


def _compute_nothing() -> None:
    import numpy as np

    from adapters.forward.banked import BankedForward

    def nothing(_: BankedForward, jobs: Sequence[Job]) -> list[NDArray[np.float32]]:
        return [np.zeros(job.meta.classes, np.float32) for job in jobs]

    BankedForward.__call__ = nothing  # type: ignore[assignment, method-assign]


def main() -> None:
    if sys.argv[1] not in (ENGINE, FRONT_END):
        from service import family
        from service.cli import main as serve

        family.COMMAND = (sys.executable, "-m", "benchmarks.null")
        serve()
        return
    process = sys.argv.pop(1)
    if process == ENGINE:
        _compute_nothing()
    importlib.import_module(process).main()


if __name__ == "__main__":
    main()
