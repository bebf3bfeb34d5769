"""Decoders say nothing about a client's file: no log line, no warning, and no word on stderr past Python.

It does not know logs. Nothing is lost: what matters comes as an exception, and that becomes our error.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from PIL import Image

MAPS = Path("/proc/self/maps")
_LIBRARIES = ("PIL", "pillow_heif")
_IGNORED = rf"({'|'.join(_LIBRARIES)})\."
_IGNORE = ("ignore", None, Warning, re.compile(_IGNORED), 0)  # as warnings keeps it
_decoding: ContextVar[bool] = ContextVar("decoding", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """While it lasts, what decoders log in this thread is dropped; other uses of Pillow log as before."""
    silence_libtiff()
    _filter_loggers()
    _ignore_warnings()
    token = _decoding.set(True)
    try:
        yield
    finally:
        _decoding.reset(token)


@functools.cache
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


@functools.cache
def _filter_loggers() -> None:
    Image.init()  # every plugin, so that its logger is there
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in _LIBRARIES:
            logging.getLogger(name).addFilter(lambda _: not _decoding.get())


def _ignore_warnings() -> None:
    """Pillow warns with the file's own numbers: a line, and memory, for each new one that comes.

    Filters are the process's, and whoever changes them (as a test does) finds this one in front after the next picture.
    """
    if warnings.filters[:1] != [_IGNORE]:
        warnings.filterwarnings("ignore", module=_IGNORED)
