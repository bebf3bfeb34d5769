"""Changes to training examples that leave their labels true: a random crop, a mirror, a blend of two (mixup).

Whole batches at once, on the device where they are, all frames of a clip alike. It knows no labels but mixup's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Crop:
    """Callable: pixels uint8 (items, frames, 3, height, width) -> the same shape, each item cut and enlarged at random.

    ``least`` is the smallest share of the area that stays; ``flip`` also mirrors every second item left to right.
    """

    least: float
    flip: bool = False

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        items, frames = pixels.shape[:2]
        draw = torch.rand(4, items, generator=generator)
        side = (self.least + (1 - self.least) * draw[0]).sqrt()
        mirror = torch.where(draw[3] < 0.5, -1.0, 1.0) if self.flip else torch.ones(items)
        matrix = torch.zeros(items, 2, 3)
        matrix[:, 0, 0], matrix[:, 1, 1] = side * mirror, side
        matrix[:, :, 2] = (2 * draw[1:3].T - 1) * (1 - side[:, None])  # the cut stays inside
        matrix = matrix.to(pixels.device).repeat_interleave(frames, dim=0)
        flat = pixels.flatten(0, 1).float()
        grid = F.affine_grid(matrix, list(flat.shape), align_corners=False)
        cut = F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
        return cut.round_().to(torch.uint8).view_as(pixels)


def mixing_weight(alpha: float, generator: torch.Generator) -> float:
    """How much of itself every item keeps, from Beta(alpha, alpha) (Zhang et al. 2017); 1 where ``alpha`` is 0."""
    if alpha <= 0:
        return 1.0
    seed = int(torch.randint(2**31, (), generator=generator))  # so that a resumed training draws the same
    return float(np.random.default_rng(seed).beta(alpha, alpha))
