"""The fields of a config.json that transformers wrote, each held to its type and to bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters.backbone.manner import ACTS
from adapters.config import MAX_BLOCKS

MAX_WIDTH = 2**16
"""Of any number in it."""


class Fields:
    """Each of the type that is asked for, with transformers' defaults. Its methods raise ValueError."""

    def __init__(self, raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._fields = {**defaults, **{name: value for name, value in raw.items() if value is not None}}

    def whole(self, name: str, most: int = MAX_WIDTH) -> int:
        value = self._fields[name]
        if isinstance(value, list) and len(set(value)) == 1:  # a square
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise ValueError(f"{name} is {value!r:.60}, expected a whole number up to {most}")
        return value

    def wholes(self, name: str) -> tuple[int, ...]:
        value = self._fields[name]
        if not isinstance(value, list) or not value or len(value) > MAX_BLOCKS:
            raise ValueError(f"{name} is {value!r:.60}, expected a list of whole numbers")
        return tuple(Fields({name: one}, {}).whole(name) for one in value)

    def number(self, name: str) -> float:
        value = self._fields[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MAX_WIDTH:
            raise ValueError(f"{name} is {value!r:.60}, expected a number")
        return float(value)

    def on(self, name: str) -> bool:
        value = self._fields[name]
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r:.60}, expected true or false")
        return value

    def act(self) -> str:
        value = "silu" if self._fields.get("use_swiglu_ffn") else self._fields["hidden_act"]
        if value not in ACTS:
            raise ValueError(f"hidden_act is {value!r:.60}, known are {', '.join(ACTS)}")
        return str(value)
