"""The numbers of one run: a row for each system, as Markdown and JSON, and the ratios of rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

OURS = "AdaptServe"
HEAD = (
    "| server | dtype | goodput a second | range | closed loop a second | its p99 ms | MB a task | MB in all "
    "| new task to answer, ms | start s | from timm |"
)
RULE = "| --- | --- " + "| ---: " * 9 + "|"


@dataclass
class Row:
    """What was seen of one system; lists have a value for each round."""

    says: str
    dtype: str
    start_s: float = 0.0
    error: float = 0.0
    """The largest difference of a score from plain timm's in float32."""
    idle_cores: float = 0.0
    closed: list[float] = field(default_factory=list)
    closed_p99_s: list[float] = field(default_factory=list)
    goodput: list[float] = field(default_factory=list)
    new_task_s: list[float] = field(default_factory=list)
    memory: dict[int, dict[str, int]] = field(default_factory=dict)
    """By number of tasks."""

    def per_task(self) -> float:
        """Bytes that one task more takes: pages that processes share count once."""
        few, many = sorted(self.memory)
        return (self.memory[many]["pss"] - self.memory[few]["pss"]) / (many - few)

    def told(self) -> dict[str, Any]:
        """For JSON, which has no infinity."""
        return asdict(self) | {"closed_p99_s": [s if math.isfinite(s) else None for s in self.closed_p99_s]}


def markdown(rows: Mapping[str, Row]) -> str:
    """The table; medians over the rounds."""
    return "\n".join((HEAD, RULE, *(_line(row) for row in rows.values())))


def summary(rows: Mapping[str, Row]) -> dict[str, str]:
    """Our goodput over the best peer's, by round: peers as documented (float32), and those given bfloat16 too."""
    ours = {row.dtype: row.goodput for row in rows.values() if row.says == OURS}
    peers = [row for row in rows.values() if row.says != OURS]
    found = {}
    for dtype, own in ours.items():
        for kind, dtypes in (("in float32", ("float32",)), ("in any dtype", ("float32", "bfloat16"))):
            best = [max(turn) for turn in zip(*(row.goodput for row in peers if row.dtype in dtypes), strict=True)]
            if best:
                found[f"{OURS} in {dtype} over the best peer {kind}"] = _ratios(own, best)
    return found


def _ratios(own: Sequence[float], best: Sequence[float]) -> str:
    ratios = [a / b if b else math.inf for a, b in zip(own, best, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _line(row: Row) -> str:
    few = min(row.memory)
    cells = (
        row.says,
        row.dtype,
        f"{statistics.median(row.goodput):.1f}",
        f"{min(row.goodput):.1f} to {max(row.goodput):.1f}",
        f"{statistics.median(row.closed):.1f}",
        f"{1e3 * statistics.median(row.closed_p99_s):.0f}",
        f"{row.per_task() / 1e6:.2f}",
        f"{row.memory[few]['pss'] / 1e6:.0f}",
        f"{1e3 * statistics.median(row.new_task_s):.0f}",
        f"{row.start_s:.1f}",
        f"{row.error:.0e}",
    )
    return f"| {' | '.join(cells)} |"
