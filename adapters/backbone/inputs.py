"""What a backbone takes: the preprocessing that its timm model was trained with, and pixels normalised for it."""

from __future__ import annotations

import torch
from pydantic import ValidationError
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from adapters.config import InputConfig, Size
from adapters.errors import BackboneError


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, 3, H, W), float32 (B, 3) and (B, 3) -> float32 (B, 3, H, W): (pixels / 255 - mean) / std.

    Of clips (B, frames, 3, H, W) every frame alike.
    On the CPU equal to timm's eval transform to the last bit: the same operations in the same order. On
    a GPU too the division is by a tensor, since one by a number would multiply by its rounded inverse.
    """
    full = torch.full((1,), 255.0, dtype=torch.float32, device=pixels.device)
    scaled = pixels.to(torch.float32).div_(full)
    of_row = (len(pixels), *(1,) * (pixels.ndim - 4), 3, 1, 1)
    return scaled.sub_(mean.reshape(of_row)).div_(std.reshape(of_row))


def input_config(model: nn.Module, size: Size | None = None) -> InputConfig:
    """The preprocessing that a timm model was trained with, for pictures of ``size`` where that is given.

    Raises BackboneError where we cannot express it.
    """
    data = resolve_model_data_config(model)
    channels, height, width = data["input_size"]
    if channels != 3:
        raise BackboneError(
            f"the backbone takes {channels} channels of {height}x{width} pixels, expected 3",
            field="input_size", expected="(3, H, W)", got=list(data["input_size"]),
        )  # fmt: skip
    fields = {name: data[name] for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}
    try:
        return InputConfig(size=size or (height, width), **fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BackboneError(
            f"the backbone's preprocessing cannot be used: {where}: {first['msg']}", field=where
        ) from error
