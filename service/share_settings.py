"""The settings of fair shares: which tasks count for more, and which are always there.

``service.settings`` has all others, and is what everybody reads. What each key may have stands in the file of keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from adapters.config import is_task_name

LIGHTEST, HEAVIEST = 0.01, 1000.0
"""Of weights."""
MAX_NAMED = 1000


class ShareSettings(BaseSettings):
    """Name, default, bounds and help of each, as in ``Settings``, which has them too."""

    task_weights: str = Field(
        "",
        description="Shares of tasks of the rows of whoever asks several at once, like `digits=3,letters=0.5`, 0.01 to "
        "1000; all others have 1.",
    )
    pinned_tasks: str = Field(
        "",
        description="Tasks whose active versions are on the device before the server is ready, and stay there, "
        "separated by commas; fewer than there are slots.",
    )

    max_shadow_rows: int = Field(
        64,
        ge=0,
        description="Frames, at each front end, that shadows and comparisons of versions have under way; what "
        "comes meanwhile is left out, and counted. 0: nothing is compared.",
    )
    max_shadow_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="Bytes of pictures and clips that comparisons keep at each front end until they are "
        "done; as above.",
    )

    @field_validator("task_weights")
    @classmethod
    def _are_weights(cls, value: str) -> str:
        weights_of(value)
        return value

    @field_validator("pinned_tasks")
    @classmethod
    def _are_tasks(cls, value: str) -> str:
        pinned_of(value)
        return value


def weights_of(text: str) -> Mapping[str, float]:
    """The setting ``task_weights``, read. Raises ValueError."""
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = (side.strip() for side in part.partition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not LIGHTEST <= weight <= HEAVIEST:
            raise ValueError(f"'{part[:80]}' is no task's weight; write task=number, of {LIGHTEST:g} to {HEAVIEST:g}")
        weights[_new(name, weights)] = weight
    return weights


def pinned_of(text: str) -> tuple[str, ...]:
    """The setting ``pinned_tasks``, read. Raises ValueError."""
    names: dict[str, float] = {}
    for name in filter(None, (part.strip() for part in text.split(","))):
        names[_new(name, names)] = 1.0
    return tuple(names)


def _new(name: str, known: Mapping[str, float]) -> str:
    if not is_task_name(name):
        raise ValueError(f"'{name[:80]}' is no task's name")
    if name in known:
        raise ValueError(f"task '{name}' is named twice")
    if len(known) == MAX_NAMED:
        raise ValueError(f"over {MAX_NAMED} tasks are named, which is the limit")
    return name
