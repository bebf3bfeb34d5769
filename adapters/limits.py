"""Every bound on a picture, a clip or an adapter file, by name, and the checks that raise when one is passed.

Training and serving take their defaults from here. It does not know any format, decoder or tensor.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from adapters.clip_formats import CODECS, CONTAINERS
from adapters.config import MAX_CLASSES, MAX_CLIP_ROWS, MAX_FRAMES, MAX_RANK
from adapters.errors import AdapterTooLarge, BrokenMedia, MediaTooLarge

PREFIX = "ADAPTSERVE_"
"""Of the environment variables that hold a server's settings."""
MEDIA_SETTINGS = {
    "max_bytes": "max_body_bytes",
    "max_frames": "max_clip_frames",
    "max_duration_s": "max_clip_seconds",
    "max_packets": "max_clip_packets",
    "max_samples": "max_clip_samples",
}
"""Field of MediaLimits -> the setting that it comes from, where that has another name."""
BATCH_ROWS = 32
"""Rows of one batch by default, and so the most frames of a clip, whose rows go in one batch."""


def variable(setting: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + setting.upper()


def raised(settings: Iterable[str], value: int) -> str:
    """Settings as they are written in an environment to allow ``value``."""
    return " ".join(f"{variable(name)}={value}" for name in settings)


def needed(refusal: AdapterTooLarge) -> str:
    """The settings with which a server takes what was refused, as they are written in an environment."""
    settings, value = refusal.facts["settings"], refusal.facts["value"]
    assert isinstance(settings, list)
    assert isinstance(value, int)
    return raised(settings, value)


def foreseen(refusal: AdapterTooLarge) -> str:
    """The refusal of a file that is being made, for whoever makes it."""
    return f"a server with default settings, or those given here, will refuse the file: {refusal.message}"


@dataclass(frozen=True)
class FileLimits:
    """What an adapter file may ask for. ``max_rank`` and ``max_classes`` are what the bank has room for.

    ``max_frames`` are those of one view of a clip, which go in one batch; ``max_rows`` those of all its views.
    """

    max_file_bytes: int = 256 * 2**20
    max_header_bytes: int = 2**20
    max_rank: int = MAX_RANK
    max_classes: int = 4096
    max_frames: int = BATCH_ROWS
    max_rows: int = BATCH_ROWS

    @property
    def of_config(self) -> dict[str, int]:
        """What bounds a config, as ``Layout.check`` takes it."""
        return {name: getattr(self, name) for name in ("max_rank", "max_classes", "max_frames", "max_rows")}


OWN_FILE = FileLimits(
    max_file_bytes=2**63 - 1, max_header_bytes=100_000_000, max_classes=MAX_CLASSES, max_frames=MAX_FRAMES,
    max_rows=MAX_CLIP_ROWS,
)  # fmt: skip
"""For a file on one's own disk: what safetensors can hold."""


@dataclass(frozen=True)
class MediaLimits:
    """Bounds on one body. All are inclusive, and each is a setting of the server.

    max_bytes: the body as it came, in bytes.
    max_pixels, max_side: width times height, and each of them, of a picture.
    max_frames: frames returned for one clip, of all views together.
    max_frame_pixels: width times height of a clip's frame (4096 x 2304); a codec holds up to 17 of them.
    max_clip_pixels: pixels of all the frames returned for one clip, 3 bytes each.
    max_duration_s: seconds from the first frame of a clip to the end of its last.
    max_packets: compressed frames in a clip.
    max_windows: windows of one clip that are answered apart.
    max_samples: entries in the sample tables of an MP4's video, times edits (about 70 bytes of memory each).
    max_scan_pixels: pixels times scans of a progressive JPEG, each scan being a pass over all pixels.
    decode_timeout_s: wall seconds for one body, looked at between reads, packets and frames.
    transparent_background: no bound; what shows through transparent pictures, ``white`` or ``#ffffff``.
    clip_formats, clip_codecs: no bounds; containers and codecs of clips that are read (``clip_formats.py``).
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 50_000_000
    max_side: int = 16_384
    max_frames: int = BATCH_ROWS
    max_frame_pixels: int = 9_437_184
    max_clip_pixels: int = 150_000_000
    max_duration_s: float = 600.0
    max_packets: int = 100_000
    max_windows: int = 32
    max_samples: int = 1_000_000
    max_scan_pixels: int = 1_000_000_000
    decode_timeout_s: float = 10.0
    transparent_background: str = "white"
    clip_formats: tuple[str, ...] = tuple(CONTAINERS)
    clip_codecs: tuple[str, ...] = tuple(CODECS)

    def check_bytes(self, data: bytes) -> None:
        """Raise BrokenMedia for an empty body, MediaTooLarge for one over ``max_bytes``."""
        if not data:
            raise BrokenMedia("the body is empty; send the bytes of one picture or clip", field="body", got=0)
        bound("max_bytes", "the body has {value} bytes", len(data), self.max_bytes)

    def check_picture(self, width: int, height: int) -> None:
        """Raise BrokenMedia or MediaTooLarge for a picture of that size in pixels."""
        self._check_size(width, height, "max_pixels", self.max_pixels)

    def check_frame(self, width: int, height: int) -> None:
        """Raise BrokenMedia or MediaTooLarge for a clip's frame of that size in pixels."""
        self._check_size(width, height, "max_frame_pixels", self.max_frame_pixels)

    def check_clip(self, pixels: int) -> None:
        """Raise MediaTooLarge where the frames returned for one clip have together more pixels than that."""
        sentence = "the frames asked for have {value} pixels or more"
        bound("max_clip_pixels", sentence, pixels, self.max_clip_pixels)

    def _check_size(self, width: int, height: int, field: str, limit: int) -> None:
        if width < 1 or height < 1:
            raise BrokenMedia(f"the size is {width}x{height} pixels; both sides must be at least 1", field="size")
        size = f"the size is {width}x{height} pixels"
        bound("max_side", size + ", a side of {value}", max(width, height), self.max_side)
        bound(field, size + ", together {value}", width * height, limit)


class Deadline:
    """The end of the time that one body may take, on the monotonic clock."""

    def __init__(self, limits: MediaLimits) -> None:
        self._limit_s = limits.decode_timeout_s
        self._end = time.monotonic() + limits.decode_timeout_s

    @property
    def passed(self) -> bool:
        """True once the time is over."""
        return time.monotonic() > self._end

    def check(self) -> None:
        """Raise MediaTooLarge once the time is over."""
        if self.passed:
            raise MediaTooLarge(
                f"decoding took longer than {self._limit_s:g} s; send a smaller or shorter file, or allow more with "
                f"{variable('decode_timeout_s')}",
                field="decode_timeout_s", limit=self._limit_s,
            )  # fmt: skip


def check_missed(missed: int, frames: int) -> None:
    """Raise BrokenMedia where more than half of the ``frames`` that stand for a clip do not decode."""
    if 2 * missed > frames:
        raise BrokenMedia(
            f"{missed} of the {frames} frames that stand for the clip do not decode; check that it was sent whole",
            field="frames", limit=frames // 2, value=missed,
        )  # fmt: skip


def bound(field: str, sentence: str, value: float, limit: float) -> None:
    """Raise MediaTooLarge, with ``sentence`` about ``{value}``, where value is over the limit."""
    if value > limit:
        message = (
            f"{sentence.format(value=_plain(value))}, at most {_plain(limit)} are taken; send a smaller file, or allow "
            f"more with {variable(MEDIA_SETTINGS.get(field, field))}"
        )
        raise MediaTooLarge(message, field=field, limit=limit, value=value)


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:.1f}"
