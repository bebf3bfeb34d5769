"""The clips that are read: containers and codecs by the names that settings use, and what the decoders call them.

It does not decode anything. This is the one list; a server may read less of it, never more.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple


class Container(NamedTuple):
    """What people call the container, and FFmpeg's short and long name of its demuxer; none where Pillow reads it."""

    title: str
    demuxer: str = ""
    long_name: str = ""


CONTAINERS = {
    "mp4": Container("MP4, MOV or 3GP", "mov", "mov,mp4,m4a,3gp,3g2,mj2"),
    "matroska": Container("WebM or MKV", "matroska", "matroska,webm"),
    "avi": Container("AVI", "avi", "avi"),
    "mpegts": Container("MPEG transport stream", "mpegts", "mpegts"),
    "mpeg": Container("MPEG program stream", "mpeg", "mpeg"),
    "gif": Container("animated GIF"),
    "webp": Container("animated WebP"),
    "apng": Container("animated PNG"),
    "avif": Container("AVIF sequence"),
}

ANIMATED = {"GIF": "gif", "WEBP": "webp", "PNG": "apng", "AVIF": "avif"}
"""Pillow's format name -> the container it may be, for a task that takes clips."""

CODECS = {
    "h264": ("h264",),
    "hevc": ("hevc",),
    "vp8": ("vp8", "libvpx"),
    "vp9": ("vp9", "libvpx-vp9"),
    "av1": ("av1", "libdav1d"),
    "mpeg4": ("mpeg4",),
    "mpeg2video": ("mpeg2video",),
    "mpeg1video": ("mpeg1video",),
    "h263": ("h263",),
    "mjpeg": ("mjpeg",),
    "prores": ("prores",),
}
"""FFmpeg's name of each codec -> its decoders of it."""


def some_of(known: Collection[str], text: str) -> tuple[str, ...]:
    """The names in ``text``, which are separated by commas. Raises ValueError for one that is not known."""
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    strange = [name for name in names if name not in known]
    if strange:
        raise ValueError(f"{', '.join(strange)} is not known; name some of {', '.join(known)}")
    return names
