"""Small pictures and clips, made in memory for the media tests.

It does not know what is tested with them.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

REORDERED = ("libx264", "libx265", "mpeg4", "mpeg2video")
FINE = {"b": "4M", "qmin": "1", "qmax": "2"}  # by default some encoders turn 144 into 147
PIX_FMTS = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le", "qtrle": "rgb24"}
STEP = 8  # grey levels between the frames of a clip


def scene(width: int = 48, height: int = 32) -> Image.Image:
    """A smooth picture whose four corners differ, so that every flip and turn shows."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))


def encode(picture: Image.Image, name: str, **options: Any) -> bytes:
    """The picture's bytes in a format that Pillow writes."""
    file = io.BytesIO()
    picture.save(file, name, **options)
    return file.getvalue()


def clip(
    container: str = "mp4",
    codec: str = "libx264",
    count: int = 10,
    size: tuple[int, int] = (64, 48),
    times: Sequence[int] | None = None,
    rotation: tuple[float, bool, bool] | None = None,
    picture: Image.Image | None = None,
    audio: bool = False,
    gop: int = 12,
    b_frames: int = 2,
    options: dict[str, str] | None = None,
    movflags: str = "",
    pix_fmt: str = "",
    container_options: dict[str, str] | None = None,
) -> bytes:
    """A clip of plain grey frames, the i-th of level ``16 + STEP * i`` (or of one picture), at 25 a second.

    ``times`` gives starts in milliseconds instead; ``rotation`` is degrees, hflip, vflip.
    """
    # The x265 encoder writes past its buffers for narrower pictures, and the process dies later, anywhere.
    assert codec != "libx265" or size[0] >= 64
    file = io.BytesIO()
    container_options = ({"movflags": movflags} if movflags else {}) | (container_options or {})
    with av.open(file, "w", format=container, options=container_options) as output:
        stream: Any = output.add_stream(codec, rate=25, options=options or _fast(codec))
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt or PIX_FMTS.get(codec, "yuv420p")
        stream.codec_context.gop_size = gop
        short = codec == "libx265" and count < 6  # of so few it may make packets that no container takes
        stream.codec_context.max_b_frames = b_frames if codec in REORDERED and not short else 0
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1], vflip=rotation[2])
        sound: Any = output.add_stream("aac", rate=44100) if audio else None
        for i in range(count):
            image = picture or Image.new("RGB", size, (16 + STEP * i,) * 3)
            pixels = {"RGB": "rgb24", "RGBA": "rgba"}[image.mode]
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format=pixels)
            frame.pts = i if times is None else times[i]
            frame.time_base = Fraction(1, 25 if times is None else 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 44100, 0
            output.mux(sound.encode(silence))
            output.mux(sound.encode(None))
    return file.getvalue()


def animation(name: str, count: int = 10, **options: Any) -> bytes:
    """The same grey frames as those of ``clip``, 40 ms each, as a GIF, WEBP, PNG or AVIF that moves."""
    first, *others = [Image.new("RGB", (64, 48), (16 + STEP * i,) * 3) for i in range(count)]
    return encode(first, name, **{"save_all": True, "append_images": others, "duration": 40} | options)


def with_sound(container: str, codec: str, seconds: int, movflags: str = "") -> bytes:
    """The ten frames of ``clip``, beside so many seconds of silence at 48 kHz."""
    file = io.BytesIO()
    options = {"movflags": movflags} if movflags.startswith("frag") else {}
    with av.open(file, "w", format=container, options=options) as output:
        stream: Any = output.add_stream("libx264", rate=25, options=_fast("libx264"))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound: Any = output.add_stream(codec, rate=48000)
        for i in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 16 + STEP * i, np.uint8))
            frame.pts, frame.time_base = i, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        form = "s16" if codec == "pcm_s16le" else "fltp"
        for second in range(seconds):
            silence: Any = av.AudioFrame.from_ndarray(
                np.zeros((1, 48000), np.int16 if form == "s16" else np.float32), format=form, layout="mono"
            )
            silence.sample_rate, silence.pts, silence.time_base = 48000, 48000 * second, Fraction(1, 48000)
            output.mux(sound.encode(silence))
        output.mux(sound.encode(None))
    data = file.getvalue()
    return header_first(data) if "faststart" in movflags else data


def sound_only() -> bytes:
    """An MP4 that holds nothing but a short silence."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        sound: Any = output.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 44100, 0
        output.mux(sound.encode(silence))
        output.mux(sound.encode(None))
    return file.getvalue()


def header_first(data: bytes) -> bytes:
    """The MP4 with its header before the media data, as for streaming; both lie side by side, in one chunk table."""
    media, header = data.index(b"mdat") - 4, data.index(b"moov") - 4
    moved = bytearray(data[:media] + data[header:] + data[media:header])
    at = moved.index(b"stco") + 8
    for i in range(int.from_bytes(moved[at : at + 4], "big")):
        (offset,) = struct.unpack_from(">I", moved, at + 4 + 4 * i)
        struct.pack_into(">I", moved, at + 4 + 4 * i, offset + len(data) - header)
    return bytes(moved)


def levels(pictures: Sequence[Image.Image]) -> list[int]:
    """Which frame of a grey clip each picture shows."""
    return [round((float(np.asarray(picture).mean()) - 16) / STEP) for picture in pictures]


def _fast(codec: str) -> dict[str, str]:
    return {
        "libx264": {"preset": "ultrafast"},
        **{
            name: {"b": "4M", "qmin": "1", "qmax": "2"}
            for name in ("mpeg4", "mpeg2video", "mpeg1video", "h263", "mjpeg")
        },
        "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"},
        "libvpx": {"deadline": "realtime", "cpu-used": "8"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
        "libsvtav1": {"preset": "13", "svtav1-params": "lp=1"},
    }.get(codec, {})
