"""Libraries in C that write what they think of a damaged file to stderr, past Python: libtiff, told to be silent.

It does not know logs. Nothing is lost: Pillow raises for each of those files, and that becomes our error.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from PIL import Image

MAPS = Path("/proc/self/maps")


def silence_libtiff() -> bool:
    """Take libtiff's error printer away, in this process; False where Pillow's libtiff cannot be found.

    Pillow itself takes away the printer of warnings alone.
    """
    if not MAPS.exists():  # not Linux
        return False
    Image.init()  # loads the library
    paths = {line.split(maxsplit=5)[5].strip() for line in MAPS.read_text().splitlines() if "libtiff" in line}
    for path in paths:
        library = ctypes.CDLL(path)  # the one that is loaded, not another
        for name in ("TIFFSetErrorHandler", "TIFFSetErrorHandlerExt"):
            setter = getattr(library, name)
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)
    return bool(paths)
