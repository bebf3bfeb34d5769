"""decode_clip: the bytes of one clip -> the upright RGB pictures that stand for it, by FFmpeg through PyAV.

It does not know tasks, resizing or tensors; ``choose.py`` says which frames, ``decoder.py`` decodes them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.sidedata.sidedata import Type
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from adapters.clip_formats import ANIMATED, CODECS, CONTAINERS
from adapters.errors import BrokenMedia, MediaError, MediaTooLarge, OutsideClip, UnsupportedMedia, WrongModality
from adapters.limits import Deadline, MediaLimits, bound
from adapters.media.animation import decode_animation, moves
from adapters.media.boxes import header_is_cut, without_other_tracks
from adapters.media.choose import Chosen, choose_frames
from adapters.media.packets import read_clip
from adapters.media.sniff import media_format
from adapters.media.timeline import Sampling, Span
from adapters.media.transparency import flattened

_GENERATE_TIMES = 0x1  # AVFMT_FLAG_GENPTS: invents the times that a container does not hold

# The 2x2 part of a display matrix, row by row, in units of one -> what it asks for.
_UPRIGHT = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}


class Frames(list[Image.Image]):
    """The pictures that stand for a clip; ``bad``: how many frames met on the way did not decode.

    Each view's are in time order, one view after the other, and those of each of the ``spans`` that were asked.
    ``times``: when each begins, in seconds after the clip's first frame; none where no time is known.
    """

    def __init__(
        self, pictures: Iterable[Image.Image], bad: int = 0, spans: Sequence[Span] = (), times: Sequence[float] = ()
    ) -> None:
        super().__init__(pictures)
        self.bad, self.spans, self.times = bad, spans, times


def decode_clip(data: bytes, wanted: Sampling | int, limits: MediaLimits, deadline: Deadline | None = None) -> Frames:
    """Exactly the upright RGB pictures that are ``wanted`` of a clip in one of ``limits.clip_formats``.

    A number T stands for T uniform ones: the k-th is the one on screen at (k + 0.5) / T of the clip's duration.
    A picture that is wanted several times, as in a clip with fewer frames, is the same object. Pixels are as stored: a
    non-square pixel shape is not applied. The same bytes always give the same pictures. A ``deadline`` is one that
    other work shares. Raises UnsupportedMedia, WrongModality, BrokenMedia or MediaTooLarge, and nothing else, whatever
    the bytes are.
    """
    wanted = Sampling(wanted) if isinstance(wanted, int) else wanted
    bound("max_frames", "{value} frames of one clip were asked for", wanted.count, limits.max_frames)
    limits.check_bytes(data)
    deadline = deadline or Deadline(limits)
    container = "clip"
    try:
        container = _container(data, limits, deadline)
        if not CONTAINERS[container].demuxer:
            return Frames(*decode_animation(data, container, wanted, limits, deadline))
        body = without_other_tracks(data, limits, deadline) if container == "mp4" else data
        with _open(body, container, limits, deadline) as source:
            stream = _video_stream(source, limits)
            chosen = choose_frames(read_clip(source, stream, limits, deadline), wanted)
            return _pictures(chosen, limits.transparent_background)
    except (MediaTooLarge, WrongModality, OutsideClip):
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise MediaTooLarge("the clip needs more memory than there is; send a smaller one", field="memory") from error
    except Exception as error:
        # A reader that ran out of time looks to FFmpeg like a file that ends early.
        deadline.check()
        if container == "mp4" and header_is_cut(data, deadline):
            reason = "its header (moov), which often stands at the end, is not there in full"
        elif isinstance(error, MediaError):
            raise
        elif isinstance(error, FFmpegError) and isinstance(error, EOFError | OSError):
            reason = "it ends early"
        else:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BrokenMedia(
            f"this clip does not decode ({reason}); check that the whole file was sent", field="body", got=container
        ) from error


def _container(data: bytes, limits: MediaLimits, deadline: Deadline) -> str:
    """The clip's container, one of ``limits.clip_formats``; a picture that moves is a clip too."""
    kind, name = media_format(data)
    if kind == "image" and not (name in ANIMATED and moves(data, name, deadline)):
        raise WrongModality("a clip was expected, a picture came", expected="video", got=kind)
    container = ANIMATED[name] if kind == "image" else name
    if container not in limits.clip_formats:
        raise UnsupportedMedia(
            f"the clip is {CONTAINERS[container].title} ({container}), which the setting clip_formats leaves out; "
            f"send one of {', '.join(limits.clip_formats)}",
            field="clip_formats", expected=list(limits.clip_formats), got=container,
        )  # fmt: skip
    return container


class _Body:
    """The body as a file that ends at the deadline.

    It does not raise: FFmpeg may go on after a failed read, and PyAV would then raise the exception in
    a later, unrelated call of the same thread.
    """

    def __init__(self, data: bytes, deadline: Deadline) -> None:
        self._file = io.BytesIO(data)
        self._deadline = deadline

    def read(self, size: int) -> bytes:
        return b"" if self._deadline.passed else self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except ValueError:  # a negative position, from a damaged index
            return -1

    def tell(self) -> int:
        return self._file.tell()


def _open(data: bytes, container: str, limits: MediaLimits, deadline: Deadline) -> InputContainer:
    """Open with one named demuxer, the listed decoders and no protocol: no file can refer to another."""
    return av.open(
        _Body(data, deadline),
        "r",
        format=CONTAINERS[container].demuxer,
        options=_decoder_options(limits),
        container_options={
            "format_whitelist": CONTAINERS[container].long_name,
            # It probes streams with decoders too, and must not try others.
            "codec_whitelist": ",".join(decoder for codec in limits.clip_codecs for decoder in CODECS[codec]),
            "protocol_whitelist": "",
        },
        metadata_errors="replace",
    )


def _decoder_options(limits: MediaLimits) -> dict[str, str]:
    return {"max_pixels": str(limits.max_frame_pixels), "threads": "1"}


def _video_stream(container: InputContainer, limits: MediaLimits) -> VideoStream:
    """The first video stream that is not cover art, checked, set to one thread; the others are set aside."""
    container.flags &= ~_GENERATE_TIMES
    if all(stream.type in ("data", "unknown") for stream in container.streams):
        raise BrokenMedia("no stream of the clip is there; check that the whole file was sent", field="streams")
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise UnsupportedMedia("the file has no video stream; send a clip with moving pictures", field="streams")
    stream = streams[0]
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    codec: Any = stream.codec_context
    name = codec.codec.canonical_name if codec is not None else "of an unknown codec"
    if name not in limits.clip_codecs:
        allowed = list(limits.clip_codecs)
        why = "the setting clip_codecs leaves out" if name in CODECS else "is not read"
        raise UnsupportedMedia(
            f"the clip's video is {name}, which {why}; send one of {', '.join(allowed)}",
            field="clip_codecs" if name in CODECS else "codec", expected=allowed, got=name,
        )  # fmt: skip
    if codec.width and codec.height:  # otherwise known from the first frame on
        limits.check_frame(codec.width, codec.height)
    # Clips share a pool of decoders, which is what scales; threads of their own would fight.
    codec.thread_type = "NONE"
    codec.thread_count = 1
    codec.options = _decoder_options(limits)
    return stream


def _pictures(chosen: Chosen, background: str) -> Frames:
    """Convert the distinct frames, each once, and repeat as asked."""
    pictures = {key: _upright(chosen.frames.pop(key), background) for key in list(chosen.frames)}
    return Frames((pictures[key] for key in chosen.order), chosen.bad, chosen.spans, chosen.times)


def _upright(frame: VideoFrame, background: str) -> Image.Image:
    if any(component.is_alpha for component in frame.format.components):
        picture = flattened(Image.fromarray(frame.reformat(format="rgba", threads=1).to_ndarray()), background)
    else:
        to_image: Any = frame.to_image  # untyped in PyAV
        picture = to_image(threads=1)
    transpose = _UPRIGHT.get(_display_matrix(frame))
    return picture if transpose is None else picture.transpose(transpose)


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """The 2x2 part of the frame's display matrix, rounded to whole units; identity where it has none."""
    side_data: Any = frame.side_data  # typed as a mapping, iterates over its values
    for side in side_data:
        if side.type == Type.DISPLAYMATRIX:
            a, b, _, c, d, *_ = (round(number / 65536) for number in memoryview(bytes(side)).cast("i"))
            return a, b, c, d
    return 1, 0, 0, 1
