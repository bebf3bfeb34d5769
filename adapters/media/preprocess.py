"""Preprocess: a picture -> pixels of the backbone's size, with Pillow and numpy, as timm's eval transform makes them.

It does not know formats, clips or tasks, and knows no torch: front ends have none. Training and serving share it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adapters.config import InputConfig
from adapters.errors import BrokenMedia, MediaTooLarge

Pixels = NDArray[np.uint8]
"""(3, height, width) of a picture or (frames, 3, height, width) of what a task sees, values 0 to 255."""

MAX_RESIZED_PIXELS = 50_000_000


class Preprocess:
    """Callable: RGB picture of any size -> uint8 array (3, height, width), values 0 to 255.

    Equal to the last bit to timm's eval transform before its division by 255, and so to torchvision's resizing and
    cropping of Pillow's pictures. Immutable, so safe across threads.
    """

    def __init__(self, config: InputConfig, max_resized_pixels: int = MAX_RESIZED_PIXELS) -> None:
        self.config = config
        self._max_resized_pixels = max_resized_pixels
        height, width = config.size
        self._scaled = math.floor(height / config.crop_pct), math.floor(width / config.crop_pct)
        """Height and width that are resized to, before the crop."""
        self._filter = Image.Resampling[config.interpolation.upper()]
        # Pillow clips a colour too, but takes no number beyond 32 bits.
        self._padding = tuple(round(min(255.0, max(0.0, 255 * value))) for value in config.mean)

    def __call__(self, picture: Image.Image, out: Pixels | None = None) -> Pixels:
        """The pixels, written into ``out`` where that is given.

        Raises MediaTooLarge or BrokenMedia for a picture too long and thin to be resized.
        """
        self._check_shape(*picture.size)
        pixels = np.empty((3, *self.config.size), np.uint8) if out is None else out
        return self._unpacked(self._cropped(self._resized(picture)), pixels)

    def along(self, picture: Image.Image, outs: Sequence[Pixels]) -> None:
        """Three parts of the picture, resized once: the beginning, the middle and the end of its longer side."""
        self._check_shape(*picture.size)
        resized, (height, width) = self._resized(picture), self.config.size
        right, bottom = resized.width - width, resized.height - height
        left, top = _start(right), _start(bottom)
        places = [(at, top) for at in (0, left, right)] if right > bottom else [(left, at) for at in (0, top, bottom)]
        for out, (x, y) in zip(outs, places, strict=True):
            self._unpacked(resized.crop((x, y, x + width, y + height)), out)

    def _unpacked(self, part: Image.Image, pixels: Pixels) -> Pixels:
        # Plane after plane: Pillow unpacks one twice as fast as numpy turns (height, width, 3) around.
        for plane, channel in zip(pixels, "RGB", strict=True):
            plane[...] = np.frombuffer(part.tobytes("raw", channel), np.uint8).reshape(plane.shape)
        return pixels

    def _resized(self, picture: Image.Image) -> Image.Image:
        wanted = self._wanted(*picture.size)
        return picture if picture.size == wanted else picture.resize(wanted, self._filter)

    def _wanted(self, width: int, height: int) -> tuple[int, int]:
        """Width and height before the crop, each rounded as timm or torchvision round it."""
        high, wide = self._scaled
        if self.config.crop_mode == "squash":
            return wide, high
        if self.config.crop_mode == "border" or high != wide:
            fit = max if self.config.crop_mode == "border" else min
            ratio = fit(height / high, width / wide)
            return round(width / ratio), round(height / ratio)
        if width <= height:
            return wide, int(high * height / width)
        return int(wide * width / height), high

    def _cropped(self, picture: Image.Image) -> Image.Image:
        """The middle of it; a side that is shorter gets a border, which only mode ``border`` brings about."""
        height, width = self.config.size
        left, top = _start(picture.width - width), _start(picture.height - height)
        if picture.width >= width and picture.height >= height:
            whole = picture.size == (width, height)
            return picture if whole else picture.crop((left, top, left + width, top + height))
        framed = Image.new("RGB", (width, height), self._padding)
        framed.paste(picture, (-left, -top))
        return framed

    def _check_shape(self, width: int, height: int) -> None:
        """A strip of 16384 x 1 pixels would be resized to 57344 x 224 and more before it is cropped."""
        if self.config.crop_mode == "squash":
            return
        high, wide = self._scaled
        shape = f"a picture of {width}x{height} pixels is too long and thin"
        wanted = self._wanted(width, height)
        if self.config.crop_mode == "border":
            if min(wanted) < 1:
                raise BrokenMedia(
                    f"{shape} to fit into {wide}x{high} pixels; crop it", field="size", got=[width, height]
                )
            return
        resized = wanted[0] * wanted[1]
        if resized > self._max_resized_pixels:
            raise MediaTooLarge(
                f"{shape}: where it fills {wide}x{high} pixels it has over {self._max_resized_pixels}, "
                "which no setting changes; crop it",
                field="size", limit=self._max_resized_pixels, value=resized,
            )  # fmt: skip


def _start(spare: int) -> int:
    """Where the crop begins on a side that is so many pixels longer; below 0 where it begins with a border."""
    return round(spare / 2) if spare > 0 else -(-spare // 2)


def geometry(config: InputConfig) -> InputConfig:
    """What of it decides the pixels: configs that differ in mean and standard deviation alone become equal.

    The device normalises, later. Where a picture is padded, the padding has the colour of the mean.
    """
    mean = config.mean if config.crop_mode == "border" else (0.0, 0.0, 0.0)
    return config.model_copy(update={"mean": mean, "std": (1.0, 1.0, 1.0)})


class Places(Protocol):
    """Where pixels are written: an array (T, 3, height, width), or whatever gives (3, height, width) by number."""

    def __getitem__(self, frame: int, /) -> Pixels: ...


@overload
def rows(pictures: Sequence[Image.Image], pre: Preprocess, *, crops: int = 1) -> Pixels: ...
@overload
def rows(pictures: Sequence[Image.Image], pre: Preprocess, out: Places, *, crops: int = 1) -> Places: ...
def rows(pictures: Sequence[Image.Image], pre: Preprocess, out: Places | None = None, *, crops: int = 1) -> Places:
    """T RGB pictures -> uint8 (T, 3, height, width), in ``out`` if given. A picture that repeats is resized once.

    With 3 ``crops`` (3 T, 3, height, width): each crop of all pictures, one crop after the other.
    """
    count = len(pictures)
    pixels: Places = np.empty((crops * count, 3, *pre.config.size), np.uint8) if out is None else out
    done: dict[int, int] = {}
    for number, picture in enumerate(pictures):
        first = done.setdefault(id(picture), number)
        if first != number:
            for skipped in range(0, crops * count, count):
                pixels[number + skipped][...] = pixels[first + skipped]
        elif crops == 1:
            pre(picture, pixels[number])
        else:
            pre.along(picture, [pixels[place] for place in range(number, crops * count, count)])
    return pixels
