"""The heads that training fits: of the mean of a clip's frames, of all frames side by side, or an attention over them.

They take pooled vectors, whose norms are the model's, and give the tensors of a file; they know no backbone or data.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adapters.config import AdapterConfig
from adapters.heads import VALUES, head_shapes

HEAD_STD = 0.01
"""Of a head's last map at the start (AdaptFormer's official code)."""


class Head(Protocol):
    """A module with ``weight`` and ``bias`` of its last map, as the file has them, and what comes before that."""

    weight: nn.Parameter
    bias: nn.Parameter

    def seen(self, pooled: Tensor) -> Tensor:
        """What the head looks at, of one vector for each frame (items, frames, width): the same, or (items, width)."""
        ...

    def __call__(self, seen: Tensor, /) -> Tensor:
        """What ``seen`` gave, normed -> logits (items, classes)."""
        ...

    def begin(self, weight: Tensor, bias: Tensor) -> None:
        """Start from the best linear map of what is seen, side by side: (classes, values) and (classes,)."""
        ...

    def tensors(self, mean: Tensor, factor: Tensor) -> dict[str, Tensor]:
        """The file's, by name, for vectors v where training had ``(v - mean) * factor``; both (width,)."""
        ...


def head_for(config: AdapterConfig, width: int) -> Any:
    """The ``Head`` that a config asks for, an nn.Module, at its random start."""
    shapes = head_shapes(config, width)
    classes, into = shapes["head.weight"]
    if config.head == "attention":
        return AttentionHead(width, config.frames, into, classes)
    if config.head == "frames":
        return FramesHead(width, config.frames, config.video.head_rank if config.video else 0, classes)
    return MeanHead(into, classes)


class MeanHead(nn.Linear):
    """One linear map of the mean over the frames."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, classes)
        _start(self)

    def seen(self, pooled: Tensor) -> Tensor:
        """(items, frames, width) -> (items, width)."""
        return pooled.mean(1)

    @torch.no_grad()
    def begin(self, weight: Tensor, bias: Tensor) -> None:
        """See ``Head``."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def tensors(self, mean: Tensor, factor: Tensor) -> dict[str, Tensor]:
        """See ``Head``."""
        weight = self.weight * factor
        return {"head.weight": weight, "head.bias": self.bias - weight @ mean}


class FramesHead(nn.Linear):
    """A linear map of all frames' vectors side by side, in two steps where ``rank`` is not 0."""

    def __init__(self, width: int, frames: int, rank: int, classes: int) -> None:
        super().__init__(rank or frames * width, classes)
        self._frames = frames
        self.down = nn.Linear(frames * width, rank, bias=False) if rank else None
        _start(self)

    def seen(self, pooled: Tensor) -> Tensor:
        """All of it."""
        return pooled

    def forward(self, seen: Tensor) -> Tensor:
        """(items, frames, width) -> logits (items, classes)."""
        flat = seen.flatten(1)
        return super().forward(flat if self.down is None else self.down(flat))

    @torch.no_grad()
    def begin(self, weight: Tensor, bias: Tensor) -> None:
        """See ``Head``; in two steps, the nearest map that they can make."""
        if self.down is not None:
            left, size, right = torch.linalg.svd(weight.double(), full_matrices=False)
            root, rank = size[: self.in_features].sqrt(), self.in_features
            self.down.weight.copy_(root[:, None] * right[:rank])
            weight = left[:, :rank] * root
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def tensors(self, mean: Tensor, factor: Tensor) -> dict[str, Tensor]:
        """See ``Head``."""
        first = (self.weight if self.down is None else self.down.weight) * factor.repeat(self._frames)
        shift = first @ mean.repeat(self._frames)
        if self.down is None:
            return {"head.weight": first, "head.bias": self.bias - shift}
        return {
            "head.down.weight": first,
            "head.weight": self.weight,
            "head.bias": self.bias - self.weight @ shift,
        }


class AttentionHead(nn.Linear):
    """Each ``VALUES`` values are weighed by a softmax over the frames, of a score; then a linear map.

    Scores and values are linear in a frame's vector and have a learnt number for each position. Positions of the scores
    start at random, so that the attentions look at different parts of a clip from the beginning.
    """

    def __init__(self, width: int, frames: int, values: int, classes: int) -> None:
        super().__init__(values, classes)
        attentions = -(-values // VALUES)
        self.score = nn.Linear(width, attentions, bias=False)
        self.value = nn.Linear(width, values, bias=False)
        self.score_position = nn.Parameter(torch.randn(frames, attentions))
        self.value_position = nn.Parameter(torch.zeros(frames, values))
        nn.init.zeros_(self.score.weight)
        _start(self)

    def seen(self, pooled: Tensor) -> Tensor:
        """All of it."""
        return pooled

    def forward(self, seen: Tensor) -> Tensor:
        """(items, frames, width) -> logits (items, classes)."""
        shares = (self.score(seen) + self.score_position).softmax(1)
        values = self.value(seen) + self.value_position
        shares = shares.repeat_interleave(VALUES, 2)[..., : values.shape[2]]
        return super().forward((shares * values).sum(1))

    def begin(self, weight: Tensor, bias: Tensor) -> None:
        """No linear map of all frames is one of these; the random start stays."""

    def tensors(self, mean: Tensor, factor: Tensor) -> dict[str, Tensor]:
        """See ``Head``. What the mean adds to every frame's score changes no softmax."""
        value = self.value.weight * factor
        return {
            "head.score.weight": self.score.weight * factor,
            "head.score.position": self.score_position,
            "head.value.weight": value,
            "head.value.position": self.value_position - value @ mean,
            "head.weight": self.weight,
            "head.bias": self.bias,
        }


def _start(head: nn.Linear) -> None:
    nn.init.trunc_normal_(head.weight, std=HEAD_STD)
    nn.init.zeros_(head.bias)
