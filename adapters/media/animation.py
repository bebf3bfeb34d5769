"""decode_animation: a GIF, WebP, PNG or AVIF that moves -> the RGB pictures that stand for it, by Pillow.

It does not know tasks, resizing or tensors; ``timeline.py`` says which frames.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction

from PIL import Image, ImageChops, ImageFile

from adapters.clip_formats import ANIMATED
from adapters.errors import BrokenMedia, MediaError
from adapters.limits import Deadline, MediaLimits, bound, check_missed
from adapters.media.pillow import Body
from adapters.media.timeline import Sampling, Span, Timeline
from adapters.media.transparency import flattened

_WEBP_ALPHA = 0x10
_CLEARS = 2  # a GIF's disposal method: what the frame drew on is cleared
_SHORTEST_MS = 10
_UNTIMED_MS = 100
"""For how long browsers show a frame that asks for 10 ms or less."""


def moves(data: bytes, name: str, deadline: Deadline) -> bool:
    """Whether a file of that format of Pillow's holds more than one picture. Raises what Pillow raises."""
    with _open(data, name, deadline) as picture:
        return bool(getattr(picture, "is_animated", False))


def decode_animation(
    data: bytes, container: str, wanted: Sampling, limits: MediaLimits, deadline: Deadline
) -> tuple[list[Image.Image], int, list[Span], list[float]]:
    """The pictures that are wanted, how many frames do not decode, the parts that were asked, and when each begins.

    Decodes all of it twice: how long it lasts is known only at its end, and a frame builds on those before.
    Raises BrokenMedia and MediaTooLarge, and what Pillow raises for a damaged beginning.
    """
    starts, good = [0], []
    for index, (picture, milliseconds) in enumerate(_play(data, container, limits, deadline)):
        if picture is not None:
            good.append(index)
        starts.append(starts[-1] + round(1000 * milliseconds))
        bound("max_packets", "the clip has {value} frames or more", index + 1, limits.max_packets)
        bound("max_duration_s", "the clip lasts {value} seconds or more", starts[-1] / 1e6, limits.max_duration_s)
    if not good:
        raise BrokenMedia("no frame of the clip decodes; check that the whole file was sent", field="body")
    timeline = Timeline(starts[:-1], starts[-1], Fraction(10**6))
    spans = timeline.spans(wanted, limits.max_windows)
    chosen = timeline.chosen(wanted, spans)
    order = [good[max(bisect_right(good, index) - 1, 0)] for index in chosen]
    check_missed(sum(index != stand_in for index, stand_in in zip(chosen, order, strict=True)), len(chosen))
    last = max(order)
    pictures: dict[int, Image.Image] = {}
    pixels = 0
    for index, (picture, _) in enumerate(_play(data, container, limits, deadline)):
        if index in order and picture is not None:
            pixels += picture.width * picture.height
            limits.check_clip(pixels)
            pictures[index] = flattened(picture, limits.transparent_background)
        if index == last:
            break
    return [pictures[index] for index in order], len(starts) - 1 - len(good), spans, timeline.seconds(chosen)


def _play(
    data: bytes, container: str, limits: MediaLimits, deadline: Deadline
) -> Iterator[tuple[Image.Image | None, float]]:
    """Each frame, None for one that does not decode, and for how many milliseconds it is shown.

    The picture is good until the next is asked for. A file that was cut short ends where it was cut.
    """
    (name,) = (pillow for pillow, ours in ANIMATED.items() if ours == container)
    with _open(data, name, deadline) as picture:
        limits.check_frame(*picture.size)
        milliseconds, broken = float(_UNTIMED_MS), False
        covered = _Covered(picture)
        index = 1 if picture.info.get("default_image") else 0  # of a PNG, for those who cannot see it move
        while True:
            deadline.check()
            try:
                picture.seek(index)
            except (MediaError, MemoryError):
                raise
            except EOFError:
                return
            except Exception:  # Pillow's parsers raise all sorts
                if not broken:
                    yield None, milliseconds
                return
            limits.check_frame(*picture.size)  # a GIF grows with its frames
            covered.add(picture)
            try:
                picture.load()
                broken = False
            except (MediaError, MemoryError):
                raise
            except Exception:
                picture.tile = []  # or it would be loaded again, to build the next on it
                broken = True
            if not broken or name != "WEBP":  # whose durations come with the pictures
                asked = float(picture.info.get("duration") or 0)
                milliseconds = asked if asked > _SHORTEST_MS else _UNTIMED_MS
            yield None if broken else covered.cut(picture), milliseconds
            index += 1
            if broken and name == "WEBP":  # its decoder gets no further
                yield from [(None, milliseconds)] * (getattr(picture, "n_frames", 1) - index)
                return


class _Covered:
    """Which pixels of a GIF's canvas have been drawn on; Pillow fills the others with any colour of the palette."""

    def __init__(self, picture: ImageFile.ImageFile) -> None:
        self._mask = Image.new("L", picture.size if picture.format == "GIF" else (0, 0))
        self._before: Image.Image | None = None
        self._drawn, self._disposal = (0, 0, 0, 0), 0

    def add(self, picture: ImageFile.ImageFile) -> None:
        """What the frame that is about to be loaded covers, after the one before is disposed of."""
        if picture.format != "GIF" or not picture.tile:
            return
        if self._disposal == _CLEARS:
            self._mask.paste(0, self._drawn)
        elif self._before is not None:
            self._mask = self._before
        if self._mask.size != picture.size:
            self._mask = self._mask.crop((0, 0, *picture.size))
        self._drawn, self._disposal = picture.tile[0].extents or self._drawn, getattr(picture, "disposal_method", 0)
        self._before = self._mask.copy() if self._disposal > _CLEARS else None
        self._mask.paste(255, self._drawn)

    def cut(self, picture: ImageFile.ImageFile) -> Image.Image:
        """The picture, transparent where nothing was drawn."""
        if picture.format != "GIF" or self._mask.getextrema()[0] == 255:
            return picture
        clear = picture.convert("RGBA")
        clear.putalpha(ImageChops.darker(clear.getchannel("A"), self._mask))
        return clear


def _open(data: bytes, name: str, deadline: Deadline) -> ImageFile.ImageFile:
    return Image.open(Body(_mended_webp(data) if name == "WEBP" else data, deadline), formats=(name,))


def _mended_webp(data: bytes) -> bytes:
    """A WebP of the chunks that are there in full, its alpha flag set.

    The decoder refuses a file that is cut short. Without the flag Pillow makes black of what no frame covers.
    """
    end = len(data)
    if 8 + int.from_bytes(data[4:8], "little") > end:
        following = 12
        while following <= len(data):
            end = following
            size = int.from_bytes(data[end + 4 : end + 8], "little")
            following = end + 8 + size + size % 2
    mended = bytearray(data[:end])
    mended[4:8] = min(end - 8, int.from_bytes(data[4:8], "little")).to_bytes(4, "little")
    if mended[12:16] == b"VP8X" and end > 20:
        mended[20] |= _WEBP_ALPHA
    return bytes(mended)
