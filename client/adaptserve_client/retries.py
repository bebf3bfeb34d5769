"""When a call is tried again, and after how long: only where that is safe, a bounded number of times, with jitter."""

from __future__ import annotations

import random

from adaptserve_client.errors import (
    AdaptServeError,
    NoAnswerError,
    OverloadedError,
    ProblemError,
    TimedOutError,
    UnavailableError,
)

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 30.0
"""A server that asks for more is not waited for: its answer is raised."""


class Attempts:
    """The tries of one call. ``repeatable``: a second time changes nothing, so a connection that broke is no end."""

    def __init__(self, retries: int, *, repeatable: bool) -> None:
        self._retries, self._repeatable = retries, repeatable
        self._failed = 0

    def progress(self) -> None:
        """Something was answered: what fails from here on is counted anew."""
        self._failed = 0

    def pause_after(self, error: AdaptServeError, *, worthwhile: bool = False) -> float | None:
        """Seconds until the next try; None where there is none, and ``error`` stands.

        ``worthwhile``: another try may help, whatever the error is.
        """
        if self._failed >= self._retries or not (worthwhile or self._may_help(error)):
            return None
        backoff = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**self._failed)
        asked = error.retry_after if isinstance(error, ProblemError) else None
        self._failed += 1
        if asked is not None and asked > LONGEST_PAUSE_S:
            return None
        return max((asked or 0.0) * random.uniform(1.0, 1.25), backoff * random.uniform(0.5, 1.0))  # noqa: S311

    def _may_help(self, error: AdaptServeError) -> bool:
        if isinstance(error, OverloadedError | UnavailableError):
            return True
        if isinstance(error, NoAnswerError) and not isinstance(error, TimedOutError):
            return self._repeatable or not error.sent
        return False
