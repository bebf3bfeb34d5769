"""An MP4's tracks of sound and text cost nothing; what the tables of its pictures claim is bounded."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from adapters.errors import BrokenMedia, MediaTooLarge, UnsupportedMedia
from adapters.media import Deadline, MediaLimits, decode_clip
from adapters.media.boxes import without_other_tracks
from tests.media_samples import clip, header_first, levels, sound_only, with_sound

LIMITS = MediaLimits()
FEW = replace(LIMITS, max_samples=10)


@pytest.mark.parametrize("movflags", ["", "faststart", "frag_keyframe+empty_moov"])
@pytest.mark.parametrize(("container", "codec"), [("mov", "pcm_s16le"), ("mp4", "aac")])
def test_sound_does_not_count(container: str, codec: str, movflags: str) -> None:
    data = with_sound(container, codec, seconds=2, movflags=movflags)
    with pytest.raises(MediaTooLarge):
        _check(data, replace(LIMITS, max_samples=9))
    assert levels(decode_clip(data, 10, FEW)) == list(range(10))


def test_half_a_minute_of_pcm() -> None:
    assert levels(decode_clip(with_sound("mov", "pcm_s16le", seconds=30), 10, LIMITS)) == list(range(10))


@pytest.mark.parametrize("handler", [b"soun", b"text", b"sbtl", b"tmcd", b"meta", b"hint"])
def test_tracks_of_other_kinds_do_not_count(handler: bytes) -> None:
    data = bytearray(with_sound("mov", "pcm_s16le", seconds=2))
    at = data.index(b"soun")
    data[at : at + 4] = handler
    assert levels(decode_clip(bytes(data), 10, FEW)) == list(range(10))


def test_what_other_tracks_claim_is_never_built() -> None:
    data = bytearray(with_sound("mov", "pcm_s16le", seconds=1))
    start = data.index(b"trak", data.index(b"trak") + 4)
    for tag, offset in ((b"stsz", 12), (b"stsc", 16), (b"stts", 12)):
        struct.pack_into(">I", data, data.index(tag, start) + offset, 0x0FFFFFFF)
    assert levels(decode_clip(bytes(data), 10, FEW)) == list(range(10))


def test_sound_that_passes_itself_off_as_pictures_is_bounded() -> None:
    """FFmpeg makes an entry of each 1024 samples of a chunk, and goes by the last handler that it sees."""
    data = bytearray(with_sound("mov", "pcm_s16le", seconds=1))
    at = data.index(b"soun")
    data[at : at + 4] = b"vide"
    struct.pack_into(">I", data, data.index(b"stsc", at) + 16, 0x0FFFFFFF)
    with pytest.raises(MediaTooLarge) as caught:
        decode_clip(bytes(data), 4, replace(LIMITS, max_samples=200_000))
    assert caught.value.facts["field"] == "max_samples"


def test_sound_alone_is_no_clip_however_long() -> None:
    data = bytearray(sound_only())
    struct.pack_into(">I", data, data.index(b"stsz") + 12, 0x7FFFFFFF)
    with pytest.raises(UnsupportedMedia, match="no video stream"):
        decode_clip(bytes(data), 4, LIMITS)


@pytest.mark.parametrize("handler", [b"soun", b"text"])
def test_no_track_has_pictures(handler: bytes) -> None:
    data = bytearray(with_sound("mov", "pcm_s16le", seconds=1))
    at = data.index(b"hdlr", data.index(b"mdia")) + 12
    data[at : at + 4] = handler
    with pytest.raises(UnsupportedMedia, match="no video stream"):
        decode_clip(bytes(data), 4, LIMITS)


def test_the_pictures_stay_where_they_are() -> None:
    data = with_sound("mov", "pcm_s16le", seconds=1)
    stripped = _check(data, LIMITS)
    assert len(stripped) == len(data)
    assert stripped.count(b"trak") == data.count(b"trak") - 1
    plain = clip()
    assert _check(plain, LIMITS) is plain


@pytest.mark.parametrize("cut", [100, 400, 900])
def test_a_header_that_is_cut_off(cut: int) -> None:
    data = header_first(with_sound("mov", "pcm_s16le", seconds=1))
    with pytest.raises(BrokenMedia, match="header"):
        decode_clip(data[:cut], 4, LIMITS)


def test_walking_boxes_keeps_the_deadline() -> None:
    with pytest.raises(MediaTooLarge) as caught:
        without_other_tracks(b"\0\0\0\x08free" * 1000, LIMITS, Deadline(replace(LIMITS, decode_timeout_s=-1.0)))
    assert caught.value.facts["field"] == "decode_timeout_s"


def _check(data: bytes, limits: MediaLimits) -> bytes:
    return without_other_tracks(data, limits, Deadline(limits))
