"""A training's record: what callers are told of it, and what its trainer needs to go on. It knows no disk."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

JobMethod = Literal["auto", "linear", "adaptformer", "lora"]
State = Literal["waiting", "running", "done", "failed", "cancelled"]
Stage = Literal["features", "head", "adapter", "publish"]
OPEN: tuple[State, ...] = ("waiting", "running")
MAX_EPOCHS = 1000
_FROZEN = ConfigDict(frozen=True)


class Curves(BaseModel):
    """A value for each time that the adapter was scored on held-out examples, after so many epochs."""

    model_config = _FROZEN

    epochs: list[int] = []
    train_loss: list[float] = []
    held_out_loss: list[float] = []
    accuracy: list[float] = []


class PublishedVersion(BaseModel):
    """What a training published, and what held-out examples say of it."""

    model_config = _FROZEN

    version: int = Field(examples=[1])
    digest: str
    method: Literal["linear", "adaptformer", "lora"]
    accuracy: float = Field(description="share of the held-out examples that it gets right", examples=[0.9167])
    balanced_accuracy: float = Field(description="the same, the mean over the classes")
    held_out: int = Field(description="how many examples were held out", examples=[12])
    active: bool = Field(description="whether it was activated")
    verdict: str = Field(description="why it was activated, or was not")
    report: str = Field(description="address of the training's own page")


class JobAnswer(BaseModel):
    """A training that was asked over HTTP."""

    model_config = _FROZEN

    id: str = Field(examples=["20261126-061500123-9f86d0"])
    task: str = Field(examples=["pets"])
    method: JobMethod
    state: State = "waiting"
    stage: Stage | None = None
    progress: float = Field(0.0, description="0 to 1")
    seconds_left: float | None = Field(None, description="about, while an adapter is trained")
    epoch: int = Field(0, description="epochs done of the adapter that is trained")
    epochs: int = Field(0, description="how many there are to be")
    curves: Curves = Curves()
    published: list[PublishedVersion] = []
    verdict: str | None = Field(None, description="in one line, what came of it")
    problem: dict[str, Any] | None = Field(None, description="why it failed, as a problem document")
    examples: dict[str, int] = Field({}, description="examples by label, as it was asked", examples=[{"cat": 20}])
    created: str
    started: str | None = None
    ended: str | None = None


class TrainingJob(JobAnswer):
    """The record: what is told, and what the trainer needs to go on after its end.

    ``deaths``: trainers that ended while at it since it last got on; ``slot``: which trainer has it; ``by``: the name
    of the key that asked for it.
    """

    activate: bool = True
    wanted_epochs: int | None = None
    deaths: int = 0
    slot: int | None = None
    by: str | None = None

    @property
    def open(self) -> bool:
        """Whether it is not over."""
        return self.state in OPEN
