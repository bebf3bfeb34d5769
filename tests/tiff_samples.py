"""TIFF files of any layout, written by hand from an array, since Pillow writes only some and reads others wrong."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
RAW, DEFLATE, PACKBITS = 1, 8, 32773
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, SEPARATED = 0, 1, 2, 3, 5
_FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 7: "s", 16: "Q"}
_BITS_REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


def tiff(
    values: Array,
    photometric: int,
    *,
    bits: int | None = None,
    order: str = "<",
    compression: int = RAW,
    predictor: int = 1,
    planar: int = 1,
    extra: Sequence[int] = (),
    rows_per_strip: int | None = None,
    tile: tuple[int, int] | None = None,
    fill_order: int = 1,
    big: bool = False,
    tags: Mapping[int, Sequence[int] | bytes] | None = None,
) -> bytes:
    """The file whose samples are ``values`` (height, width, samples), as they are: nothing is scaled or inverted.

    ``bits`` below those of the dtype packs the samples; ``tile`` is width and height; ``tags`` are added or replace.
    """
    height, width, samples = values.shape
    bits = bits or values.dtype.itemsize * 8
    kinds = {"u": 1, "i": 2, "f": 3}
    ints: dict[int, Sequence[int] | bytes] = {
        256: [width], 257: [height], 258: [bits] * samples, 259: [compression], 262: [photometric], 277: [samples],
        284: [planar],
    }  # fmt: skip
    ints |= {339: [kinds[values.dtype.kind]] * samples} if values.dtype.kind != "u" else {}
    ints |= {338: list(extra)} if extra else {}
    ints |= {317: [predictor]} if predictor != 1 else {}
    ints |= {266: [fill_order]} if fill_order != 1 else {}
    step = (tile or (width, rows_per_strip or height))[1]
    planes = [values] if planar == 1 else [values[..., k : k + 1] for k in range(samples)]
    parts = []
    for plane in planes:
        for top in range(0, height, step):
            for left in range(0, width, tile[0] if tile else width):
                part = plane[top : top + step, left : left + (tile[0] if tile else width)]
                if tile:
                    part = np.pad(part, ((0, step - len(part)), (0, tile[0] - part.shape[1]), (0, 0)), mode="edge")
                parts.append(_packed(part, bits, order, predictor, compression, fill_order))
    ints |= {322: [tile[0]], 323: [tile[1]]} if tile else {278: [step]}
    start = 16 if big else 8
    offsets = [start + sum(map(len, parts[:i])) for i in range(len(parts))]
    ints |= {324 if tile else 273: offsets, 325 if tile else 279: [len(part) for part in parts]}
    ints |= tags or {}
    return written(b"".join(parts), ints, order, big)


def _packed(part: Array, bits: int, order: str, predictor: int, compression: int, fill_order: int) -> bytes:
    if predictor == 2:
        part = np.concatenate([part[:, :1], part[:, 1:] - part[:, :-1]], axis=1)
    if predictor == 3:  # bytes of a row by significance, then differences
        rows = []
        for row in part:
            planes = row.astype(">f4").reshape(-1).view(np.uint8).reshape(-1, 4).T.reshape(-1)
            samples = part.shape[2]
            rows.append(np.concatenate([planes[:samples], planes[samples:] - planes[:-samples]]).tobytes())
        data = b"".join(rows)
    elif bits in (8, 16, 32, 64):
        data = part.astype(part.dtype.newbyteorder(order)).tobytes()
    else:  # each row begins at a byte
        flat = part.reshape(len(part), -1)
        every = (flat[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        data = np.packbits(every.reshape(len(part), -1).astype(np.uint8), axis=1).tobytes()
    if compression == DEFLATE:
        data = zlib.compress(data)
    elif compression == PACKBITS:
        data = b"".join(bytes([len(data[i : i + 128]) - 1]) + data[i : i + 128] for i in range(0, len(data), 128))
    return data.translate(_BITS_REVERSED) if fill_order == 2 else data


def written(parts: bytes, tags: Mapping[int, Sequence[int] | bytes], order: str, big: bool = False) -> bytes:
    """A file of these parts and tags; the parts begin at byte 8, or 16 of a big one."""
    word, head = ("Q", 16) if big else ("I", 8)
    place = head + len(parts)
    entries, far = [], b""
    count = len(tags)
    after = place + (8 if big else 2) + count * (20 if big else 12) + (8 if big else 4)
    for tag, value in sorted(tags.items()):
        if isinstance(value, bytes):
            kind, raw, length = 7, value, len(value)
        else:
            kind = 3 if max(value) < 2**16 else 4
            raw, length = struct.pack(f"{order}{len(value)}{_FORMATS[kind]}", *value), len(value)
        if len(raw) <= struct.calcsize(word):
            field = raw.ljust(struct.calcsize(word), b"\0")
        else:
            field = struct.pack(order + word, after + len(far))
            far += raw + bytes(len(raw) % 2)
        entries.append(struct.pack(f"{order}HH{word}", tag, kind, length) + field)
    directory = struct.pack(order + ("Q" if big else "H"), count) + b"".join(entries) + bytes(8 if big else 4)
    mark = b"II" if order == "<" else b"MM"
    header = struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, place) if big else (42, place)))
    return mark + header + parts + directory + far
