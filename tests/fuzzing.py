"""Mutated real files for the three parsers, and child processes that feed them in and watch time, memory and errors.

Every input is a function of its number, so that one which failed can be made again: ``Fuzz(folder).input(number)``.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import random
import struct
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pillow_heif
import psutil
from PIL import Image

from adapters.errors import AdaptError
from adapters.file import read_adapter, write_adapter
from adapters.layout import Layout
from adapters.limits import FileLimits
from adapters.media import MediaLimits, decode_clip, decode_image
from adapters.media.quiet import silence_libtiff
from tests.houses import CLIP, IMAGE
from tests.media_samples import animation, clip, encode, scene
from tests.models import random_adapter, small_backbone
from tests.tiff_samples import DEFLATE, RGB, WHITE_IS_ZERO, tiff

SLOWEST_S = 5.0
SILENCE_S = 60.0
"""A child that says nothing for so long hangs or has died."""
START_S = 600.0
"""Until it has imported torch and made its files; on a machine that is busy otherwise that takes a while."""
REPORT_EVERY = 100
PARSERS = ("adapter", "image", "clip")
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
TOKENS = (b"{", b"}", b"[", b"]", b'"', b",", b"-1", b"1e999", b"null", b"NaN", b"\\u0000", b"F64", b"I8", b"true")
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass
class Report:
    """What a run came to. ``wrong`` holds the number of each input that did something forbidden, and what."""

    inputs: int = 0
    slowest_s: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    rss: list[int] = field(default_factory=list)
    wrong: list[tuple[int, str]] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Resident memory at the end over that after a quarter of the inputs, less one."""
        return self.rss[-1] / self.rss[len(self.rss) // 4] - 1 if self.rss else 0.0


class Fuzz:
    """Real files, made in memory, and the parsers that read what becomes of them."""

    def __init__(self, folder: Path) -> None:
        backbone = small_backbone(folder / "vit")
        self._layout: Layout = backbone.layout
        self._path = folder / "input.safetensors"
        self._limits = FileLimits(max_rank=16, max_classes=50)
        self._media = MediaLimits(max_pixels=2_000_000, max_frame_pixels=500_000, decode_timeout_s=4)
        adapters = [random_adapter(backbone, spec, 1) for spec in (IMAGE, CLIP)]
        files = []
        for adapter in adapters:
            write_adapter(self._path, adapter.config, adapter.tensors)
            files.append(self._path.read_bytes())
        self._samples = {"adapter": files, "image": _pictures(), "clip": _clips()}
        self._parse: dict[str, Callable[[bytes], object]] = {
            "adapter": self._adapter,
            "image": lambda data: decode_image(data, self._media),
            "clip": lambda data: decode_clip(data, 4, self._media),
        }

    def input(self, number: int) -> tuple[str, bytes]:
        """The parser and the bytes of that number: a real file with one to eight mutations."""
        dice = random.Random(number)
        parser = PARSERS[number % len(PARSERS)]
        data = bytearray(dice.choice(self._samples[parser]))
        other = dice.choice(self._samples[parser])
        for _ in range(dice.choice((1, 1, 2, 4, 8))):
            _mutate(data, other, dice)
        mended = _with_checksums(data) if data.startswith(PNG) and dice.random() < 0.7 else bytes(data)
        return parser, mended

    def feed(self, number: int, report: Report) -> None:
        """Parse one input; anything but a result or one of our errors is put down as wrong."""
        parser, data = self.input(number)
        start = time.perf_counter()
        try:
            self._parse[parser](data)
            outcome = "read"
        except AdaptError as error:
            outcome = type(error).__name__
        except BaseException:  # a parser may raise what is no Exception too
            outcome = "forbidden"
            report.wrong.append((number, traceback.format_exc(limit=-4)))
        taken = time.perf_counter() - start
        if taken > SLOWEST_S:
            report.wrong.append((number, f"{parser} took {taken:.1f} s"))
        report.inputs += 1
        report.slowest_s = max(report.slowest_s, taken)
        report.outcomes[f"{parser} {outcome}"] += 1

    def _adapter(self, data: bytes) -> None:
        self._path.write_bytes(data)
        read_adapter(self._path, self._layout, self._limits)


def run(folder: Path, first: int, count: int) -> Report:
    """Feed ``count`` inputs from number ``first`` on, in a child: a parser that crashes must not end the test."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(folder, first, count, theirs))
    child.start()
    theirs.close()
    report = Report()
    try:
        if ours.poll(START_S):
            ours.recv()
        while report.inputs < count:
            if not ours.poll(SILENCE_S):
                report.wrong.append((first + report.inputs, f"no word for {SILENCE_S:g} s; within the next 100"))
                break
            report = ours.recv()
    except EOFError:
        child.join(10)
        report.wrong.append((first + report.inputs, f"the process died ({child.exitcode}); within the next 100"))
    finally:
        child.kill()
        child.join()
    return report


def _child(folder: Path, first: int, count: int, pipe: Connection) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as the server does, and the next line too
    silence_libtiff()
    fuzz, report, process = Fuzz(folder), Report(), psutil.Process()
    pipe.send(report)
    for number in range(first, first + count):
        fuzz.feed(number, report)
        if report.inputs % REPORT_EVERY == 0 or report.inputs == count:
            report.rss.append(process.memory_info().rss)
            pipe.send(report)


def _mutate(data: bytearray, other: bytes, dice: random.Random) -> None:
    if not data:
        return
    # Headers matter more than pixels, so half of the places are among the first bytes.
    place = dice.randrange(min(len(data), dice.choice((64, 2048, len(data)))))
    length = dice.choice((1, 2, 4, 16, 256))
    match dice.randrange(9):
        case 0:
            data[place] ^= 1 << dice.randrange(8)
        case 1:
            data[place] = dice.randrange(256)
        case 2:
            number = dice.choice(NUMBERS) + dice.choice((-1, 0, 1))
            data[place : place + 4] = struct.pack(dice.choice("<>") + "I", number % 2**32)
        case 3:
            del data[place : place + length]
        case 4:
            data[place:place] = data[place : place + length] * dice.choice((1, 2, 64))
        case 5:
            del data[place:]
        case 6:
            start = dice.randrange(len(other))
            data[place : place + length] = other[start : start + length]
        case 7:
            data[place : place + dice.choice((0, 1, 4))] = dice.choice(TOKENS)
        case _:
            data += dice.randbytes(length)


def _with_checksums(data: bytearray) -> bytes:
    """A PNG whose chunks have the right checksums again, so that the mutations reach the decoder."""
    place = len(PNG)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(data)


def _pictures() -> list[bytes]:
    picture = scene()
    grey16 = Image.fromarray((np.arange(48 * 32, dtype=np.uint16) * 40).reshape(32, 48))
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    deep = np.asarray(picture).astype(np.uint16) * 257
    heic = io.BytesIO()
    pillow_heif.from_pillow(clear.resize((64, 64))).save(heic, exif=turned.tobytes())
    return [
        encode(picture, "JPEG"), encode(picture, "JPEG", progressive=True, exif=turned), encode(picture, "PNG"),
        encode(grey16, "PNG"), encode(picture.convert("P"), "PNG"), encode(picture.convert("RGBA"), "PNG"),
        encode(picture, "WEBP"), encode(picture, "WEBP", lossless=True), encode(picture, "GIF"),
        encode(picture, "BMP"), encode(picture, "TIFF"), encode(picture, "TIFF", compression="tiff_lzw"),
        encode(picture.convert("CMYK"), "JPEG"), encode(picture.convert("1"), "TIFF", compression="group4"),
        encode(picture, "AVIF"), encode(clear, "AVIF", exif=turned), heic.getvalue(), encode(clear, "WEBP"),
        encode(picture.convert("P"), "PNG", transparency=3), encode(picture, "JPEG") + encode(picture, "JPEG"),
        encode(picture, "TIFF", compression="jpeg"), encode(picture.convert("P"), "GIF", transparency=2),
        tiff(deep, RGB, planar=2, order=">", rows_per_strip=8),
        tiff(deep[..., :1], WHITE_IS_ZERO, tile=(16, 16), big=True),
        tiff(np.asarray(clear), RGB, extra=[2], compression=DEFLATE, predictor=2),
    ]  # fmt: skip


def _clips() -> list[bytes]:
    return [
        clip(), clip("mov", rotation=(90, False, False)), clip("mp4", movflags="frag_keyframe+empty_moov"),
        clip("matroska"), clip("webm", "libvpx", 6), clip("avi", "mpeg4"), clip("webm", "libvpx-vp9", 6),
        clip("mp4", audio=True, count=4), clip("matroska", times=[0, 10, 500, 510, 2000], count=5),
        clip("mpegts"), clip("mpegts", "mpeg2video"), clip("mpeg", "mpeg2video"), clip("mpeg", "mpeg1video"),
        clip("avi", "mjpeg"), clip("mov", "prores_ks", 4), clip("3gp", "h263", size=(128, 96)),
        animation("GIF"), animation("WEBP"), animation("PNG"),
    ]  # fmt: skip


def summary(reports: list[Report]) -> str:
    """The numbers of a run, for people."""
    outcomes: Counter[str] = sum((r.outcomes for r in reports), Counter())
    return json.dumps(
        {
            "inputs": sum(r.inputs for r in reports),
            "slowest_s": round(max(r.slowest_s for r in reports), 2),
            "rss_growth": [round(r.growth, 3) for r in reports],
            "outcomes": dict(sorted(outcomes.items())),
        },
        indent=1,
    )
