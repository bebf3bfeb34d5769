"""The wire contract of traffic between versions, shadows and agreement, with examples for /docs."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from service.store.traffic import GUARD, MAX_WEIGHT, MAX_WEIGHTED, Guard

_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

VersionNumber = Annotated[int, Field(ge=1, lt=10**9)]
Weights = Annotated[
    dict[VersionNumber, Annotated[int, Field(ge=1, le=MAX_WEIGHT)]], Field(min_length=1, max_length=MAX_WEIGHTED)
]


_WEIGHTS: dict[str, Any] = {
    "type": "object",
    "propertyNames": {"pattern": "^[1-9][0-9]{0,8}$"},
    "additionalProperties": {"type": "integer", "minimum": 1, "maximum": MAX_WEIGHT},
    "minProperties": 1,
    "maxProperties": MAX_WEIGHTED,
    "examples": [{"1": 95, "2": 5}],
}
BARE = {"title": "Weights", "description": "Versions by their weights."} | _WEIGHTS
"""A ``TrafficAsked`` without a guard, shorter."""


class TrafficAsked(BaseModel):
    """Versions by their weights, or that as `weights` beside a `guard`. A guard that is not said stays as it was."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: Annotated[Weights, WithJsonSchema(_WEIGHTS)] = Field(
        description="any positive numbers; the active version must be among them"
    )
    guard: Guard | None = Field(GUARD, description="null: the weights stay, whatever the new version does")

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.keys() & cls.model_fields.keys():
            return {"weights": given}
        return given


class ShadowAsked(BaseModel):
    """A version that sees a share of what is asked, and answers nobody."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: VersionNumber
    share: float = Field(0.1, gt=0, le=1, allow_inf_nan=False, description="of the requests that name no version")


class ShadowState(BaseModel, frozen=True):
    """A task's shadow."""

    version: int = Field(examples=[3])
    share: float = Field(examples=[0.1])


class RollBackState(BaseModel, frozen=True):
    """Why a version lost its traffic last; gone when the traffic is changed again."""

    version: int = Field(examples=[2])
    why: str
    time: str


class VersionState(BaseModel, frozen=True):
    """How a version did since the rule is as it is, at all front ends of this server."""

    version: int = Field(examples=[2])
    requests: int = Field(description="that it answered or failed; of a shadow, that it was asked too")
    errors: int = Field(description="of these, the ones that failed, but for what came with the request")
    not_finite: int = Field(description="of these, the ones whose scores were no numbers")
    p50_ms: float | None = Field(description="decoding, queueing and computing; null before the first answer")
    p99_ms: float | None
    agreement: float | None = Field(description="of the compared answers: how many had the active version's best label")
    compared: int


class TrafficAnswer(BaseModel, frozen=True):
    """Who answers a task's requests."""

    task: str = Field(examples=["digits"])
    active: int | None = Field(examples=[1])
    weights: dict[str, int] = Field(description="by version", examples=[{"1": 95, "2": 5}])
    guard: Guard | None
    shadow: ShadowState | None
    since: str | None = Field(description="when the weights became these; null while the active version has all")
    rolled_back: RollBackState | None
    versions: list[VersionState]


class LabelAgreement(BaseModel, frozen=True):
    """Of the answers whose best label was this one, by the active version."""

    label: str = Field(examples=["seven"])
    compared: int
    agreed: int


class DisagreementShown(BaseModel, frozen=True):
    """An input on which two versions differ."""

    digest: str = Field(description="sha256 of the picture's or clip's bytes", examples=[_DIGEST])
    label: str = Field(description="the active version's best label")
    other: str = Field(description="this version's")
    created: str


class AgreementAnswer(BaseModel, frozen=True):
    """How often a version's best label is the active version's."""

    task: str
    version: int
    against: int | None = Field(description="the active version")
    since: str = Field(description="when it was given its traffic or became the shadow")
    compared: int
    agreed: int
    agreement: float | None
    labels: list[LabelAgreement] = Field(description="those on which they differ most, first; at most 100")
    disagreements: list[DisagreementShown] = Field(description="the last ones, newest first; at most 100")
