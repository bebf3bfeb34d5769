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
"""(3, size, size) of a picture or (frames, 3, size, size) of what a task sees, values 0 to 255."""

MAX_RESIZED_PIXELS = 50_000_000


class Preprocess:
    """Callable: RGB picture of any size -> uint8 array (3, size, size), values 0 to 255.

    Equal to the last bit to timm's eval transform before its division by 255, and so to torchvision's resizing and
    cropping of Pillow's pictures. Immutable, so safe across threads.
    """

    def __init__(self, config: InputConfig, max_resized_pixels: int = MAX_RESIZED_PIXELS) -> None:
        self.config = config
        self._max_resized_pixels = max_resized_pixels
        self._scaled = math.floor(config.size / config.crop_pct)
        """The side that is resized to, before the crop."""
        self._filter = Image.Resampling[config.interpolation.upper()]
        # Pillow clips a colour too, but takes no number beyond 32 bits.
        self._padding = tuple(round(min(255.0, max(0.0, 255 * value))) for value in config.mean)

    def __call__(self, picture: Image.Image, out: Pixels | None = None) -> Pixels:
        """The pixels, written into ``out`` where that is given.

        Raises MediaTooLarge or BrokenMedia for a picture too long and thin to be resized.
        """
        self._check_shape(*picture.size)
        size = self.config.size
        pixels = np.empty((3, size, size), np.uint8) if out is None else out
        return self._unpacked(self._cropped(self._resized(picture)), pixels)

    def along(self, picture: Image.Image, outs: Sequence[Pixels]) -> None:
        """Three squares of the picture, resized once: the beginning, the middle and the end of its longer side."""
        self._check_shape(*picture.size)
        resized, size = self._resized(picture), self.config.size
        left, top = (self._start(side) for side in resized.size)
        wide = resized.width > resized.height
        for out, at in zip(outs, (0, None, max(resized.size) - size), strict=True):
            box = (left if at is None or not wide else at, top if at is None or wide else at)
            self._unpacked(resized.crop((*box, box[0] + size, box[1] + size)), out)

    def _unpacked(self, square: Image.Image, pixels: Pixels) -> Pixels:
        # Plane after plane: Pillow unpacks one twice as fast as numpy turns (size, size, 3) around.
        for plane, channel in zip(pixels, "RGB", strict=True):
            plane[...] = np.frombuffer(square.tobytes("raw", channel), np.uint8).reshape(plane.shape)
        return pixels

    def _resized(self, picture: Image.Image) -> Image.Image:
        wanted = self._wanted(*picture.size)
        return picture if picture.size == wanted else picture.resize(wanted, self._filter)

    def _wanted(self, width: int, height: int) -> tuple[int, int]:
        """Width and height before the crop, each rounded as timm or torchvision round it."""
        scaled = self._scaled
        if self.config.crop_mode == "squash":
            return scaled, scaled
        if self.config.crop_mode == "border":
            ratio = max(height / scaled, width / scaled)
            return round(width / ratio), round(height / ratio)
        if width <= height:
            return scaled, int(scaled * height / width)
        return int(scaled * width / height), scaled

    def _cropped(self, picture: Image.Image) -> Image.Image:
        """The square in the middle; a side that is shorter gets a border, which only mode ``border`` brings about."""
        size = self.config.size
        left, top = (self._start(side) for side in picture.size)
        box = (left, top, left + size, top + size)
        if picture.width >= size and picture.height >= size:
            return picture if picture.size == (size, size) else picture.crop(box)
        framed = Image.new("RGB", (size, size), self._padding)
        framed.paste(picture, (-left, -top))
        return framed

    def _start(self, side: int) -> int:
        """Where the square begins on a side of so many pixels; below 0 where it begins with a border."""
        spare = side - self.config.size
        return round(spare / 2) if spare > 0 else -(-spare // 2)

    def _check_shape(self, width: int, height: int) -> None:
        """A strip of 16384 x 1 pixels would be resized to 57344 x 224 and more before it is cropped."""
        if self.config.crop_mode == "squash":
            return
        scaled = self._scaled
        shape = f"a picture of {width}x{height} pixels is too long and thin"
        if self.config.crop_mode == "border":
            if min(self._wanted(width, height)) < 1:
                raise BrokenMedia(f"{shape} to fit into {scaled} pixels; crop it", field="size", got=[width, height])
            return
        resized = scaled * scaled * max(width, height) // min(width, height)
        if resized > self._max_resized_pixels:
            raise MediaTooLarge(
                f"{shape}: with the short side at {scaled} it has over {self._max_resized_pixels} pixels, "
                "which no setting changes; crop it",
                field="size", limit=self._max_resized_pixels, value=resized,
            )  # fmt: skip


def geometry(config: InputConfig) -> InputConfig:
    """What of it decides the pixels: configs that differ in mean and standard deviation alone become equal.

    The device normalises, later. Where a picture is padded, the padding has the colour of the mean.
    """
    mean = config.mean if config.crop_mode == "border" else (0.0, 0.0, 0.0)
    return config.model_copy(update={"mean": mean, "std": (1.0, 1.0, 1.0)})


class Places(Protocol):
    """Where pixels are written: an array (T, 3, size, size), or whatever gives (3, size, size) by number."""

    def __getitem__(self, frame: int, /) -> Pixels: ...


@overload
def rows(pictures: Sequence[Image.Image], pre: Preprocess, *, crops: int = 1) -> Pixels: ...
@overload
def rows(pictures: Sequence[Image.Image], pre: Preprocess, out: Places, *, crops: int = 1) -> Places: ...
def rows(pictures: Sequence[Image.Image], pre: Preprocess, out: Places | None = None, *, crops: int = 1) -> Places:
    """T RGB pictures -> uint8 (T, 3, size, size), in ``out`` if it is given. A picture that repeats is resized once.

    With 3 ``crops`` (3 T, 3, size, size): each crop of all pictures, one crop after the other.
    """
    size, count = pre.config.size, len(pictures)
    pixels: Places = np.empty((crops * count, 3, size, size), np.uint8) if out is None else out
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
