"""One forward of the frozen backbone for rows of any mix of adapters: pixels in, each job's logits out.

It owns the device while it runs, so one thread calls it. It knows slots; it knows no queue, clock or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.backbone import Backbone
from adapters.backbone.inputs import normalise
from adapters.bank import PAGE, Slabs
from adapters.config import SiteName
from adapters.forward.graphs import Graphs
from adapters.forward.plan import (
    AFTER,
    BEFORE,
    HAS_AFTER,
    HAS_BEFORE,
    SITES,
    SLOTS,
    SOURCE,
    BatchKey,
    Job,
    Plan,
    plan_of,
)
from adapters.sites import ClipRows, SiteRows, banked_residual

__all__ = ["BankedForward", "Job"]


class BankedForward:
    """Callable on a list of jobs; the sum of their frames is the batch's rows, less what equal pictures share.

    A job's logits depend on its pixels and its slot's content alone, and for one shape of batch (``BatchKey``) they are
    the same bits whatever the other jobs are. On CUDA the part up to the pooled vectors is replayed from a graph
    unless ``cuda_graphs`` is off.
    """

    def __init__(self, backbone: Backbone, slabs: Slabs, *, cuda_graphs: bool = True) -> None:
        self.backbone, self.slabs = backbone, slabs
        self._staging = torch.empty(0, dtype=torch.uint8)
        on_cuda = slabs.device.type == "cuda"
        self._graphs = Graphs(self._compute, slabs.device) if on_cuda and cuda_graphs else None

    def __call__(self, jobs: Sequence[Job]) -> list[NDArray[np.float32]]:
        """Logits (classes,) float32 per job."""
        with torch.inference_mode():
            plan = plan_of(jobs)
            table, pixels = self._to_device(plan.table), self._pixels([jobs[i] for i in plan.inputs])
            pooled = (self._graphs or self._compute)(plan.key, table, pixels)
            return self._heads(self._vectors(pooled, plan, jobs), jobs)

    def _to_device(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.slabs.device, non_blocking=True)

    def _pixels(self, jobs: Sequence[Job]) -> Tensor:
        """All frames as one uint8 tensor on the device, through one pinned buffer on CUDA."""
        if self.slabs.device.type != "cuda":
            return torch.from_numpy(np.concatenate([job.pixels for job in jobs]))
        shape = (sum(job.pixels.shape[0] for job in jobs), *jobs[0].pixels.shape[1:])
        if self._staging.shape[0] < shape[0] or self._staging.shape[1:] != shape[1:]:
            self._staging = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        pixels = self._staging[: shape[0]]
        np.concatenate([job.pixels for job in jobs], out=pixels.numpy())
        return pixels.to(self.slabs.device, non_blocking=True)

    def _compute(self, key: BatchKey, table: Tensor, pixels: Tensor) -> tuple[Tensor, ...]:
        """Normalise, run the frozen blocks with every row's residuals, pool: (rows, width) float32 per mode."""
        vectors = self.slabs.vectors[table[SLOTS, : key.input_rows]]
        images = normalise(pixels, vectors[:, 0:3], vectors[:, 3:6])
        features = self.backbone.features(images, _RowOperator(self.slabs, key, table) if key.sites else None)
        return tuple(self.backbone.pool(features, *mode).float() for mode in key.modes)

    def _vectors(self, pooled: tuple[Tensor, ...], plan: Plan, jobs: Sequence[Job]) -> Tensor:
        """One vector per job: pooled as its config says, the mean over its frames, its own norm."""
        if plan.shared:
            rows = self._to_device(plan.rows_of_jobs)
            pooled = tuple(mode[rows] for mode in pooled)
        vector = pooled[0]
        for mode, other in zip(plan.key.modes[1:], pooled[1:], strict=True):
            chosen = np.repeat([(job.meta.pool, job.meta.norm) == mode for job in jobs], plan.frames)
            vector = torch.where(self._to_device(chosen)[:, None], other, vector)
        if (plan.frames > 1).any():
            vector = self._mean_over_frames(vector, plan.frames)
        if any(norm == "trained" for _, norm in plan.key.modes):
            vector = self._own_norm(vector, jobs)
        return vector

    def _mean_over_frames(self, vector: Tensor, frames: NDArray[np.int64]) -> Tensor:
        """Mean of each job's rows, added one frame after another so that longer neighbours change no bit."""
        starts = np.cumsum(frames) - frames
        total = vector[self._to_device(starts)]
        for t in range(1, int(frames.max())):
            here = self._to_device(t < frames)
            frame = vector[self._to_device(starts + np.minimum(t, frames - 1))]
            total = torch.where(here[:, None], total + frame, total)
        return total / self._to_device(frames.astype(np.float32))[:, None]

    def _own_norm(self, vector: Tensor, jobs: Sequence[Job]) -> Tensor:
        weight, bias = self.slabs.vectors[self._to_device(np.array([j.slot for j in jobs]))][:, 6:].chunk(2, dim=1)
        trained = self._to_device(np.array([j.meta.norm == "trained" for j in jobs]))
        return torch.where(trained[:, None], self.backbone.normalise_vector(vector) * weight + bias, vector)

    def _heads(self, vector: Tensor, jobs: Sequence[Job]) -> list[NDArray[np.float32]]:
        """Each job against each page of its own head, as one batched product; then every job takes its classes."""
        pages = self._to_device(np.concatenate([job.pages for job in jobs]))
        counts = np.array([len(job.pages) for job in jobs])
        owner = self._to_device(np.repeat(np.arange(len(jobs)), counts))
        scores = torch.bmm(self.slabs.pages[pages], vector[owner].unsqueeze(-1)).squeeze(-1)
        flat: NDArray[np.float32] = (scores + self.slabs.page_bias[pages]).cpu().numpy().reshape(-1)
        starts = (np.cumsum(counts) - counts) * PAGE
        return [flat[s : s + job.meta.classes].copy() for s, job in zip(starts, jobs, strict=True)]


class _RowOperator:
    """The backbone's operator for one batch: every row's own slot at every site."""

    def __init__(self, slabs: Slabs, key: BatchKey, table: Tensor) -> None:
        self._slabs, self._key, self._table = slabs, key, table
        self._places = {site.site: SITES + 2 * i for i, site in enumerate(key.sites)}
        self._masks = None
        if any(site.temporal for site in key.sites):
            self._masks = table[HAS_BEFORE : HAS_AFTER + 1].to(slabs.dtype).view(2, -1, 1, 1)
        self._rows = self._first_rows(key.input_rows)
        self.active = frozenset[str](self._places)
        self.joins: dict[int, Tensor] = {}
        rows = key.input_rows
        for block, joining in key.joins:
            self.joins[block] = table[SOURCE, rows : rows + joining]
            rows += joining

    def add(self, site: SiteName, block: int, tap: Tensor, out: Tensor) -> Tensor:
        if block < self._key.first:
            return out
        if tap.shape[0] != self._count:
            self._rows = self._first_rows(tap.shape[0])
        return banked_residual(tap, out, self._slabs.weights[site][block], self._rows[site])

    def _first_rows(self, count: int) -> dict[SiteName, SiteRows]:
        """What the first ``count`` rows do at each site; the others have not joined yet."""
        self._count, table, clips = count, self._table[:, :count], None
        if self._masks is not None:
            clips = ClipRows(table[BEFORE], table[AFTER], self._masks[0, :count], self._masks[1, :count])
        return {
            site.site: SiteRows(
                slots=table[place],
                acts=site.acts,
                act_of=table[place + 1],
                clips=clips if site.temporal else None,
            )
            for site, place in zip(self._key.sites, self._places.values(), strict=True)
        }
