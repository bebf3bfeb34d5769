"""Only listed formats pass, and the refusal says what came and what is read."""

import struct

import pytest

from adapters.errors import BrokenMedia, UnsupportedMedia
from adapters.media import sniff
from adapters.media.sniff import media_format
from tests.media_samples import clip, encode, scene


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
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
        (b"\0\0\0\x10ftypmif1\0\0\0\0", "HEIF picture of an unknown codec"),
        (b"\0\0\0\x14ftypavci\0\0\0\0mif1", "HEIF picture of a rare codec"),
        (b"\0\0\0\x14ftypcrx \0\0\0\0isom", "raw picture .CR3"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xff\x0a\xff\x07", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51\0\x2f", "JPEG 2000"),
        (b"8BPS\0\x01", "Photoshop"),
        (b"\0\0\x01\0\x01\0", "icon"),
        (b"II*\0\x10\0\0\0CR\x02\0", "raw picture .CR2"),
        (b"IIU\0\x08", "raw picture .RW2"),
        (b"qoif\0\0", "QOI"),
        (b"P6\n4 4\n255\n", "PPM"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"\x76\x2f\x31\x01\x02", "OpenEXR"),
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


def boxes(brand: bytes, *compatible: bytes) -> bytes:
    return struct.pack(">I", 16 + 4 * len(compatible)) + b"ftyp" + brand + bytes(4) + b"".join(compatible) + bytes(8)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (boxes(b"avif"), "AVIF"),
        (boxes(b"avis", b"avif", b"msf1"), "AVIF"),
        (boxes(b"mif1", b"avif", b"miaf"), "AVIF"),
        (boxes(b"heic", b"mif1", b"heic"), "HEIC"),
        (boxes(b"heix", b"mif1"), "HEIC"),
        (boxes(b"hevc", b"msf1", b"hevc"), "HEIC"),
        (boxes(b"mif1", b"miaf", b"MiHB", b"heic"), "HEIC"),
        (boxes(b"msf1", b"hevc"), "HEIC"),
    ],
)
def test_pictures_in_boxes_go_by_their_brands(data: bytes, name: str) -> None:
    assert media_format(data) == ("image", name)


def test_a_clip_that_names_a_still_brand_beside_is_a_clip() -> None:
    assert media_format(boxes(b"isom", b"avif", b"mp41")) == ("video", "mp4")


def test_empty() -> None:
    with pytest.raises(BrokenMedia, match="empty"):
        sniff(b"")
