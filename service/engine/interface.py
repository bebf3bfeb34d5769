"""What a front end may ask of an engine, wherever that runs: in this process, in another one, or several of them.

It knows no device: front ends import it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adapters.config import InputConfig
from adapters.layout import Layout
from service.engine.pixels import Held
from service.messages import Item
from service.watch.metrics import Snapshot


@dataclass(frozen=True)
class Facts:
    """What an engine is: its backbone, the preprocessing that this was trained with, and the slots on its device."""

    layout: Layout
    input: InputConfig
    device: str
    dtype: str
    slots: int
    rank: int
    slot_bytes: int

    def told(self) -> dict[str, Any]:
        """As plain values, for another process."""
        layout = vars(self.layout) | {"sites": dict(self.layout.sites)}
        return vars(self) | {"layout": layout, "input": self.input.model_dump(mode="json")}

    @classmethod
    def of(cls, told: dict[str, Any]) -> Self:
        """What ``told`` made, and came over a socket."""
        layout = told["layout"]
        sites = {site: tuple((a, b) for a, b in blocks) for site, blocks in layout["sites"].items()}
        size, pools = tuple(layout["input_size"]), tuple(layout["pools"])
        whole = Layout(**layout | {"sites": sites, "input_size": size, "pools": pools})
        return cls(**told | {"layout": whole, "input": InputConfig.model_validate(told["input"])})


@dataclass(frozen=True)
class Answer:
    """Logits (classes,) float32 and where the time went, in seconds; the pooled ``vector`` (width,) if it was asked."""

    logits: NDArray[np.float32]
    queue_s: float
    compute_s: float
    batch_rows: int
    vector: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Readiness:
    """Seconds since the last forward pass that succeeded, and for how long the one under way has run."""

    last_forward_s: float
    busy_s: float


Answering: TypeAlias = Future[Answer] | asyncio.Future[Answer]


class Link(Protocol):
    """An engine as front ends see it. What it raises, or its futures do, are AdaptErrors."""

    @property
    def facts(self) -> Facts: ...

    @property
    def backlog_s(self) -> float:
        """About how long a row that came now would wait; infinite where none would be taken."""
        ...

    async def check_room(self, rows: int, deadline: float, digests: Sequence[str]) -> None:
        """Whether ``rows`` more, of these versions, would be taken now: from shared counters where all are resident.

        ``deadline`` is on the monotonic clock, which all processes of a machine share. Raises Draining, QueueFull or
        EngineLost.
        """
        ...

    def ask(
        self, items: Sequence[Item], pixels: Held, deadline: float, picture: bytes, *, embed: bool = False,
        background: bool = False,
    ) -> Sequence[Answering]:  # fmt: skip
        """Queue one input for some versions; an answer each, in their order. Never blocks. ``embed``: with vectors.

        ``background``: nobody waits for it, and it waits while anybody else does.
        Inputs of one ``picture`` are equal. Cancelling an answer takes its rows back. The pixels are held until the
        last answer is there. Raises, or its answers do, as ``check_room`` and Engine.submit tell.
        """
        ...

    async def try_file(self, file: str, digest: str, task: str, deadline: float) -> None:
        """Read, check and run an adapter file of that digest once in a slot, where it stays. Raises an AdapterError."""
        ...

    def forget(self, digest: str) -> None:
        """No version has those bytes any more: give their memory back."""
        ...

    async def tiers(self, digests: Sequence[str]) -> Sequence[str]:
        """Where each adapter is now: ``device``, ``host`` or ``disk``."""
        ...

    async def ready(self) -> Readiness:
        """Proof that the device computes, asked for where there is none of late. Raises NotReady or Draining."""
        ...

    async def snapshot(self) -> Snapshot: ...
