"""What a batch needs to know, as one small table of integers: slots, neighbours in time, activations.

Everything that changes the computation's shape is in the ``BatchKey``, everything else is data in the table, so
one CUDA graph serves every batch of a key. It knows no device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapters.bank import AdapterMeta
from adapters.config import Activation, Pool, SiteName
from adapters.sites import ACTIVATIONS

SLOTS, BEFORE, AFTER, HAS_BEFORE, HAS_AFTER, SITES = range(6)
"""Rows of the table; from ``SITES`` on, two rows per site of the key: its slots and its activations."""


@dataclass(frozen=True)
class Job:
    """One input and the slot that answers it: ``pixels`` uint8 (frames, 3, size, size), on the CPU."""

    pixels: Tensor
    slot: int
    pages: tuple[int, ...]
    meta: AdapterMeta


@dataclass(frozen=True)
class SiteKey:
    """A site in use, the activations that occur there, and whether any row mixes in time."""

    site: SiteName
    acts: tuple[Activation, ...]
    temporal: bool


@dataclass(frozen=True)
class BatchKey:
    """The shape of a batch: rows, sites, and the ways of pooling."""

    rows: int
    sites: tuple[SiteKey, ...]
    modes: tuple[tuple[Pool, str], ...]


@dataclass(frozen=True)
class Plan:
    """``table`` int64 (5 + 2 sites, rows); ``frames`` (jobs,) rows per job."""

    key: BatchKey
    table: NDArray[np.int64]
    frames: NDArray[np.int64]


def plan_of(jobs: Sequence[Job]) -> Plan:
    """Lay the jobs' rows out one after another, a clip's rows side by side in time order."""
    frames = np.array([job.pixels.shape[0] for job in jobs])
    index = np.arange(frames.sum())
    position = np.concatenate([np.arange(n) for n in frames])
    first, last = position == 0, position == np.repeat(frames, frames) - 1
    slots = np.repeat([job.slot for job in jobs], frames)
    lines = [slots, np.where(first, index, index - 1), np.where(last, index, index + 1), ~first, ~last]
    keys = []
    for site in dict.fromkeys(s for job in jobs for s in job.meta.acts):
        mine = np.repeat([job.slot if site in job.meta.acts else 0 for job in jobs], frames)
        codes = np.repeat([ACTIVATIONS.index(job.meta.acts.get(site, "none")) for job in jobs], frames)
        acts = tuple(ACTIVATIONS[c] for c in np.unique(codes[mine > 0]))
        keys.append(SiteKey(site, acts, any(site in job.meta.temporal for job in jobs)))
        lines += [mine, codes]
    modes = tuple(dict.fromkeys((job.meta.pool, job.meta.norm) for job in jobs))
    return Plan(BatchKey(len(index), tuple(keys), modes), np.stack(lines).astype(np.int64), frames)
