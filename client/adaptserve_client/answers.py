"""What the server's answers hold, as frozen dataclasses; members that are not known here are kept in ``extra``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, TypeVar

from adaptserve_client.errors import AdaptServeError, UnexpectedAnswerError

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ScoredLabel:
    """One label, its place in the adapter file's list, and its probability."""

    label: str
    index: int
    score: float
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Window:
    """What a task says of a part of a clip; ``start`` and ``end`` in seconds after its first frame."""

    start: float
    end: float
    predictions: tuple[ScoredLabel, ...] = ()
    accepted: bool | None = None
    embedding: tuple[float, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Embedding:
    """What the frozen backbone makes of a picture or clip; ``frames``: over which the vector is the mean."""

    backbone: str
    fingerprint: str
    modality: str
    frames: int
    embedding: tuple[float, ...]
    bad_frames: int = 0
    timing: Mapping[str, float] = field(default_factory=dict, compare=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Classification:
    """What one task says of one picture or clip, and which file said so.

    ``predictions`` are best first; ``digest`` is the sha256 of the adapter file; ``bad_frames`` counts frames of a clip
    that did not decode. ``accepted`` tells whether the best score reaches the abstain threshold, if there is one.
    ``embedding`` and ``windows`` are there where they were asked for.
    ``timing`` has the milliseconds of each stage, of an answer that is not one of many; ``raw`` is what came.
    """

    task: str
    version: int
    digest: str
    modality: str
    predictions: tuple[ScoredLabel, ...] = ()
    bad_frames: int = 0
    accepted: bool | None = None
    embedding: tuple[float, ...] | None = None
    windows: tuple[Window, ...] | None = None
    timing: Mapping[str, float] = field(default_factory=dict, compare=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def best(self) -> ScoredLabel | None:
        """The label with the highest score; None where ``min_score`` left none."""
        return self.predictions[0] if self.predictions else None


@dataclass(frozen=True)
class BatchOutcome:
    """What became of one item of a batch: its answer, or the error that it has instead.

    ``index`` counts the items from 0 as they were given. The error is the server's problem, or an OSError where the
    file could not be read here.
    """

    index: int
    name: str
    answer: Classification | None = None
    error: AdaptServeError | OSError | None = None


@dataclass(frozen=True)
class Task:
    """A task and its active version; ``version`` and ``digest`` are None while none is active.

    In a list ``labels`` are the first 20 of ``classes``. ``residency`` is where the adapter is: device, host or disk.
    ``requests`` counts what was ``answered`` and what ``failed`` since the server started.
    """

    task: str
    modality: str | None
    version: int | None
    digest: str | None
    labels: tuple[str, ...]
    classes: int | None
    versions: int
    residency: str | None = None
    problem: str | None = None
    requests: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Version:
    """One immutable adapter file of a task; ``bytes`` is its size, ``digest`` its sha256."""

    task: str
    version: int
    digest: str
    bytes: int
    created: datetime
    active: bool
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Upload:
    """What an upload made. ``new`` is False where the task had these very bytes already."""

    task: str
    version: int
    digest: str
    bytes: int
    created: datetime
    active: bool
    modality: str
    labels: tuple[str, ...]
    parameters: int
    share: float
    new: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class ServerInfo:
    """What the server runs: its backbone, that one's fingerprint, pixels (height, width) and precision, and how many
    tasks there are; ``frames`` of a clip that it sees together, where it sees nothing else, 1 for one of pictures."""

    backbone: str
    fingerprint: str
    parameters: int
    input_size: tuple[int, int]
    dtype: str
    count: int
    frames: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


def read(kind: type[Answer], document: Any, **more: Any) -> Answer:
    """A JSON object as one of the classes above. Raises UnexpectedAnswerError where something is missing."""
    if not isinstance(document, dict):
        raise UnexpectedAnswerError(f"expected an object with a {kind.__name__}, got {str(document)[:80]}")
    names = {f.name for f in fields(kind) if f.name not in ("extra", "raw", "timing")}  # type: ignore[arg-type]
    extra = {name: value for name, value in document.items() if name not in names}
    if kind is Classification:
        more["raw"] = document
    try:
        known = {name: _value(name, value) for name, value in document.items() if name in names}
        return kind(**known, **more, extra=extra)  # type: ignore[call-arg]
    except (TypeError, ValueError, AttributeError) as error:
        raise UnexpectedAnswerError(f"the answer is no {kind.__name__}: {error}") from error


def _value(name: str, value: Any) -> Any:
    if name == "predictions":
        return tuple(read(ScoredLabel, one) for one in value)
    if name == "windows":
        return tuple(read(Window, one) for one in value)
    if name == "created":
        return datetime.fromisoformat(value.replace("Z", "+00:00"))
    return tuple(value) if isinstance(value, list) else value
