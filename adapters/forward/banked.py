"""One forward of the frozen backbone for rows of any mix of adapters: pixels in, each job's logits out.

It owns the device while it runs, so one thread calls it. It knows slots; it knows no queue, clock or HTTP.
"""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.backbone import Backbone
from adapters.bank import Slabs
from adapters.config import Activation, Pool, SiteName
from adapters.errors import BackboneError
from adapters.forward.compiled import Compiled
from adapters.forward.device import Cuda, Device
from adapters.forward.graphs import Graphs
from adapters.forward.plan import Keep, Plan, plan_of
from adapters.forward.prefix import PrefixCache
from adapters.forward.runtime import Eager, Outputs, Prefix, Runtime, agrees
from adapters.forward.staging import BatchStaging, Fetched, HostStaging, PinnedStaging, Staged
from adapters.forward.streams import Job
from adapters.meta import AdapterMeta

__all__ = ["BankedForward", "Job", "Prepared", "Running"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A batch that is laid out and on its way to the device.

    ``embedded``: of the jobs whose pooled vector is wanted, the one that computes it, and the vector's width.
    """

    plan: Plan
    classes: tuple[int, ...]
    staged: Staged
    prefix: Prefix | None = None
    embedded: Mapping[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A batch whose answers are computed, or were."""

    classes: tuple[int, ...]
    outputs: Fetched
    embedded: Mapping[int, tuple[int, int]]

    def result(self) -> list[NDArray[np.float32]]:
        """Logits (classes,) float32 per job; blocks until the device has them. Ask before the next but one runs."""
        found = self.outputs.result()[0]
        return [row[:classes].copy() for row, classes in zip(found, self.classes, strict=False)]

    def vectors(self) -> dict[int, NDArray[np.float32]]:
        """Pooled vectors (width,) float32 by job, of those that asked, twice as wide of ``cls+avg``; as ``result``."""
        if not self.embedded:
            return {}
        found = self.outputs.result()[1]
        return {job: found[place][:width].copy() for job, (place, width) in self.embedded.items()}


class BankedForward:
    """Callable on a list of jobs; the sum of their frames is the batch's rows, less what equal pictures share.

    For a backbone of clips the row is one level up: the frames that it sees together are one row of its batch.

    A job's logits depend on its pixels and its slot's content alone, and for one shape of batch (``BatchKey``) they are
    the same bits whatever the other jobs are.

    With ``prefix_cache_bytes``, jobs that name a picture begin where their adapter does, if an earlier batch left the
    picture's tokens there. Those were computed in a batch of another shape, so such answers are as equal to others as
    those of another shape of batch are. A batch that takes or leaves tokens runs eagerly.

    On CUDA a call returns from ``prepare`` and ``run`` before the device is done, so one batch can be prepared and its
    copies run while another one computes: ``run(a)``, ``prepare(b)``, ``a.result()``, ``run(b)``, and so on. On a CPU
    ``run`` returns with the answers. Batches are replayed from CUDA graphs unless ``cuda_graphs`` is off.
    """

    def __init__(
        self, backbone: Backbone, slabs: Slabs, *, cuda_graphs: bool = True, compile: bool = False,
        prefix_cache_bytes: int = 0, device: Device | None = None,
    ) -> None:  # fmt: skip
        """``compile`` acts on what is warmed up, nothing else. ``device`` stands in for the CUDA device in tests."""
        self.backbone, self.slabs = backbone, slabs
        if device is None and slabs.device.type == "cuda":
            device = Cuda(slabs.device)
        self._device = device
        self._staging: BatchStaging = HostStaging() if device is None else PinnedStaging(device)
        self.reference = Eager(backbone, slabs)
        self._graphs: Graphs | None = None
        self._compiled = Compiled(self.reference) if compile else None
        self.runtime: Runtime = self._compiled or self.reference
        if device is not None and cuda_graphs:
            with self._computing(), torch.inference_mode():
                self.runtime = self._graphs = Graphs(self.runtime, self.reference, device)
        self.prefixes: PrefixCache | None = None
        if prefix_cache_bytes and self._goes_on():
            self.prefixes = PrefixCache(prefix_cache_bytes)

    @property
    def overlaps(self) -> bool:
        """Whether ``run`` only begins the device's work, so that another batch can be prepared before its result."""
        return self._device is not None

    def __call__(self, jobs: Sequence[Job]) -> list[NDArray[np.float32]]:
        """Logits (classes,) float32 per job."""
        return self.run(self.prepare(jobs)).result()

    def prepare(self, jobs: Sequence[Job]) -> Prepared:
        """Lay a batch out and begin to copy it; at most one may be prepared and not yet run."""
        classes, embedded = tuple(job.meta.classes for job in jobs), dict[int, tuple[int, int]]()
        if self.backbone.layout.frames > 1:
            jobs = [_in_clips(job, self.backbone.layout.frames) for job in jobs]
        asked = [number for number, job in enumerate(jobs) if job.embed]
        if asked:
            jobs, places = _with_pooled(jobs, asked)
            width = self.backbone.layout.width
            embedded = {number: (at, 2 * width if jobs[at].meta.twice else width) for number, at in places.items()}
        with torch.inference_mode():
            plan = plan_of(jobs, pad=self._graphs is not None, prefixes=self.prefixes)
            pixels = [jobs[i].pixels for i in plan.inputs] or [jobs[0].pixels[:0]]
            staged = self._staging.put(plan.packed, pixels, plan.key.input_rows)
        return Prepared(plan, classes, staged, self._prefix_of(plan), embedded)

    def run(self, prepared: Prepared) -> Running:
        """Compute what was prepared; on CUDA only begin to. Batches run in the order of the calls."""
        staged = prepared.staged
        with self._computing(), torch.inference_mode():
            self._device_waits_for(prepared)
            outputs = self._compute(prepared)
            wanted = (outputs.logits, outputs.vectors) if prepared.embedded else (outputs.logits,)
            return Running(prepared.classes, self._staging.get(staged, *wanted), prepared.embedded)

    def warm_up(self, rows: Iterable[int], metas: Iterable[AdapterMeta] = ()) -> int:
        """Compile and capture batches of each number of rows, of tasks such as ``metas``, before anybody waits.

        Always those of the bare backbone, and of a picture task as `adaptserve train` makes them. Returns how many
        batches are captured, or without graphs compiled; without either it does nothing. Nothing may be loaded into the
        bank meanwhile.
        """
        if self._graphs is None and self._compiled is None:
            return 0
        trained: tuple[Pool, str] = (
            ("avg", "trained") if "avg" in self.backbone.layout.pools else ("backbone", "frozen")
        )
        frames = self.backbone.layout.frames
        usual = (_usual("backbone", "frozen", {}, frames), _usual(*trained, {"parallel": "relu"}, frames))
        for jobs in self._blank(rows, {_kind(meta): meta for meta in (*usual, *metas)}.values()):
            prepared = self.prepare(jobs)
            with self._computing(), torch.inference_mode():
                self._device_waits_for(prepared)
                for runtime in (self._compiled, self._graphs):  # the second captures what the first compiled
                    if runtime is not None:
                        runtime.warm_up(prepared.plan.key, prepared.staged.packed, prepared.staged.pixels)
        return max(len(runtime) for runtime in (self._compiled, self._graphs) if runtime is not None)

    def _blank(self, rows: Iterable[int], metas: Collection[AdapterMeta]) -> Iterator[list[Job]]:
        """Batches of black pictures that read slot 1, whatever it holds; a key's sites are those of slots but 0."""
        size, pages = self.backbone.layout.input_size, self.slabs.page_count
        for count in rows:
            for meta in metas:
                picture = np.zeros((meta.frames, 3, *size), np.uint8)
                head = tuple(1 + number % pages for number in range(meta.pages))
                yield [Job(picture, 1, head, meta)] * max(1, count // meta.frames)

    def _compute(self, prepared: Prepared) -> Outputs:
        key, staged, prefix = prepared.plan.key, prepared.staged, prepared.prefix
        if prefix is None or self.prefixes is None:
            return self.runtime(key, staged.packed, staged.pixels)
        outputs = self.reference(key, staged.packed, staged.pixels, prefix)
        for keep, tokens in prefix.kept:
            self.prefixes.put(keep.picture, keep.block, tokens)
        return outputs

    def _prefix_of(self, plan: Plan) -> Prefix | None:
        """What a batch takes from the cache and leaves there, if anything."""
        if self.prefixes is None or not (plan.resumed or plan.keeps):
            return None
        resumed, keeps = defaultdict[int, list[Tensor]](list), defaultdict[int, list[Keep]](list)
        for block, picture in plan.resumed:
            resumed[block].append(self.prefixes.take(picture, block))
        for keep in plan.keeps:
            keeps[keep.block].append(keep)
        return Prefix(resumed, keeps)

    def _goes_on(self) -> bool:
        """Whether the backbone goes on from its own tokens, in the middle and before its last norm.

        One of timm's models may do more between its blocks than can be left out.
        """
        layout = self.backbone.layout
        blank = np.zeros((layout.frames, 3, *layout.input_size), np.uint8)
        try:
            for block in {layout.blocks // 2 or 1, layout.blocks}:
                self.prefixes = PrefixCache(sys.maxsize)
                job = Job(blank, 0, (0,), replace(_usual("backbone", "frozen", {}), first=block), "blank")
                found = []
                with self._computing(), torch.inference_mode():
                    for _ in range(2):
                        prepared = self.prepare([job])
                        self._device_waits_for(prepared)
                        found.append(Outputs(*(out.clone() for out in self._compute(prepared))))
                    if not agrees(found[1], found[0]):
                        raise BackboneError("it answers otherwise")
        except Exception:  # any of timm's code may raise anything
            log.warning("%s does not go on from tokens that are kept, so nothing is: no prefix cache", layout.model,
                        exc_info=True)  # fmt: skip
            return False
        finally:
            self.prefixes = None
        return True

    def _device_waits_for(self, prepared: Prepared) -> None:
        if self._device is not None and prepared.staged.here is not None:
            self._device.wait(prepared.staged.here)

    def _computing(self) -> AbstractContextManager[None]:
        return nullcontext() if self._device is None else self._device.computing()


def _with_pooled(jobs: Sequence[Job], asked: Sequence[int]) -> tuple[list[Job], dict[int, int]]:
    """The jobs, and one more for each that asks for its pooled vector and has a head that sees time.

    Such a head makes something else of the frames. Both are one stream, which is computed once. Also the place of each
    vector, by job.
    """
    found, places = list(jobs), {}
    for number in asked:
        places[number] = number
        if jobs[number].meta.groups:
            job = jobs[number]
            if job.picture is None:
                job = found[number] = replace(job, picture=object())
            places[number] = len(found)
            found.append(job.pooled())
    return found, places


def _kind(meta: AdapterMeta) -> object:
    """What of a task makes another key."""
    sites = tuple(sorted(meta.acts.items())), meta.temporal, meta.patches
    return sites, meta.pool, meta.norm, meta.frames, meta.classes, meta.head, meta.groups


def _in_clips(job: Job, frames: int) -> Job:
    """The same job, whose rows are clips: ``pixels`` uint8 (rows, frames, 3, height, width)."""
    return replace(job, pixels=job.pixels.reshape(-1, frames, *job.pixels.shape[1:]))


def _usual(pool: Pool, norm: str, acts: dict[SiteName, Activation], frames: int = 1) -> AdapterMeta:
    return AdapterMeta("", "image", frames, 1, "softmax", pool, norm, acts, frozenset(), 0)
