"""Recorder: hands the inputs of predictions to whoever keeps them for feedback, beside the answers.

It knows what an answer is; where inputs are kept is the store's business.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Self

from adapters.errors import AdaptError
from service.errors import Draining, QueueFull
from service.pool import Pool
from service.store.recents import Recents, Said
from service.web.prediction import Outcomes

log = logging.getLogger(__name__)

WAITING = 4
"""Inputs that wait for the disk; those that come while so many wait are not kept."""


class Recorder:
    """For a ``with``."""

    def __init__(self, recents: Recents) -> None:
        self._recents = recents
        self._pool = Pool("recent", workers=1, max_waiting=WAITING, setting="keep_recent")
        self._failing = False

    def keep(self, request_id: str, body: bytes, outcomes: Outcomes) -> None:
        """Keep an input and what each task said of it, if there is time; never raises."""
        answers: dict[str, list[Said]] = {
            one.served.task: [{"label": p.label, "index": p.index, "score": p.score} for p in one.predictions]
            for one in outcomes.results
        }
        try:
            self._pool.submit(partial(self._keep, request_id, body, answers))
        except (QueueFull, Draining):
            return

    def _keep(self, request_id: str, body: bytes, answers: dict[str, list[Said]]) -> None:
        try:
            self._recents.keep(request_id, body, answers)
            self._failing = False
        except AdaptError as error:
            if not self._failing:
                log.warning("inputs are not kept for feedback: %s", error.message)
            self._failing = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()
