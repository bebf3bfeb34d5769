"""The wire contract: what answers look like, with examples for /docs.

It does not know how anything is computed; README.md and docs/ANSWERS.md tell the same in words.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class LabelScore(_Answer):
    """One label and its probability."""

    label: str = Field(examples=["seven"])
    index: int = Field(description="the label's place in the adapter file's list", examples=[7])
    score: float = Field(description="probability, 0 to 1", examples=[0.9731])


class PredictAnswer(_Answer):
    """What one task says of one picture or clip, and exactly which file said so."""

    task: str = Field(examples=["digits"])
    version: int = Field(examples=[3])
    digest: str = Field(description="sha256 of the adapter file that computed this", examples=[_DIGEST])
    modality: Literal["image", "video"]
    predictions: list[LabelScore] = Field(description="best first; empty where `min_score` leaves none")
    accepted: bool | None = Field(
        None,
        description="whether the best score reaches the task's abstain threshold, or the one asked; "
        "left out where there is none",
        exclude_if=lambda accepted: accepted is None,
        examples=[True],
    )
    embedding: list[float] | None = Field(
        None,
        description="with `embedding=true`: the vector that the task's head sees, pooled and normed as its file says; "
        "of a clip the mean over its frames and views",
        exclude_if=lambda embedding: embedding is None,
        examples=[[0.12, -1.3]],
    )
    windows: list[WindowAnswer] | None = Field(
        None,
        description="with `window`: an answer for each; `predictions` are then of their mean scores",
        exclude_if=lambda windows: windows is None,
    )
    bad_frames: int = Field(0, description="frames of the clip that had to be decoded and could not be", examples=[0])
    sampled: list[float] | None = Field(
        None,
        description="with `sampled=true`, of a clip: when each frame begins that was looked at, in seconds after the "
        "first one; empty where the clip does not tell",
        exclude_if=lambda sampled: sampled is None,
    )


class WindowAnswer(_Answer):
    """What a task says of a window of a clip."""

    start: float = Field(description="seconds after the clip's first frame", examples=[0.0])
    end: float = Field(description="likewise", examples=[2.0])
    predictions: list[LabelScore] = Field(description="best first")
    accepted: bool | None = Field(None, description="as of the whole", exclude_if=lambda accepted: accepted is None)
    embedding: list[float] | None = Field(
        None, description="as of the whole", exclude_if=lambda embedding: embedding is None
    )


class EmbedAnswer(_Answer):
    """What the frozen backbone makes of a picture or clip, before any adapter."""

    backbone: str = Field(examples=["vit_small_patch16_224"])
    fingerprint: str = Field(description="of its weights", examples=[_DIGEST])
    modality: Literal["image", "video"] = Field(description="what came")
    frames: int = Field(description="over which the vector is the mean; 1 for a picture", examples=[1])
    embedding: list[float] = Field(
        description="of pixels prepared as the backbone was trained, pooled by timm's own forward_head before the "
        "classifier; not of length 1",
        examples=[[0.12, -1.3]],
    )
    bad_frames: int = Field(0, description="frames of the clip that had to be decoded and could not be", examples=[0])


class ManyAnswer(_Answer):
    """The answers of several tasks, in the order asked."""

    results: list[PredictAnswer]


class BatchItem(PredictAnswer):
    """A line of a batch's answer: what `/predict` says, for one item."""

    index: int = Field(description="the item's place in the batch, from 0", examples=[0])
    name: str = Field(description="its file name, or its path in the archive", examples=["photos/seven.jpg"])


class TaskCounts(_Answer):
    """Predictions since the server started."""

    answered: int
    failed: int


class TaskAnswer(_Answer):
    """A task and the version that answers for it; the newest version's properties while none is active."""

    task: str = Field(examples=["digits"])
    modality: Literal["image", "video"] | None
    version: int | None = Field(description="the active version; null while none is", examples=[3])
    digest: str | None = Field(description="of the active version", examples=[_DIGEST])
    labels: list[str] = Field(
        description="all of them where one task is asked for; in a list the first 20", examples=[["zero", "one", "two"]]
    )
    classes: int | None = Field(description="how many labels there are", examples=[3])
    score: Literal["softmax", "sigmoid"] | None
    frames: int | None = Field(description="frames taken from a clip in each view; 1 for pictures", examples=[1])
    views: int | None = Field(description="views of a clip whose scores are averaged; 1 for pictures", examples=[1])
    accuracy: float | None = Field(
        description="on held-out examples, as the file says that it was trained to; null where it does not",
        examples=[0.975],
    )
    parameters: int | None = Field(examples=[299_000])
    share: float | None = Field(description="parameters over the backbone's", examples=[0.0138])
    residency: Literal["device", "host", "disk"] = Field(description="where the adapter is now")
    versions: int = Field(description="how many versions are kept", examples=[3])
    problem: str | None = Field(description="why this task cannot answer here, if it cannot")
    requests: TaskCounts


class TasksAnswer(_Answer):
    """One page of what is served, and on what. A page may be shorter than asked for where tasks just went."""

    backbone: str = Field(examples=["vit_small_patch16_224"])
    fingerprint: str = Field(examples=[_DIGEST])
    parameters: int = Field(description="of the backbone", examples=[21_665_664])
    input_size: tuple[int, int] = Field(
        description="height and width in pixels that the backbone runs at, and adapters must be made for",
        examples=[[224, 224]],
    )
    frames: int = Field(
        description="frames of a clip that the backbone sees together, and then it sees nothing else; 1: it sees "
        "pictures, and a clip frame by frame",
        examples=[1],
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="that the backbone computes in")
    tasks: list[TaskAnswer]
    count: int = Field(description="tasks on all pages together", examples=[3])
    next: str | None = Field(description="ask for the next page with ?after= this name; null: there is none")


class VersionAnswer(_Answer):
    """One immutable adapter file of a task."""

    task: str
    version: int
    digest: str = Field(examples=[_DIGEST])
    bytes: int
    created: datetime
    active: bool


class VersionsAnswer(_Answer):
    """One page of a task's history, newest last."""

    task: str
    versions: list[VersionAnswer]
    count: int = Field(description="versions on all pages together", examples=[3])
    next: int | None = Field(description="ask for the next page with ?after= this number; null: there is none")


class UploadAnswer(VersionAnswer):
    """What an upload made. 201: a new version; 200: the task has had these very bytes before."""

    modality: Literal["image", "video"]
    labels: list[str]
    parameters: int
    share: float


class KeyAnswer(_Answer):
    """What whoever asks may do here."""

    required: bool = Field(description="whether this server has keys; without, everybody may do everything")
    name: str | None = Field(description="of the key that came; null: none came, or none is needed", examples=["shop"])
    may: list[str] = Field(description="the scopes that it has or includes", examples=[["predict"]])
    tasks: list[str] | None = Field(description="the only tasks that it may touch; null: all", examples=[["pets"]])


class Live(_Answer):
    """The process runs."""

    status: Literal["live"] = "live"


class Ready(_Answer):
    """The device computes."""

    status: Literal["ready"] = "ready"
    last_forward_s: Annotated[float, Field(description="seconds since a forward pass last succeeded")]
    busy_s: Annotated[float, Field(description="seconds that the one under way has taken so far; 0 when none is")]


class Problem(BaseModel):
    """RFC 9457; further members name the field, the limit and the value seen."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:adaptserve:problem:unknown-task"])
    title: str = Field(examples=["Unknown task"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["there is no task 'nosuch'; GET /v1/tasks lists those that exist"])
    error: str = Field(
        description="the detail again, under the name where clients of other servers look for it",
        examples=["there is no task 'nosuch'; GET /v1/tasks lists those that exist"],
    )
    instance: str = Field(examples=["urn:adaptserve:request:4bf92f3577b34da6"])
    request_id: str = Field(examples=["4bf92f3577b34da6"])


class BatchFailure(_Answer):
    """A line of a batch's answer: an item that `/predict` would have refused, and how."""

    index: int = Field(examples=[1])
    name: str = Field(examples=["photos/notes.txt"])
    problem: Problem


class BatchEnd(_Answer):
    """The last line of a batch's answer."""

    done: bool = Field(description="true: each item has its line; false: the answer was cut short, and `problem` why")
    items: int = Field(description="in the whole batch", examples=[1000])
    failed: int = Field(description="of those that have a line", examples=[1])
    problem: Problem | None = Field(None, description="left out where `done` is true")
