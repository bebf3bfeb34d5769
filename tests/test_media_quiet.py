"""A damaged TIFF that libtiff complains about on stderr: with the printer taken away nothing is written there."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
from adapters.errors import MediaError
from adapters.media import MediaLimits, decode_image
from adapters.media.quiet import silence_libtiff
from tests.media_samples import encode, scene
if sys.argv[1] == "quiet":
    assert silence_libtiff()
data = bytearray(encode(scene().convert("1"), "TIFF", compression="group4"))
for place in range(8, len(data) // 2):
    spoilt = bytes(data[:place]) + bytes([data[place] ^ 0x55]) + bytes(data[place + 1:])
    try:
        decode_image(spoilt, MediaLimits())
    except MediaError:
        pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="libtiff is found in /proc")
@pytest.mark.parametrize("mode", ["loud", "quiet"])
def test_libtiff_is_silent(mode: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", CODE, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert (done.stderr == "") is (mode == "quiet"), done.stderr[:500]
