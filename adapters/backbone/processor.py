"""preprocessor_config.json, in which Hugging Face's image processors say what they do -> fields of InputConfig.

It does not know models or adapters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.config import Size, size_text
from adapters.errors import ImportRefused

NAME = "preprocessor_config.json"
MAX_BYTES = 2**20
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By Pillow's numbers."""
_SHORTER = ("CLIP", "ChineseCLIP", "Bit", "ConvNext", "LeViT", "Levit", "VideoMAE")
"""Processors that take a size of one number as that of the shorter side; others squash to a square of it."""

SQUASH: Mapping[str, object] = {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"}
SQUASH_BICUBIC: Mapping[str, object] = {**SQUASH, "interpolation": "bicubic"}
CENTER: Mapping[str, object] = {"crop_mode": "center", "crop_pct": 0.875, "interpolation": "bicubic"}
"""What the published processors of a model's family do, where a file does not tell: all but mean and std."""

OF_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
OF_CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
"""Their means and standard deviations."""


@dataclass(frozen=True)
class Processor:
    """What an image processor does: fields of InputConfig, and the height and width that it makes."""

    fields: Mapping[str, object]
    size: Size

    def check(self, size: Size) -> None:
        """Raise ImportRefused unless a backbone takes what the processor makes."""
        if size != self.size:
            raise ImportRefused(
                f"{NAME} makes pictures of {size_text(self.size)} pixels, the base takes {size_text(size)}; "
                f"give --image-size {size_text(self.size)}",
                field="size", expected=list(size), got=list(self.size),
            )  # fmt: skip


def find_processor(*places: Path | None) -> Path | None:
    """The first of the files, or of the folders that hold one."""
    for place in places:
        if place is not None:
            file = place / NAME if place.is_dir() else place
            if file.is_file():
                return file
    return None


def read_processor(path: Path) -> Processor:
    """Raises ImportRefused for what is not one, or does what cannot be said here; OSError."""
    if path.stat().st_size > MAX_BYTES:
        raise ImportRefused(f"{path.name} has more than {MAX_BYTES} bytes", limit=MAX_BYTES)
    try:
        raw: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ImportRefused(f"{path.name} is not JSON ({error})", field=path.name) from error
    if not isinstance(raw, dict):
        raise ImportRefused(f"{path.name} is no JSON object", field=path.name)
    try:
        return _processor(raw)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise ImportRefused(
            f"{path.name} says what no image processor says ({type(error).__name__}: {error}); give --mean, --std, "
            "--interpolation, --crop-pct and --crop-mode", field=path.name,
        ) from error  # fmt: skip


def crop_share(kept: int, resized: int) -> float:
    """The ``crop_pct`` with which pictures are resized to ``resized`` pixels and ``kept`` of them taken."""
    share = kept / resized
    return share if math.floor(kept / share) == resized else math.nextafter(share, 0)


def _processor(raw: Mapping[str, Any]) -> Processor:
    if raw.get("do_resize", True) is not True:
        raise ImportRefused(f"{NAME} does not resize (do_resize), and pictures here all are", field="do_resize")
    name = str(raw.get("image_processor_type") or raw.get("feature_extractor_type") or "")
    resized, mode = _resized(raw["size"], shorter=name.startswith(_SHORTER))
    size = resized
    if raw.get("do_center_crop"):
        crop = raw.get("crop_size", size)
        size = _pair(crop if isinstance(crop, int) else (crop["height"], crop["width"]))
    elif mode == "center":
        raise ImportRefused(f"{NAME} resizes the shorter side and takes no crop of it, so that pictures come in "
                            "different sizes; a backbone here takes one", field="do_center_crop")  # fmt: skip
    if size[0] > resized[0] or size[1] > resized[1] or size[0] * resized[1] != size[1] * resized[0]:
        raise ImportRefused(f"{NAME} crops {size_text(size)} pixels of {size_text(resized)}, which is not the same "
                            "share of both sides", field="crop_size")  # fmt: skip
    fields: dict[str, object] = {"crop_mode": mode, "crop_pct": crop_share(size[0], resized[0]), **_colours(raw)}
    if "resample" in raw:
        fields["interpolation"] = _RESAMPLE[raw["resample"]]
    return Processor(fields, size)


def _resized(size: Any, *, shorter: bool) -> tuple[Size, str]:
    """What is resized to, and whether that is the shorter side's size or squashes."""
    match size:
        case {"shortest_edge": int(edge)}:
            return (edge, edge), "center"
        case {"height": int(height), "width": int(width)}:
            return (height, width), "squash"
        case int(edge):
            return (edge, edge), "center" if shorter else "squash"
    raise ValueError(f"size {size!r:.80}")


def _pair(size: int | tuple[int, int]) -> Size:
    return (size, size) if isinstance(size, int) else size


def _colours(raw: Mapping[str, Any]) -> dict[str, object]:
    """Mean and std of values from 0 to 1, of a processor that scales them otherwise or not at all."""
    factor = float(raw.get("rescale_factor", 1 / 255)) if raw.get("do_rescale", True) else 1.0
    mean, std = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    if raw.get("do_normalize", True):
        if "image_mean" not in raw and "image_std" not in raw:
            return {}
        mean, std = ([float(value) for value in raw[name]] for name in ("image_mean", "image_std"))
    apart = 255 * factor
    if abs(apart - 1) < 1e-6:
        return {"mean": tuple(mean), "std": tuple(std)}
    return {"mean": tuple(value / apart for value in mean), "std": tuple(value / apart for value in std)}
