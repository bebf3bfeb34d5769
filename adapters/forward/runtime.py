"""What executes a batch: the reference, eager torch, and the check that a faster runtime must pass to be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.backbone.inputs import normalise
from adapters.bank import Slabs
from adapters.config import SiteName
from adapters.forward.heads import mean_over_frames, scores_of, vectors_of
from adapters.forward.plan import (
    ACTS_AT,
    AFTER,
    BEFORE,
    HAS_AFTER,
    HAS_BEFORE,
    LINES_PER_SITE,
    PATCHES_AT,
    SITES,
    SLOT,
    SLOTS,
    SLOTS_AT,
    SOURCE,
    TRAINED,
    BatchKey,
    Keep,
    Table,
)
from adapters.sites import ClipRows, LeftOut, SiteRows, banked_residual

TOLERANCE = 0.05
"""How far a runtime may be from eager, of the largest value: what roundings to bfloat16 add up to over the blocks."""


class Outputs(NamedTuple):
    """``vectors`` (jobs, width): pooled, meant over frames, normed. ``logits`` (jobs, pages * PAGE). Both float32.

    Where a head sees time, the vector is what it made of the frames. Where any head takes two vectors, they are
    (jobs, 2 width), and only the first half counts for a job that has one.
    """

    vectors: Tensor
    logits: Tensor


@dataclass
class Prefix:
    """What the prefix cache gives a batch and gets of it.

    ``resumed``: by block, tokens of rows that begin there; ``keeps``: what to keep, ``kept``: copies of its tokens.
    """

    resumed: Mapping[int, Sequence[Tensor]]
    keeps: Mapping[int, Sequence[Keep]]
    kept: list[tuple[Keep, Tensor]] = field(default_factory=list)


class Runtime(Protocol):
    """Computes a batch: its key, its packed table and the pixels of its input rows, both on the device.

    The key decides every shape and every operation. Nothing is copied from or to the host. What comes out is valid
    until the next call.
    """

    def __call__(self, key: BatchKey, packed: Tensor, pixels: Tensor, /) -> Outputs: ...


class Eager:
    """The reference: normalise, the frozen blocks with every row's residuals, pool, and every job's own head."""

    def __init__(self, backbone: Backbone, slabs: Slabs) -> None:
        self._backbone, self._slabs = backbone, slabs

    def __call__(self, key: BatchKey, packed: Tensor, pixels: Tensor, prefix: Prefix | None = None) -> Outputs:
        table = Table[Tensor].of(key, packed)
        given = self._slabs.vectors[table.rows[SLOTS, : key.input_rows]]
        images = normalise(pixels, given[:, 0:3], given[:, 3:6])
        operator = RowOperator(self._slabs, key, table.rows, prefix) if key.sites or prefix else None
        features = self._backbone.features(images, operator)
        pooled = [self._backbone.pool(features, *mode).float() for mode in key.modes]
        rows = pooled[0] if len(pooled) == 1 else torch.cat(pooled)
        trained = any(norm == "trained" for _, norm in key.modes)
        vectors = vectors_of(rows, self._slabs, key, table, self._own_norm if trained else None)
        logits = scores_of(vectors, self._slabs, table.heads, table.places)
        if key.seconds:  # of a job with one vector, blank pages are added
            second = mean_over_frames(rows, table.second_vectors, table)
            logits += scores_of(second, self._slabs, table.seconds, table.second_places)
            vectors = torch.cat([vectors, second], 1)
        return Outputs(vectors, logits)

    def _own_norm(self, vectors: Tensor, jobs: Tensor) -> Tensor:
        """``jobs``: the table's lines of whose the vectors are."""
        weight, bias = self._slabs.vectors[jobs[SLOT]][:, 6:].chunk(2, dim=1)
        normed = self._backbone.normalise_vector(vectors) * weight + bias
        return torch.where(jobs[TRAINED].bool()[:, None], normed, vectors)


class RowOperator:
    """The backbone's operator for one batch: every row's own slot at every site. ``rows`` is the table's part."""

    def __init__(self, slabs: Slabs, key: BatchKey, rows: Tensor, prefix: Prefix | None = None) -> None:
        self._slabs, self._key, self._table = slabs, key, rows
        self._places = {site.site: SITES + LINES_PER_SITE * i for i, site in enumerate(key.sites)}
        self._masks = None
        if any(site.temporal for site in key.sites):
            self._masks = rows[HAS_BEFORE : HAS_AFTER + 1].to(slabs.dtype).view(2, -1, 1, 1)
        self._rows = self._first_rows(key.input_rows)
        self.active = frozenset[str](self._places)
        self._joins, self._prefix = dict(key.joins), prefix or Prefix({}, {})

    def enter(self, block: int, tokens: Tensor) -> Tensor:
        for keep in self._prefix.keeps.get(block, ()):
            self._prefix.kept.append((keep, tokens[keep.start : keep.stop].clone()))
        joining = self._joins.get(block)
        if joining is None:
            return tokens
        end = tokens.shape[0] + joining
        if resumed := self._prefix.resumed.get(block):
            # No row was in the blocks before: they left out what they do to the shape of tokens.
            tokens = torch.cat([tokens, *resumed] if tokens.shape[0] else [*resumed])
        if (there := tokens.shape[0]) < end:
            tokens = torch.cat([tokens, tokens[self._table[SOURCE, there:end]]])
        return tokens

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
                slots=table[place + SLOTS_AT],
                acts=site.acts,
                act_of=table[place + ACTS_AT],
                clips=clips if site.temporal else None,
                left_out=self._left_out(table[place + PATCHES_AT]) if site.patches else None,
            )
            for site, place in zip(self._key.sites, self._places.values(), strict=True)
        }

    def _left_out(self, patches: Tensor) -> LeftOut:
        return LeftOut(self._slabs.layout.prefix_tokens or 0, patches.bool().view(-1, 1, 1))


def agrees(found: Outputs, expected: Outputs) -> bool:
    """Whether vectors are within ``TOLERANCE`` of their own largest value, and logits of the largest of all.

    What is not finite must be so in both.
    """
    (vectors, logits), (right, scores) = found, expected
    return _near(vectors, right, right.nan_to_num(0, 0, 0).abs().amax(1, keepdim=True)) and _near(
        logits, scores, scores.nan_to_num(0, 0, 0).abs().max()
    )


def _near(found: Tensor, expected: Tensor, scale: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    finite = expected.isfinite()
    near = torch.where(finite, (found - expected).abs() <= TOLERANCE * scale, ~found.isfinite())
    return bool(near.all())
