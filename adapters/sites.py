"""The one operator: a low-rank residual, for one adapter (training) and for many at once (serving).

``y = tap``; ``out += scale * (up @ act(mix(down @ y + b_down)) + b_up)`` (AdaptFormer, Chen et al. 2022,
eq. 2 and 3; LoRA, Hu et al. 2021, with no activation). It does not know where in a model it is applied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.config import ACTIVATIONS, Activation, SiteConfig


def activate(hidden: Tensor, act: Activation) -> Tensor:
    """Apply the bottleneck's activation; GELU is the exact one."""
    if act == "relu":
        return F.relu(hidden)
    if act == "silu":
        return F.silu(hidden)
    return F.gelu(hidden) if act == "gelu" else hidden


class LowRankResidual(nn.Module):
    """One residual with its own parameters, started as the identity: only ``down.weight`` is not zero.

    ``learn_scale`` makes the scale a parameter; a file folds it into ``up``.
    """

    def __init__(
        self, site: SiteConfig, width_in: int, width_out: int, *, dropout: float = 0.0, learn_scale: bool = False
    ) -> None:
        super().__init__()
        self.act: Activation = site.act
        self.down = nn.Linear(width_in, site.rank)
        self.up = nn.Linear(site.rank, width_out)
        self.time = nn.Parameter(torch.zeros(site.rank, 1, 3)) if site.temporal else None
        scale = torch.tensor(site.scale)
        self.scale: Tensor
        if learn_scale:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        self.dropout = dropout
        self.reset()

    def reset(self) -> None:
        """Kaiming-uniform ``down``, everything else zero, time mixing the identity."""
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        if self.time is not None:
            with torch.no_grad():
                self.time.zero_()[:, 0, 1] = 1.0

    def forward(self, tap: Tensor, frames: int = 1) -> Tensor:
        """Residual (rows, tokens, width out) of ``tap`` (rows, tokens, width in); ``frames`` rows make a clip."""
        hidden = self.down(tap)
        if self.time is not None:
            hidden = self._mix(hidden, self.time, frames)
        hidden = F.dropout(activate(hidden, self.act), self.dropout, self.training)
        update: Tensor = self.up(hidden)
        return self.scale * update

    def _mix(self, hidden: Tensor, time: Tensor, frames: int) -> Tensor:
        """Depthwise convolution over the frames of each clip, every token for itself, zeros beyond the ends.

        Three shifted products: torch's Conv1d over so short a time axis is tens of times slower on a CPU.
        """
        clips = hidden.view(-1, frames, *hidden.shape[1:])
        padded = F.pad(clips, (0, 0, 0, 0, 1, 1))
        before, here, after = time[:, 0].unbind(1)
        mixed = before * padded[:, :-2] + here * clips + after * padded[:, 2:]
        return mixed.flatten(0, 1)


@dataclass(frozen=True)
class SlotWeights:
    """One site of one block for every slot of the bank, ``scale`` folded into ``up``; views of one slab.

    ``down`` (slots, width in, rank), ``down_bias`` (slots, rank), ``up`` (slots, rank, width out),
    ``up_bias`` (slots, width out), ``time`` (slots, 3, rank). Slot 0 is all zeros and adds nothing.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    time: Tensor


@dataclass(frozen=True)
class SiteRows:
    """What a batch does at one kind of site. Tensors are (rows,) on the device.

    ``slots``: each row's slot. ``acts``: the activations that occur, in the order of ``ACTIVATIONS``;
    ``act_of`` picks one per row and is only read if there are several. ``clips`` is set when any row mixes in time,
    ``left_out`` when any row leaves out the tokens that come before those of the patches.
    """

    slots: Tensor
    acts: tuple[Activation, ...]
    act_of: Tensor
    clips: ClipRows | None
    left_out: LeftOut | None = None


@dataclass(frozen=True)
class LeftOut:
    """How many tokens come before those of the patches, and a bool for each row (rows, 1, 1): whether to spare them."""

    tokens: int
    rows: Tensor


@dataclass(frozen=True)
class ClipRows:
    """Each row's neighbours in time: their row numbers, itself where there is none, and 0/1 masks (rows, 1, 1)."""

    before: Tensor
    after: Tensor
    has_before: Tensor
    has_after: Tensor


def banked_residual(tap: Tensor, out: Tensor, weights: SlotWeights, rows: SiteRows) -> Tensor:
    """Add each row's own residual to ``out`` (rows, tokens, width out) in place, and return it.

    Weights are gathered per row and multiplied as one batch, so a row's bits do not depend on its
    neighbours: the same matrix product runs for it whatever slots the other rows use. ``index_select`` copies a
    slot's run of numbers at once, where indexing goes through them one by one.

    Tokens that a row leaves out are put back as they were: that is exact, since no token takes part in another's.
    """
    left_out = rows.left_out
    if left_out is None:
        return _add(tap, out, weights, rows)
    spared = out[:, : left_out.tokens].clone()
    changed = _add(tap, out, weights, rows)
    first = changed[:, : left_out.tokens]
    first.copy_(torch.where(left_out.rows, spared, first))
    return changed


def _add(tap: Tensor, out: Tensor, weights: SlotWeights, rows: SiteRows) -> Tensor:
    down, up = (w.index_select(0, rows.slots) for w in (weights.down, weights.up))
    down_bias, up_bias = (b.index_select(0, rows.slots).unsqueeze(1) for b in (weights.down_bias, weights.up_bias))
    # Where the bias can be added to what is still in the cache, baddbmm would first write it out for every token.
    hidden = torch.bmm(tap, down).add_(down_bias) if tap.dtype == torch.float32 else torch.baddbmm(down_bias, tap, down)
    if rows.clips is not None:
        hidden = _mix_rows(hidden, weights.time.index_select(0, rows.slots), rows.clips)
    hidden = _activate_rows(hidden, rows)
    if out.is_contiguous():
        return out.baddbmm_(hidden, up).add_(up_bias)
    return out + torch.baddbmm(up_bias, hidden, up)


def _mix_rows(hidden: Tensor, time: Tensor, clips: ClipRows) -> Tensor:
    """Three taps over time; rows that do not mix have the weights (0, 1, 0) and only ever read themselves."""
    before, here, after = (time[:, i].unsqueeze(1) for i in range(3))
    return (
        here * hidden
        + (clips.has_before * before) * hidden[clips.before]
        + (clips.has_after * after) * hidden[clips.after]
    )


def _activate_rows(hidden: Tensor, rows: SiteRows) -> Tensor:
    """``hidden`` may be written."""
    if rows.acts == ("relu",):
        return hidden.relu_()
    if len(rows.acts) == 1:
        return activate(hidden, rows.acts[0])
    result = hidden
    for act in rows.acts:
        if act != "none":
            chosen = (rows.act_of == ACTIVATIONS.index(act)).view(-1, 1, 1)
            result = torch.where(chosen, activate(hidden, act), result)
    return result
