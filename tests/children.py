"""How a test runs `adaptserve` with something changed inside its processes, which are started through its module."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable

from service import family
from service.cli import main

ENGINE, FRONT_END, TRAINER = "service.engine.process", "service.web.process", "service.teach.process"


def run(module: str, change: Callable[[str], None]) -> None:
    """For ``if __name__ == "__main__"`` of ``module``; ``change`` is told which process it is in."""
    if sys.argv[1] in (ENGINE, FRONT_END, TRAINER):
        child = sys.argv.pop(1)
        gc.disable()  # while it imports torch, as the engine's own module has it
        change(child)
        process = importlib.import_module(child)
        gc.enable()
        process.main()
    else:
        family.COMMAND = (sys.executable, "-m", module)
        main()
