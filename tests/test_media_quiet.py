"""Whatever a file holds, its decoder writes nothing: not into the log, not as a warning, not on stderr past Python."""

from __future__ import annotations

import io
import logging
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from adapters.errors import MediaError, MediaTooLarge
from adapters.media import MediaLimits, decode_image
from tests.media_samples import encode, scene
from tests.tiff_samples import RGB, tiff

LIMITS = MediaLimits()
CODE = """
import io
import sys
from adapters.media import MediaLimits, decode_image
from PIL import Image
from tests.media_samples import encode, scene
read = lambda data: decode_image(data, MediaLimits())
if sys.argv[1] == "loud":
    read = lambda data: Image.open(io.BytesIO(data)).load()
data = bytearray(encode(scene().convert("1"), "TIFF", compression="group4"))
for place in range(8, len(data) // 2):
    spoilt = bytes(data[:place]) + bytes([data[place] ^ 0x55]) + bytes(data[place + 1:])
    try:
        read(spoilt)
    except Exception:
        pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="libtiff is found in /proc")
@pytest.mark.parametrize("mode", ["loud", "quiet"])
def test_libtiff_is_silent(mode: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", CODE, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert (done.stderr == "") is (mode == "quiet"), done.stderr[:500]


def many_channels() -> bytes:
    """Pillow logs an error for it."""
    return tiff(np.zeros((4, 4, 3), np.uint8), RGB, tags={277: [65535]})


def test_pillow_logs_nothing_of_a_clients_file(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(OSError, match="identify"):
        Image.open(io.BytesIO(many_channels()))
    assert "More samples per pixel" in caplog.text  # as it would be
    files = [many_channels(), *(encode(scene(), name) for name in ("TIFF", "PNG", "JPEG", "WEBP", "GIF", "AVIF"))]
    caplog.clear()
    for data in files:
        try:
            decode_image(data, LIMITS)
        except MediaError:
            continue
    assert caplog.records == []
    logging.getLogger(TiffImagePlugin.__name__).error("of another picture")
    assert len(caplog.records) == 1


def test_pillow_warns_of_nothing() -> None:
    data = bytearray(encode(scene(), "GIF"))
    data[6:10] = struct.pack("<HH", 12_000, 8_000)
    for _ in range(2):  # whoever resets the filters in between
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            Image.open(io.BytesIO(data))
            assert "exceeds limit" in str(seen.pop().message)  # as it would be
            with pytest.raises(MediaTooLarge):
                decode_image(bytes(data), LIMITS)
        assert seen == []


def test_decoders_write_nothing_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """AV1, WebP, JPEG and PNG, each damaged in many places."""
    for name in ("AVIF", "WEBP", "JPEG", "PNG", "GIF", "BMP"):
        data = encode(scene(), name)
        for place in range(12, len(data), max(1, len(data) // 60)):
            try:
                decode_image(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :], LIMITS)
            except MediaError:
                continue
    assert capfd.readouterr() == ("", "")
