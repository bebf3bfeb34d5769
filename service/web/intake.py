"""Labelled files in -> examples of a task, each decoded once before it is taken; and small pictures of those.

It works through what others leave: it waits where a prediction would be refused, and has half of the decode workers at
the most. It does not know HTTP.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from PIL import Image

from adapters.config import Modality
from adapters.errors import AdaptError, MediaError, TrainingError
from adapters.media import MediaLimits, decode_clip, decode_image
from adapters.media.sniff import media_format
from adapters.training.names import label_of, part_of
from service.errors import BadLabel, QueueFull
from service.pool import Pool
from service.store.examples import Adding, ExampleDraft, Examples, Tally
from service.web.archives import Entry, parts_of
from service.web.caller import Caller

T = TypeVar("T")
Labelled = tuple[Entry, str | AdaptError]
"""A file and its label, or why it has none."""

AGAIN_S = 0.02
"""How long a file waits until it looks for room again."""
CHECKED_FRAMES = 8
"""Of a clip: so many frames all over it must decode."""
SHORT_SIDE, MOST_TIMES = 96, 4
"""A thumbnail's short side in pixels, and how many times that its long side is at the most: the middle is shown."""
QUALITY = 80

TYPES = {
    "JPEG": ("image/jpeg", "jpg"), "PNG": ("image/png", "png"), "WEBP": ("image/webp", "webp"),
    "GIF": ("image/gif", "gif"), "BMP": ("image/bmp", "bmp"), "TIFF": ("image/tiff", "tif"),
    "AVIF": ("image/avif", "avif"), "HEIC": ("image/heic", "heic"), "mp4": ("video/mp4", "mp4"),
    "quicktime": ("video/quicktime", "mov"), "webm": ("video/webm", "webm"),
    "matroska": ("video/x-matroska", "mkv"), "avi": ("video/x-msvideo", "avi"), "mpegts": ("video/mp2t", "ts"),
    "mpeg": ("video/mpeg", "mpg"),
}  # fmt: skip
"""Names of formats -> the media type, and how files of it are called."""
SUFFIXES = dict(TYPES.values())


@dataclass(frozen=True)
class Taken:
    """What an addition came to; ``rejected``: names of files that were not taken, and why."""

    tally: Tally
    rejected: Sequence[tuple[str, AdaptError]]


class Intake:
    """For one front end; ``disk`` are workers that may wait for the disk."""

    def __init__(self, examples: Examples, decoding: Pool, disk: Pool, limits: MediaLimits) -> None:
        self.examples = examples
        self._decoding, self._disk, self._limits = decoding, disk, limits
        self._at_once = max(1, decoding.workers // 2)
        self._turn = asyncio.Semaphore(self._at_once)  # of all calls together

    async def add(self, task: str, files: Sequence[Labelled], caller: Caller) -> Taken:
        """Take what can be decoded, all together and durably. Raises the first problem where nothing can be taken.

        Raises NoRoom, storage errors, DeadlineExceeded and ClientGone too; then nothing is added.
        """
        wrong: dict[int, AdaptError] = {}
        with self.examples.adding(task) as adding:
            left = iter(enumerate(files))
            workers = [asyncio.create_task(self._work(left, adding, wrong, caller)) for _ in range(self._at_once)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
            if len(wrong) == len(files):
                raise wrong[0]
            # From here it is not given up: what is on the disk and what was answered must agree.
            tally = await asyncio.shield(self._once(self._disk, adding.commit, caller, "adding the examples"))
        return Taken(tally, [(files[place][0].name, wrong[place]) for place in sorted(wrong)])

    async def thumbnail(self, task: str, digest: str, caller: Caller) -> bytes:
        """A small JPEG of an example. Raises UnknownExample and QueueFull."""
        return await self.small(partial(self.examples.read, task, digest), caller)

    async def small(self, read: Callable[[], bytes], caller: Caller) -> bytes:
        """A small JPEG of what is read. Raises QueueFull, and what ``read`` raises."""

        def work() -> bytes:
            return thumbnail(read(), self._limits)

        (made,) = await caller.wait([self._decoding.submit(work, caller.left)], "making a small picture")
        return made

    async def _work(
        self, left: Iterator[tuple[int, Labelled]], adding: Adding, wrong: dict[int, AdaptError], caller: Caller
    ) -> None:
        for place, (entry, label) in left:
            if entry.wrong is not None:
                wrong[place] = entry.wrong
                continue
            if isinstance(label, AdaptError):
                wrong[place] = label
                continue
            try:
                check = partial(_draft, entry, label, self._limits)
                async with self._turn:
                    draft = await self._once(self._decoding, check, caller, "decoding the examples")
            except MediaError as error:
                wrong[place] = error
                continue
            await self._once(self._disk, partial(adding.put, place, draft), caller, "writing the examples")

    async def _once(self, pool: Pool, work: Callable[[], T], caller: Caller, doing: str) -> T:
        """The result of ``work``, once there is room for it."""
        while True:
            try:
                future = pool.submit(work)
            except QueueFull:
                await caller.wait([asyncio.ensure_future(asyncio.sleep(AGAIN_S))], doing)
                continue
            (found,) = await caller.wait([future], doing)
            return found


def _draft(entry: Entry, label: str, limits: MediaLimits) -> ExampleDraft:
    """An example, decoded once. Raises a MediaError."""
    data = entry.read()
    limits.check_bytes(data)
    modality, name = media_format(data)
    if modality == "image":
        decode_image(data, limits)
    else:
        decode_clip(data, CHECKED_FRAMES, limits)
    return ExampleDraft(label, modality, media_type(name, data), data)


def media_type(name: str, data: bytes) -> str:
    """Of a format as ``media_format`` names it."""
    if name == "mp4" and data[8:12] in (b"qt  ", b"wide", b"mdat"):
        name = "quicktime"
    elif name == "matroska" and b"webm" in data[:64]:
        name = "webm"
    return TYPES[name][0]


def thumbnail(data: bytes, limits: MediaLimits) -> bytes:
    """A picture, or the middle frame of a clip, as a small JPEG. Raises a MediaError."""
    modality: Modality = media_format(data)[0]
    picture = decode_image(data, limits) if modality == "image" else decode_clip(data, 1, limits)[0]
    most = MOST_TIMES * min(picture.size)
    if max(picture.size) > most:
        left, top = (max(0, side - most) // 2 for side in picture.size)
        picture = picture.crop((left, top, left + min(picture.width, most), top + min(picture.height, most)))
    share = SHORT_SIDE / min(picture.size)
    if share < 1:
        size = tuple(max(1, round(side * share)) for side in picture.size)
        picture = picture.resize((size[0], size[1]), Image.Resampling.BOX, reducing_gap=2.0)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def checked_label(text: str, where: str = "") -> str:
    """A label in one Unicode form, without space around it. Raises BadLabel."""
    where = where or f"'{text[:40]}'"
    if "\ufffd" in text:
        raise BadLabel(f"{where}: the label has bytes that are no UTF-8; send it as UTF-8", field="label")
    try:
        return label_of(text, where)
    except TrainingError as error:
        raise BadLabel(error.message, **error.facts) from error


def labelled(entries: Sequence[Entry], label: str | None) -> list[Labelled]:
    """Each file with the label that was given, or that of its folder: ``cat/1.jpg``, ``photos/train/cat/1.jpg``."""
    if label is not None:
        return [(entry, label) for entry in entries]
    folders = [parts_of(entry.name)[:-1] if entry.wrong is None else [] for entry in entries]
    skip = _wrappers([folder for folder in folders if folder])
    return [(entry, _of_folder(entry, folder[skip:])) for entry, folder in zip(entries, folders, strict=True)]


def _wrappers(folders: Sequence[Sequence[str]]) -> int:
    """How many folders lie around those of the labels: ones that hold but one folder, then parts of a split."""
    skip = 0
    while folders:
        inner = {folder[skip] for folder in folders if len(folder) > skip}
        deeper = [folder for folder in folders if len(folder) > skip + 1]
        if len(inner) == 1 and deeper and part_of(next(iter(inner))) is None:
            skip += 1
            continue
        full = {folder[skip] for folder in deeper}
        return skip + (1 if inner and inner == full and all(part_of(name) for name in inner) else 0)
    return 0


def _of_folder(entry: Entry, folder: Sequence[str]) -> str | AdaptError:
    try:
        if folder:
            return checked_label(folder[0], f"'{entry.name[:80]}'")
        raise BadLabel("no label: say it with ?label=cat, or pack a folder for each label: cat/1.jpg", field="label")
    except BadLabel as error:
        return error.copy()
