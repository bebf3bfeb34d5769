"""Only listed formats pass, and the refusal says what came and what is read."""

import pytest

from adapters.errors import BrokenMedia, UnsupportedMedia
from adapters.media import sniff
from tests.media_samples import clip, encode, scene


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures(name: str) -> None:
    assert sniff(encode(scene(), name)) == "image"


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "libx264"),
        ("mov", "libx264"),
        ("webm", "libvpx"),
        ("matroska", "libx264"),
        ("avi", "mpeg4"),
        ("mpegts", "libx264"),
        ("mpeg", "mpeg2video"),
        ("mpeg", "mpeg1video"),
        ("3gp", "mpeg4"),
        ("3g2", "mpeg4"),
    ],
)
def test_clips(container: str, codec: str) -> None:
    assert sniff(clip(container, codec, count=2)) == "video"


@pytest.mark.parametrize(
    ("data", "looks"),
    [
        (b"\x80\x04\x95abc", "pickle"),
        (b"PK\x03\x04abc", "zip"),
        (b"%PDF-1.7", "PDF"),
        (b"  <!DOCTYPE html><p>", "HTML"),
        (b"<?xml version='1.0'?><svg xmlns=''/>", "SVG"),
        (b'{"a": 1}', "JSON"),
        (b"\x10\0\0\0\0\0\0\0{}", "safetensors"),
        (b"iVBORw0KGgoAAAANSUhEUg", "base64"),
        (b"RIFF\0\0\0\0WAVEfmt ", "WAV"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0", "HEIC or AVIF"),
        (b"#EXTM3U\n", "playlist"),
        (b"\0\0\x01\xb3\x04\x00", "bare MPEG video"),
        (b"\0\0\0\x01\x67\x64", "bare H.264"),
    ],
)
def test_the_refusal_names_what_came(data: bytes, looks: str) -> None:
    with pytest.raises(UnsupportedMedia, match=looks) as caught:
        sniff(data)
    assert "JPEG" in caught.value.message
    assert "WebM" in caught.value.message


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"BM",
        b"BMW and other cars are listed here",
        b"RIFF",
        b"\xff\xd8",
        bytes(64),
        b"Good text, no packets. Going on. " * 99,
    ],
)
def test_too_little_to_go_by(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia):
        sniff(data)


def test_avif_from_pillow_is_no_clip() -> None:
    with pytest.raises(UnsupportedMedia, match="AVIF"):
        sniff(encode(scene(), "AVIF"))


def test_empty() -> None:
    with pytest.raises(BrokenMedia, match="empty"):
        sniff(b"")
