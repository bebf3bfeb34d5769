"""What AdaptFormer's video form says and leaves unsaid of clips: which frames, in which colours, on which backbone.

It knows the arguments of ``main_video.py``; it knows no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD

from adapters.backbone.tubelets import NAMES, SIZES
from adapters.config import MAX_STRIDE, VideoConfig
from adapters.errors import ImportRefused
from adapters.importers.common import validated
from adapters.layout import Layout

_ARGS: Mapping[str, int] = {"num_frames": 8, "num_segments": 1, "sampling_rate": 4}
"""Those that say which frames are seen, and what they are unless they are given."""


def told(args: Mapping[str, object]) -> VideoConfig:
    """One look at a clip, at the frames that the arguments of the run say. Raises ImportRefused."""
    frames, segments, rate = (_whole(name, args.get(name, usual)) for name, usual in _ARGS.items())
    dense = {"sampling": "dense", "stride": rate} if segments == 1 else {"sampling": "uniform"}
    return validated(VideoConfig, {"frames": frames * segments, **dense})


def asked(own: VideoConfig | None, given: Mapping[str, object]) -> VideoConfig | None:
    """What the checkpoint tells, where nothing else is ``given``; None of the image form. Raises ImportRefused."""
    if own is None:
        if given:
            raise ImportRefused(f"{', '.join(given)} are for clips, and the checkpoint is of the image form",
                                field=next(iter(given)))  # fmt: skip
        return None
    usual = {"stride": 1} if given.get("sampling") == "uniform" else {}
    return validated(VideoConfig, {**own.model_dump(), **usual, **given})


def seen(*, inception: bool) -> dict[str, object]:
    """What the official code evaluates with: the shorter side resized to 224, and a part of it."""
    colours = (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD) if inception else (
        IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    )  # fmt: skip
    return {
        "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center", "mean": colours[0], "std": colours[1],
    }  # fmt: skip


def granted(video: VideoConfig) -> list[str]:
    """What no checkpoint says of the clips it was trained on."""
    which = "from all over it" if video.sampling == "uniform" else f"{video.stride} apart"
    found = [f"clips as the official code evaluates: {video.frames} frames, {which}, bilinear"]
    if video.views * video.crops == 1:
        found.append("one look at a clip, in its middle; the official test looks four times, at three crops each, and "
                     "averages the scores: --views 4 --crops 3, for twelve times the work")  # fmt: skip
    return found


def check_base(video: VideoConfig | None, width: int, layout: Layout) -> None:
    """Raise ImportRefused unless the base sees what the checkpoint does: pictures, or so many frames together."""
    if video is None and layout.frames > 1:
        raise ImportRefused(
            f"the checkpoint is of the image form, and {layout.model} sees clips of {layout.frames} frames; name the "
            "checkpoint's own architecture with --base", field="base", expected=1, got=layout.frames,
        )  # fmt: skip
    if video and video.frames != layout.frames:
        sees = "pictures" if layout.frames == 1 else f"clips of {layout.frames} frames"
        names = [name for name, (size, n) in NAMES.items() if (SIZES[size]["embed_dim"], n) == (width, video.frames)]
        own = names[0] if names else "a folder of its own architecture"
        raise ImportRefused(
            f"this is the video form: its backbone embeds tubelets, of clips of {video.frames} frames, and "
            f"{layout.model} sees {sees}; name {own} with --base",
            field="base", expected=video.frames, got=layout.frames,
        )  # fmt: skip


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_STRIDE:
        raise ImportRefused(f"{name} is {str(value)[:40]!r}, expected a whole number up to {MAX_STRIDE}",
                            field=f"args.{name}")  # fmt: skip
    return value
