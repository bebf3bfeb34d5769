"""decode_clip: the bytes of one clip -> T upright RGB pictures that stand for it, by FFmpeg through PyAV.

It does not know tasks, resizing or tensors; ``packets.py`` decodes, ``timeline.py`` says which frames.
"""

from __future__ import annotations

import io
from typing import Any

import av
from av.container import InputContainer
from av.sidedata.sidedata import Type
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from adapters.errors import BrokenMedia, MediaError, MediaTooLarge, UnsupportedMedia, WrongModality
from adapters.media.boxes import check_tables
from adapters.media.limits import Deadline, MediaLimits, bound
from adapters.media.packets import Chosen, choose_frames, read_clip
from adapters.media.sniff import media_format

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4")
# FFmpeg's names of the decoders; it probes streams with decoders too, and must not try others.
_DECODERS = "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,mpeg4"
# FFmpeg's long name of each demuxer.
_DEMUXERS = {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm", "avi": "avi"}
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


def decode_clip(
    data: bytes, frames: int, limits: MediaLimits, sampling: str = "uniform", deadline: Deadline | None = None
) -> list[Image.Image]:
    """Exactly ``frames`` upright RGB pictures of an MP4, MOV, WebM, MKV or AVI clip, in time order.

    The k-th is the one on screen at (k + 0.5) / frames of the clip's duration; a clip with fewer frames
    repeats some (as the same object). Pixels are as stored: a non-square pixel shape is not applied. The
    same bytes always give the same pictures. Raises UnsupportedMedia, WrongModality, BrokenMedia or
    MediaTooLarge, and nothing else, whatever the bytes are.
    """
    if sampling != "uniform" or frames < 1:
        raise ValueError(f"frames must be at least 1 and sampling 'uniform', got {frames} and {sampling!r}")
    bound("max_frames", "{value} frames of one clip were asked for", frames, limits.max_frames)
    limits.check_bytes(data)
    kind, demuxer = media_format(data)
    if kind != "video":
        raise WrongModality("a clip was expected, a picture came", expected="video", got=kind)
    deadline = deadline or Deadline(limits)
    if demuxer == "mov":
        check_tables(data, limits, deadline)
    try:
        with _open(data, demuxer, limits, deadline) as container:
            stream = _video_stream(container, limits)
            return _pictures(choose_frames(read_clip(container, stream, limits, deadline), frames))
    except MediaError:
        raise
    except MemoryError as error:
        raise MediaTooLarge("the clip needs more memory than there is; send a smaller one", field="memory") from error
    except Exception as error:
        # A reader that ran out of time looks to FFmpeg like a file that ends early.
        deadline.check()
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BrokenMedia(
            f"this clip does not decode ({reason}); check that the whole file was sent", field="body", got=demuxer
        ) from error


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


def _open(data: bytes, demuxer: str, limits: MediaLimits, deadline: Deadline) -> InputContainer:
    """Open with one named demuxer, the listed decoders and no protocol: no file can refer to another."""
    return av.open(
        _Body(data, deadline),
        "r",
        format=demuxer,
        options=_decoder_options(limits),
        container_options={
            "format_whitelist": _DEMUXERS[demuxer],
            "codec_whitelist": _DECODERS,
            "protocol_whitelist": "",
        },
        metadata_errors="replace",
    )


def _decoder_options(limits: MediaLimits) -> dict[str, str]:
    return {"max_pixels": str(limits.max_frame_pixels), "threads": "1"}


def _video_stream(container: InputContainer, limits: MediaLimits) -> VideoStream:
    """The first video stream that is not cover art, checked, set to one thread; the others are set aside."""
    container.flags &= ~_GENERATE_TIMES
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise UnsupportedMedia("the file has no video stream; send a clip with moving pictures", field="streams")
    stream = streams[0]
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    codec: Any = stream.codec_context
    name = codec.codec.canonical_name if codec is not None else "of an unknown codec"
    if name not in CODECS:
        raise UnsupportedMedia(
            f"the clip's video is {name}; send one of {', '.join(CODECS)}",
            field="codec", expected=list(CODECS), got=name,
        )  # fmt: skip
    if codec.width and codec.height:  # otherwise known from the first frame on
        limits.check_frame(codec.width, codec.height)
    # Clips share a pool of decoders, which is what scales; threads of their own would fight.
    codec.thread_type = "NONE"
    codec.thread_count = 1
    codec.options = _decoder_options(limits)
    return stream


def _pictures(chosen: Chosen) -> list[Image.Image]:
    """Convert the distinct frames, each once, and repeat as asked."""
    pictures = {key: _upright(chosen.frames.pop(key)) for key in list(chosen.frames)}
    return [pictures[key] for key in chosen.order]


def _upright(frame: VideoFrame) -> Image.Image:
    to_image: Any = frame.to_image  # untyped in PyAV
    picture: Image.Image = to_image(threads=1)
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
