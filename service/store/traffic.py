"""Traffic: how much of a task's requests each of its versions answers, what is held against a new one, and a shadow.

Frozen values, their JSON form, and the one rule by which a request gets its version. They know no disk and no HTTP.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

MAX_WEIGHTED: Final = 16
"""Versions that share a task's traffic: each costs a hash for each request."""
MAX_WEIGHT: Final = 1_000_000
_BITS: Final = 52
"""Of a hash, as many as a float holds exactly with a half beside them."""

Share = float | None


class Guard(BaseModel):
    """When a version that has a part of the traffic, but is not the active one, loses it. Null: not for that.

    Shares are of its requests within ``window`` seconds, and count from so many on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: float = Field(300.0, ge=1, le=86_400, allow_inf_nan=False, description="seconds that are looked back on")
    min_requests: int = Field(
        20, ge=1, le=1_000_000, description="requests of the version before its errors and times are judged"
    )
    max_errors: Share = Field(
        0.05, ge=0, le=1, description="share of its requests that fail, beyond that of the active version"
    )
    max_not_finite: Share = Field(0.01, ge=0, le=1, description="share of its requests whose scores are no numbers")
    max_latency_ratio: Share = Field(
        2.0, ge=1, le=1000, description="its median time over the active version's, where that is 5 ms more"
    )
    min_agreement: Share = Field(
        0.7, ge=0, le=1, description="share of compared answers whose best label is the active version's"
    )
    min_compared: int = Field(50, ge=1, le=1_000_000, description="answers compared before agreement is judged")
    compare: float = Field(
        1.0, ge=0, le=1, description="share of its answers for which the active version is asked too, when idle"
    )


GUARD: Final = Guard()
"""What a new version is held against where nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Versions by their weights, the active one among them. ``since`` tells rules apart: ISO 8601 with microseconds."""

    weights: Mapping[int, int]
    guard: Guard | None
    since: str

    def version_of(self, task: str, key: bytes) -> int:
        """Which version answers a request with that key: the same wherever it is asked.

        Each version draws an exponential time at the rate of its weight, from a hash, and the first one answers
        (weighted rendezvous hashing): shares are as the weights, and of two rules that differ in one version's weight
        every other key keeps its version.
        """
        first, least = 0, math.inf
        for number, weight in self.weights.items():
            drawn = hashlib.sha256(b"%s\0%d\0%s" % (task.encode(), number, key)).digest()
            part = ((int.from_bytes(drawn[:8], "big") >> (64 - _BITS)) + 0.5) / 2**_BITS
            time = -math.log(part) / weight
            if time < least:
                first, least = number, time
        return first


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that sees a share of what the others answer, and answers nobody. ``since`` as of Traffic."""

    version: int
    share: float
    since: str


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The version that lost its traffic last, why, and when; until the traffic is changed again."""

    version: int
    why: str
    when: str


def weights_text(traffic: Traffic | None) -> dict[str, int] | None:
    """As JSON has them, whose members are named by text."""
    return None if traffic is None else {str(number): weight for number, weight in traffic.weights.items()}


def traffic_text(traffic: Traffic) -> dict[str, Any]:
    """As it stands in a manifest."""
    return {
        "weights": weights_text(traffic),
        "guard": None if traffic.guard is None else traffic.guard.model_dump(),
        "since": traffic.since,
    }


def traffic_of(kept: Any) -> Traffic | None:
    """What ``traffic_text`` wrote; None for nothing, and for what a later release made of it."""
    with suppress(KeyError, TypeError, ValueError, AttributeError):
        weights = {int(number): int(weight) for number, weight in kept["weights"].items()}
        if weights and all(1 <= weight <= MAX_WEIGHT for weight in weights.values()):
            known = {name: value for name, value in (kept["guard"] or {}).items() if name in Guard.model_fields}
            guard = None if kept["guard"] is None else Guard(**known)
            return Traffic(MappingProxyType(dict(sorted(weights.items()))), guard, str(kept["since"]))
    return None


def shadow_of(kept: Any) -> Shadow | None:
    """A manifest's shadow, as ``traffic_of`` has the traffic."""
    with suppress(KeyError, TypeError, ValueError):
        return Shadow(int(kept["version"]), float(kept["share"]), str(kept["since"]))
    return None


def rolled_back_of(kept: Any) -> RolledBack | None:
    """A manifest's last roll-back, as ``traffic_of`` has the traffic."""
    with suppress(KeyError, TypeError, ValueError):
        return RolledBack(int(kept["version"]), str(kept["why"]), str(kept["when"]))
    return None
