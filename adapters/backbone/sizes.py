"""The sizes of pictures that a timm model takes, and the one that a checkpoint's positions were made for.

It knows patches and grids of positions; it loads and resamples nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.backbone.families import encoder_of, positions_are_patches
from adapters.config import MAX_SIDE, MIN_SIDE, Size, size_json, size_text
from adapters.errors import BackboneError

TABLE = ".relative_position_bias_table"
"""The end of the name of a table of position biases."""
Grid = tuple[int, int]
"""Rows and columns of patches."""


def refuse_part_of_a_patch(name: str, model: nn.Module, own: Size, size: Size) -> None:
    """Raise BackboneError unless pictures of ``size`` are whole patches: timm would leave the rest of them unseen."""
    patch = patch_of(model)
    if all(side % step == 0 for side, step in zip(size, patch, strict=True)):
        return
    why = f"its patches of {size_text(patch)} pixels would leave a part of the picture unseen"
    raise refused(name, own, size, why, [near for near in _nearest(size, patch) if near != own])


def refused(name: str, own: Size, size: Size, why: str, works: Sequence[Size] = ()) -> BackboneError:
    """The error of a model that cannot run at ``size``; ``works`` are sizes that it can run at, beside its own."""
    sizes = [f"at {size_text(one)}" for one in works] + [f"at its own {size_text(own)}"]
    return BackboneError(
        f"{name} cannot run at {size_text(size)} pixels: {why}; it can {' or '.join(sizes)}: choose with --image-size",
        model=name, field="image_size", got=size_json(size), expected=[size_json(one) for one in (*works, own)],
    )  # fmt: skip


def patch_of(model: nn.Module) -> Size:
    """Height and width of the part of a picture that one token of the first block stands for."""
    root = encoder_of(model)
    embed: Any = getattr(root, "patch_embed", None) or getattr(root, "embeds", None)
    if hasattr(embed, "feat_ratio"):
        height, width = embed.feat_ratio(as_scalar=False)
        return int(height), int(width)
    return 1, 1


def squares_near(size: Size, patch: Size) -> Iterator[Size]:
    """Squares of whole patches, the nearest first, in steps that stages which halve the grid can take too."""
    step, middle = 8 * math.lcm(*patch), math.isqrt(size[0] * size[1])
    for side in sorted(range(step, MAX_SIDE + 1, step), key=lambda side: abs(side - middle)):
        yield side, side


def grids_of(model: Any, raw: Mapping[str, Tensor]) -> tuple[Grid | None, Grid] | None:
    """The grids of positions of a checkpoint and of the model, as timm takes them; nothing where either has none.

    That of the checkpoint is None where it cannot be told: so many positions make no square.
    """
    ours = getattr(model, "pos_embed", None)
    found = [v for n, v in raw.items() if re.fullmatch(r"(\w+\.)*pos_embed", n) and v.ndim in (3, 4)]
    if not isinstance(ours, Tensor) or ours.ndim not in (3, 4) or not found:
        return None
    if ours.ndim == 4:
        mine: Grid = (ours.shape[1], ours.shape[2])
        if found[0].ndim == 4:
            return (found[0].shape[1], found[0].shape[2]), mine
    elif found[0].ndim == 4:
        return None
    apart = ours.ndim == 4 or getattr(model, "no_embed_class", False) or positions_are_patches(model)
    prefix = 0 if apart else getattr(model, "num_prefix_tokens", 1)
    if ours.ndim == 3:
        mine = _grid_of(model, ours.shape[1] - prefix)
    return _told_grid(model, found[0].shape[1] - (1 if "register_tokens" in raw else prefix)), mine


def resample_as_given(model: Any, raw: Mapping[str, Tensor], *, antialias: bool) -> None:
    """Give a model a checkpoint's positions, resampled for its size as transformers does it, with or without
    antialiasing; timm always uses it."""
    old, new = grids_of(model, raw) or (None, None)
    if old is None or model.pos_embed.ndim != 3:
        return
    rows, columns = old
    given = raw["pos_embed"].float()
    prefix, patches = given.tensor_split([given.shape[1] - rows * columns], dim=1)
    square = patches.view(1, rows, columns, -1).permute(0, 3, 1, 2)
    spread = F.interpolate(square, new, mode="bicubic", align_corners=False, antialias=antialias)
    with torch.no_grad():
        model.pos_embed.copy_(torch.cat([prefix, spread.flatten(2).transpose(1, 2)], 1))


def native_size(model: Any, raw: Mapping[str, Tensor]) -> Size | None:
    """The size of pictures that a checkpoint's positions span, where they tell it."""
    grids = grids_of(model, raw)
    grid = grids[0] if grids else _table_grid(model, raw)
    height, width = patch_of(model)
    return (grid[0] * height, grid[1] * width) if grid else None


def _nearest(size: Size, patch: Size) -> list[Size]:
    below = [side // step * step for side, step in zip(size, patch, strict=True)]
    above = [-(-side // step) * step for side, step in zip(size, patch, strict=True)]
    near = ((below[0], below[1]), (above[0], above[1]))
    return [one for one in near if min(one) >= MIN_SIDE and max(one) <= MAX_SIDE]


def _grid_of(model: Any, count: int) -> Grid:
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid and math.prod(grid) == count:
        return grid[0], grid[1]
    return math.isqrt(max(count, 0)), math.isqrt(max(count, 0))


def _told_grid(model: Any, count: int) -> Grid | None:
    """That of the size that timm knows of the model's own weights, where it has so many positions; else a square."""
    told = getattr(model, "pretrained_model_args", {}).get("img_size")
    told = told or (getattr(model, "pretrained_cfg", {}).get("input_size") or (3, 0, 0))[-2:]
    sides = (told, told) if isinstance(told, int) else told
    rows, columns = (side // step for side, step in zip(sides, patch_of(model), strict=True))
    if rows * columns == count > 0:
        return rows, columns
    side = math.isqrt(max(count, 0))
    return (side, side) if side and side * side == count else None


def _table_grid(model: Any, raw: Mapping[str, Tensor]) -> Grid | None:
    """The square that a table of biases spans, with three more for a class token; a window's tells nothing."""
    if hasattr(model, "layers"):
        return None
    for rows in (len(v) for n, v in raw.items() if n.endswith(TABLE) and v.ndim == 2):
        for span in (math.isqrt(rows), math.isqrt(max(rows - 3, 0))):
            if span % 2 and span * span in (rows, rows - 3):
                return (span + 1) // 2, (span + 1) // 2
    return None
