"""What is asked of a prediction beyond its best labels, and what comes of it, before it is put on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adapters.media import Excerpt, Span
from adapters.scores import Prediction
from service.store.catalogue import Served
from service.web.decoding import Seen


@dataclass(frozen=True, slots=True)
class Extras:
    """What an answer is asked beyond its best labels.

    Labels below ``min_score`` are left out; ``abstain`` stands in for the file's own threshold; ``embedding``: with the
    task's pooled vector; ``excerpt``: of a part of a clip, or of windows of it; ``sampled``: with the times of the
    frames that were looked at.
    """

    min_score: float = 0.0
    abstain: float | None = None
    embedding: bool = False
    excerpt: Excerpt | None = None
    sampled: bool = False


PLAIN = Extras()


@dataclass(frozen=True)
class Outcome:
    """One version's answer; stages in seconds, ``queue_s`` with the time a cold adapter took to load.

    ``accepted``: whether the best score reaches the abstain threshold; None where there is none. ``vector`` (width,)
    float32 is the mean over the views, if it was asked. ``windows`` are answers of their own, if they were asked; the
    outcome is then of all of them, as if each were a view. ``sampled``: when the frames begin that were looked at, each
    once, in seconds after the clip's first one. ``best`` is the best label, whether it is among the predictions or not.
    ``seen`` is for versions that are to see the same: there where a rule fixed the version, not of parts of a clip.
    """

    served: Served
    predictions: list[Prediction]
    bad_frames: int
    queue_s: float
    compute_s: float
    accepted: bool | None = None
    vector: NDArray[np.float32] | None = None
    windows: Sequence[tuple[Span, Outcome]] | None = None
    sampled: Sequence[float] | None = None
    best: str = ""
    seen: Seen | None = None


@dataclass(frozen=True)
class Outcomes:
    """All answers to one body, in the order asked; ``decoded_ns`` is when it was decoded, since the epoch."""

    results: list[Outcome]
    decode_s: float
    decoded_ns: int

    @property
    def queue_s(self) -> float:
        return max(result.queue_s for result in self.results)

    @property
    def compute_s(self) -> float:
        return max(result.compute_s for result in self.results)


@dataclass(frozen=True)
class Embedded:
    """The bare backbone's vector (width,) float32, of a picture or so many ``frames`` of a clip; times in seconds."""

    vector: NDArray[np.float32]
    modality: Literal["image", "video"]
    frames: int
    bad_frames: int
    decoded: Outcomes
    queue_s: float
    compute_s: float
