"""MediaLimits: every bound on a picture or clip, by name, and the checks that raise when one is passed.

It does not know any format or decoder.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from adapters.errors import BrokenMedia, MediaTooLarge


@dataclass(frozen=True)
class MediaLimits:
    """Bounds on one body. All are inclusive.

    max_bytes: the body as it came, in bytes.
    max_pixels, max_side: width times height, and each of them, of a picture.
    max_frames: frames returned for one clip.
    max_frame_pixels: width times height of a clip's frame (4096 x 2304); a codec holds up to 17 of them.
    max_clip_pixels: pixels of all the frames returned for one clip, 3 bytes each.
    max_duration_s: seconds from the first frame of a clip to the end of its last.
    max_packets: compressed frames in a clip.
    max_samples: entries in the sample tables of an MP4, all tracks and edits (about 70 bytes of memory each).
    max_scan_pixels: pixels times scans of a progressive JPEG, each scan being a pass over all pixels.
    decode_timeout_s: wall seconds for one body, looked at between reads, packets and frames.
    transparent_background: no bound; what shows through transparent pictures, ``white`` or ``#ffffff``.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    max_side: int = 16_384
    max_frames: int = 128
    max_frame_pixels: int = 9_437_184
    max_clip_pixels: int = 150_000_000
    max_duration_s: float = 600.0
    max_packets: int = 100_000
    max_samples: int = 1_000_000
    max_scan_pixels: int = 1_000_000_000
    decode_timeout_s: float = 10.0
    transparent_background: str = "white"

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
                f"decoding took longer than {self._limit_s:g} s; send a smaller or shorter file",
                field="decode_timeout_s", limit=self._limit_s,
            )  # fmt: skip


def bound(field: str, sentence: str, value: float, limit: float) -> None:
    """Raise MediaTooLarge, with ``sentence`` about ``{value}``, where value is over the limit."""
    if value > limit:
        message = f"{sentence.format(value=_plain(value))}, at most {_plain(limit)} are taken; send a smaller file"
        raise MediaTooLarge(message, field=field, limit=limit, value=value)


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:.1f}"
