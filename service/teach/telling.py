"""What a trainer tells of a job while it is at it: the stage, how far it is, what the curves are.

It knows the stages that a training names; it knows no torch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adapters.errors import AdaptError
from adapters.training.progress import Teller
from service.teach.jobs import Jobs
from service.teach.records import Curves, Stage, TrainingJob

log = logging.getLogger(__name__)

EVERY_S = 0.5
"""How often the record is written, and so how soon a stop is heard."""
_STAGES: Mapping[str, tuple[Stage, float, float]] = {
    "reading": ("features", 0.0, 0.2), "frozen features": ("features", 0.2, 0.6),
    "the best linear head": ("head", 0.6, 0.9), "scoring": ("head", 0.9, 1.0), "publish": ("publish", 1.0, 1.0),
}  # fmt: skip
"""Of a linear head: which stage of a job it is, and which part of its time."""
_ADAPTER: Mapping[str, tuple[Stage, float, float]] = {
    "reading": ("features", 0.0, 0.02), "frozen features": ("features", 0.02, 0.04),
    "the best linear head": ("head", 0.04, 0.05), "training": ("adapter", 0.05, 0.97),
    "scoring": ("adapter", 0.97, 1.0), "publish": ("publish", 1.0, 1.0),
}  # fmt: skip


class JobTeller(Teller):
    """Writes to the record what a training tells. Every call may raise Stopped: then the job is to end at once."""

    def __init__(
        self, jobs: Jobs, job: TrainingJob, method: str, part: tuple[float, float], *,
        on_step: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """``part``: from where to where the whole job's progress goes with this method; ``on_step`` while it trains."""
        super().__init__()
        self._jobs, self._job, self._part, self._on_step, self._time = jobs, job, part, on_step, clock
        self._stages = _STAGES if method == "linear" else _ADAPTER
        self._written, self._began, self._from = float("-inf"), clock(), 0.0
        self._now: dict[str, Any] = {}

    def at(self, stage: str, share: float, note: str = "") -> None:  # noqa: ARG002
        name, low, high = self._stages.get("reading" if stage.startswith("reading") else stage, ("features", 0.0, 0.0))
        begin, end = self._part
        progress = begin + (end - begin) * (low + (high - low) * share)
        entered = name != self._now.get("stage")
        if entered:
            self._began, self._from = self._time(), share
        left = None
        if name == "adapter" and share > self._from:
            left = round((self._time() - self._began) * (1 - share) / (share - self._from), 1)
        self._now = {"stage": name, "progress": round(progress, 4), "seconds_left": left}
        if entered or self._time() - self._written >= EVERY_S:
            self.write()
        if stage == "training":
            self._on_step()

    def scored(self, history: Sequence[Mapping[str, float]], epochs: int) -> None:
        curves = Curves(
            epochs=[int(line["epoch"]) for line in history],
            train_loss=[round(line["loss"], 5) for line in history],
            held_out_loss=[round(line["held_out_loss"], 5) for line in history],
            accuracy=[round(line["accuracy"], 4) for line in history],
        )
        self.write(curves=curves, epoch=int(history[-1]["epoch"]), epochs=epochs, deaths=0)

    def note(self, message: str) -> None:
        log.info("training %s: %s", self._job.id, " ".join(message.split()))

    def warn(self, message: str) -> None:
        log.warning("training %s: %s", self._job.id, " ".join(message.split()))

    def write(self, **more: Any) -> None:
        """Raises Stopped. What the disk does not take is told later; what must be told, the end, is not told here."""
        self._written = self._time()
        try:
            self._jobs.update(self._job, **self._now, **more)
        except AdaptError as error:
            log.warning("training %s goes on, but its record cannot be written: %s", self._job.id, error.message)
