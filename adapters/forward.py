"""One forward of the frozen backbone for rows of any mix of adapters: pixels in, each job's logits out.

It owns the device while it runs, so one thread calls it. It knows slots; it knows no queue, clock or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.backbone import Backbone, Features
from adapters.bank import PAGE, AdapterMeta, Slabs
from adapters.config import SiteName
from adapters.media import normalise
from adapters.sites import ACTIVATIONS, ClipRows, SiteRows, banked_residual


@dataclass(frozen=True)
class Job:
    """One input and the slot that answers it: ``pixels`` uint8 (frames, 3, size, size), on the CPU."""

    pixels: Tensor
    slot: int
    pages: tuple[int, ...]
    meta: AdapterMeta


class BankedForward:
    """Callable on a list of jobs; the sum of their frames is the batch's rows.

    A job's logits depend on its pixels and its slot's content alone, and for one shape of batch they are the
    same bits whatever the other jobs are.
    """

    def __init__(self, backbone: Backbone, slabs: Slabs) -> None:
        self.backbone, self.slabs = backbone, slabs
        self._staging = torch.empty(0, dtype=torch.uint8)

    def __call__(self, jobs: Sequence[Job]) -> list[NDArray[np.float32]]:
        """Logits (classes,) float32 per job."""
        with torch.inference_mode():
            frames = np.array([job.pixels.shape[0] for job in jobs])
            slots = self._to_device(np.repeat([job.slot for job in jobs], frames))
            operator = _RowOperator(self.slabs, self._site_rows(jobs, frames))
            vectors = self.slabs.vectors[slots]
            images = normalise(self._pixels(jobs), vectors[:, 0:3], vectors[:, 3:6])
            features = self.backbone.features(images, operator if operator.active else None)
            pooled = self._pool(features, jobs, frames)
            return self._heads(pooled, jobs)

    def _to_device(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.slabs.device, non_blocking=True)

    def _pixels(self, jobs: Sequence[Job]) -> Tensor:
        """All frames as one uint8 tensor on the device, through one pinned buffer on CUDA."""
        if self.slabs.device.type != "cuda":
            return torch.cat([job.pixels for job in jobs])
        shape = (sum(job.pixels.shape[0] for job in jobs), *jobs[0].pixels.shape[1:])
        if self._staging.shape[0] < shape[0] or self._staging.shape[1:] != shape[1:]:
            self._staging = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        pixels = torch.cat([job.pixels for job in jobs], out=self._staging[: shape[0]])
        return pixels.to(self.slabs.device, non_blocking=True)

    def _site_rows(self, jobs: Sequence[Job], frames: NDArray[np.int64]) -> dict[SiteName, SiteRows]:
        """Per site in use: each row's slot (0 where its adapter has no such site), activation and neighbours."""
        rows: dict[SiteName, SiteRows] = {}
        clips: ClipRows | None = None
        for site in dict.fromkeys(s for job in jobs for s in job.meta.acts):
            slots = np.repeat([job.slot if site in job.meta.acts else 0 for job in jobs], frames)
            codes = np.repeat([ACTIVATIONS.index(job.meta.acts.get(site, "none")) for job in jobs], frames)
            acts = tuple(ACTIVATIONS[c] for c in np.unique(codes[slots > 0]))
            if any(site in job.meta.temporal for job in jobs):
                clips = clips or self._clip_rows(frames)
            rows[site] = SiteRows(
                slots=self._to_device(slots),
                acts=acts,
                act_of=self._to_device(codes),
                clips=clips if any(site in job.meta.temporal for job in jobs) else None,
            )
        return rows

    def _clip_rows(self, frames: NDArray[np.int64]) -> ClipRows:
        index = np.arange(frames.sum())
        position = np.concatenate([np.arange(n) for n in frames])
        first, last = position == 0, position == np.repeat(frames, frames) - 1
        masks = [self._to_device(~end).to(self.slabs.dtype).view(-1, 1, 1) for end in (first, last)]
        return ClipRows(
            before=self._to_device(np.where(first, index, index - 1)),
            after=self._to_device(np.where(last, index, index + 1)),
            has_before=masks[0],
            has_after=masks[1],
        )

    def _pool(self, features: Features, jobs: Sequence[Job], frames: NDArray[np.int64]) -> Tensor:
        """One float32 vector per job: tokens pooled as its config says, the mean over its frames, its own norm."""
        modes = list(dict.fromkeys((job.meta.pool, job.meta.norm) for job in jobs))
        pooled = self.backbone.pool(features, *modes[0]).float()
        for mode in modes[1:]:
            chosen = self._to_device(np.repeat([(j.meta.pool, j.meta.norm) == mode for j in jobs], frames))
            pooled = torch.where(chosen[:, None], self.backbone.pool(features, *mode).float(), pooled)
        if (frames > 1).any():
            pooled = self._mean_over_frames(pooled, frames)
        if any(job.meta.norm == "trained" for job in jobs):
            pooled = self._own_norm(pooled, jobs)
        return pooled

    def _mean_over_frames(self, pooled: Tensor, frames: NDArray[np.int64]) -> Tensor:
        """Mean of each job's rows, added one frame after another so that longer neighbours change no bit."""
        starts = np.cumsum(frames) - frames
        total = pooled[self._to_device(starts)]
        for t in range(1, int(frames.max())):
            here = self._to_device(t < frames)
            frame = pooled[self._to_device(starts + np.minimum(t, frames - 1))]
            total = torch.where(here[:, None], total + frame, total)
        return total / self._to_device(frames.astype(np.float32))[:, None]

    def _own_norm(self, pooled: Tensor, jobs: Sequence[Job]) -> Tensor:
        weight, bias = self.slabs.vectors[self._to_device(np.array([j.slot for j in jobs]))][:, 6:].chunk(2, dim=1)
        trained = self._to_device(np.array([j.meta.norm == "trained" for j in jobs]))
        return torch.where(trained[:, None], self.backbone.normalise_vector(pooled) * weight + bias, pooled)

    def _heads(self, pooled: Tensor, jobs: Sequence[Job]) -> list[NDArray[np.float32]]:
        """Each job against each page of its own head, as one batched product; then every job takes its classes."""
        pages = self._to_device(np.concatenate([job.pages for job in jobs]))
        counts = np.array([len(job.pages) for job in jobs])
        owner = self._to_device(np.repeat(np.arange(len(jobs)), counts))
        scores = (
            torch.bmm(self.slabs.pages[pages], pooled[owner].unsqueeze(-1)).squeeze(-1) + self.slabs.page_bias[pages]
        )
        flat: NDArray[np.float32] = scores.cpu().numpy().reshape(-1)
        starts = (np.cumsum(counts) - counts) * PAGE
        return [flat[s : s + job.meta.classes].copy() for s, job in zip(starts, jobs, strict=True)]


class _RowOperator:
    """The backbone's operator for one batch: every row's own slot at every site."""

    def __init__(self, slabs: Slabs, rows: dict[SiteName, SiteRows]) -> None:
        self._slabs, self._rows = slabs, rows
        self.active: frozenset[str] = frozenset(rows)

    def add(self, site: SiteName, block: int, tap: Tensor, out: Tensor) -> Tensor:
        return banked_residual(tap, out, self._slabs.weights[site][block], self._rows[site])
