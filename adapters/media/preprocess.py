"""Preprocess: a picture -> pixels of the backbone's size, and their normalisation; as timm's eval transform does.

It does not know formats, clips or tasks. Training and serving share it.
"""

from __future__ import annotations

import torch
from PIL import Image
from pydantic import ValidationError
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

from adapters.config import InputConfig
from adapters.errors import BackboneError, BrokenMedia, MediaTooLarge

MAX_RESIZED_PIXELS = 50_000_000


class Preprocess:
    """Callable: RGB picture of any size -> uint8 tensor (3, size, size), values 0 to 255.

    It is timm's own transform, stopped before the division by 255. Immutable, so safe across threads.
    """

    def __init__(self, config: InputConfig, max_resized_pixels: int = MAX_RESIZED_PIXELS) -> None:
        self.config = config
        self._max_resized_pixels = max_resized_pixels
        self._transform = create_transform(
            config.size,
            is_training=False,
            interpolation=config.interpolation,
            mean=config.mean,  # 'border' pads with it
            std=config.std,
            crop_pct=config.crop_pct,
            crop_mode=config.crop_mode,
            normalize=False,
        )

    def __call__(self, picture: Image.Image) -> Tensor:
        """Raises MediaTooLarge or BrokenMedia for a picture too long and thin to be resized."""
        self._check_shape(*picture.size)
        pixels: Tensor = self._transform(picture)
        return pixels

    def _check_shape(self, width: int, height: int) -> None:
        """A strip of 16384 x 1 pixels would be resized to 57344 x 224 and more before it is cropped."""
        if self.config.crop_mode == "squash":
            return
        scaled = int(self.config.size / self.config.crop_pct)
        shape = f"a picture of {width}x{height} pixels is too long and thin"
        short, long = min(width, height), max(width, height)
        if self.config.crop_mode == "border":
            if round(short * scaled / long) < 1:
                raise BrokenMedia(f"{shape} to fit into {scaled} pixels; crop it", field="size", got=[width, height])
        elif scaled * scaled * long // short > self._max_resized_pixels:
            raise MediaTooLarge(
                f"{shape}: with the short side at {scaled} it has over {self._max_resized_pixels} pixels, "
                "which no setting changes; crop it",
                field="size", limit=self._max_resized_pixels, value=scaled * scaled * long // short,
            )  # fmt: skip


def geometry(config: InputConfig) -> InputConfig:
    """What of it decides the pixels: configs that differ in mean and standard deviation alone become equal.

    The device normalises, later. Where a picture is padded, the padding has the colour of the mean.
    """
    mean = config.mean if config.crop_mode == "border" else (0.0, 0.0, 0.0)
    return config.model_copy(update={"mean": mean, "std": (1.0, 1.0, 1.0)})


def rows(pictures: list[Image.Image], pre: Preprocess) -> Tensor:
    """T RGB pictures -> uint8 (T, 3, size, size). A picture that repeats is resized once."""
    done: dict[int, Tensor] = {}
    for picture in pictures:
        if id(picture) not in done:
            done[id(picture)] = pre(picture)
    return torch.stack([done[id(picture)] for picture in pictures])


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, 3, S, S), float32 (B, 3) and (B, 3) -> float32 (B, 3, S, S): (pixels / 255 - mean) / std.

    On the CPU equal to timm's eval transform to the last bit: the same operations in the same order. On
    a GPU too the division is by a tensor, since one by a number would multiply by its rounded inverse.
    """
    full = torch.full((1,), 255.0, dtype=torch.float32, device=pixels.device)
    scaled = pixels.to(torch.float32).div_(full)
    return scaled.sub_(mean[:, :, None, None]).div_(std[:, :, None, None])


def input_config(model: torch.nn.Module) -> InputConfig:
    """The preprocessing that a timm model was trained with; raises BackboneError where we cannot express it."""
    data = resolve_model_data_config(model)
    channels, height, width = data["input_size"]
    if channels != 3 or height != width:
        raise BackboneError(
            f"the backbone takes {channels} channels of {height}x{width} pixels, expected 3 and a square",
            field="input_size", expected="(3, S, S)", got=list(data["input_size"]),
        )  # fmt: skip
    fields = {name: data[name] for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}
    try:
        return InputConfig(size=height, **fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BackboneError(
            f"the backbone's preprocessing cannot be used: {where}: {first['msg']}", field=where
        ) from error
