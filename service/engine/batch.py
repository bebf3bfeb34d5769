"""What goes through an engine: the work behind a ticket, the job that the device gets of it, the report.

It decides nothing and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from adapters.bank import Lease
from adapters.forward.streams import Job
from adapters.media import Pixels
from adapters.meta import AdapterMeta
from service.engine.interface import Answer

NOBODY = AdapterMeta("", "image", 1, 1, "softmax", "backbone", "frozen", {}, frozenset(), 0)
"""The bare backbone in slot 0, for health probes."""


@dataclass(frozen=True)
class BatchReport:
    """What one batch was, for metrics; ``holders``: their rows."""

    rows: int
    adapters: int
    compute_s: float
    failed: bool
    holders: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Work:
    """A ticket's inside: what to compute, for whom, and the slot once there is one; all of it let go at the end.

    Without a slot it is for the bare backbone, which sees pictures as ``bare`` says.
    """

    pixels: Pixels | None
    future: Future[Answer]
    submitted: float
    picture: bytes | None = None
    embed: bool = False
    bare: AdapterMeta = NOBODY
    coming: Future[Lease] | None = None
    lease: Lease | None = None
    ready: bool = False

    def job(self) -> Job:
        assert self.pixels is not None, "a ticket was settled before it was answered"
        if self.lease is None:
            return Job(self.pixels, 0, (0,), self.bare, self.picture, self.embed)
        return Job(self.pixels, self.lease.slot, self.lease.pages, self.lease.meta, self.picture, self.embed)
