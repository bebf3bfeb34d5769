"""decode: a body -> the pictures that a task takes, one or T; ``take`` does so for files and opened pictures too.

``seen_by`` does so for several tasks at once. It does not know formats; it compares what came with what a task wants.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

from adapters.clip_formats import ANIMATED
from adapters.config import AdapterConfig, InputConfig
from adapters.errors import BrokenMedia, UnsupportedMedia, WrongModality
from adapters.limits import Deadline, MediaLimits, bound
from adapters.media.images import decode_image, opened_image
from adapters.media.preprocess import Preprocess
from adapters.media.sniff import media_format
from adapters.media.timeline import Excerpt, Sampling, Timeline
from adapters.media.video import Frames, decode_clip

Seen = TypeVar("Seen")

Source = str | os.PathLike[str] | bytes | Image.Image | list[Image.Image] | tuple[Image.Image, ...]
"""One picture or clip: a path, a file's bytes, a picture that Pillow opened, or such pictures for a clip."""
_NOUNS = {"image": "picture", "video": "clip"}


def decode(
    data: bytes, config: AdapterConfig, limits: MediaLimits, deadline: Deadline | None = None,
    excerpt: Excerpt | None = None,
) -> Frames:  # fmt: skip
    """RGB pictures: 1 for an image task, those of all views in time for a video task. Raises a MediaError.

    A ``deadline`` is one that other work on the same body shares. An ``excerpt`` is of a clip.
    """
    if excerpt is not None and config.video is None:
        raise WrongModality(
            f"task {config.task} takes pictures; 'start', 'end', 'window' and 'stride' are for clips",
            field="start", expected=config.modality,
        )  # fmt: skip
    limits.check_bytes(data)
    kind, name = media_format(data)
    if kind != config.modality and not (config.video and name in ANIMATED):
        raise _wrong(config, kind)
    if config.video is None:
        return Frames([decode_image(data, limits, deadline)])
    try:
        return decode_clip(data, Sampling.of(config.video, excerpt), limits, deadline)
    except WrongModality as error:  # a picture of a kind that may move, and does not
        raise _wrong(config, kind) from error


def take(source: Source, config: AdapterConfig, limits: MediaLimits, excerpt: Excerpt | None = None) -> Frames:
    """``decode`` for a path, for bytes, for a picture that Pillow opened, or for a clip as a list of such pictures.

    Of a list the pictures are taken that stand for a clip of so many frames. Raises a MediaError, and OSError for a
    file that cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        return decode(_read(Path(source), limits), config, limits, excerpt=excerpt)
    if isinstance(source, bytes | bytearray | memoryview):
        return decode(bytes(source), config, limits, excerpt=excerpt)
    if isinstance(source, Image.Image):
        if config.video is not None:
            raise _wrong(config, "image")
        return Frames([opened_image(source, limits)])
    if not isinstance(source, list | tuple) or not all(isinstance(picture, Image.Image) for picture in source):
        raise UnsupportedMedia.named(
            f"an object of type {type(source).__name__}", "a path, bytes, a PIL picture, or a list of them for a clip"
        )
    if config.video is None:
        raise _wrong(config, "video")
    return _of_list(source, Sampling.of(config.video, excerpt), limits)


def seen_by(
    configs: Sequence[AdapterConfig],
    frames_of: Callable[[AdapterConfig], Frames],
    preprocess_of: Callable[[InputConfig], Preprocess],
    made_of: Callable[[Frames, Preprocess, AdapterConfig], Seen],
) -> list[Seen]:
    """What each config sees of one body, in their order; those that see the same get the same object.

    Each sampling is decoded once, and each geometry of it resized once: ``preprocess_of`` gives all that are of one
    geometry the same transform. The frames of one sampling alone are in memory.
    """
    samplings: dict[Sampling | None, list[int]] = {}
    for place, config in enumerate(configs):
        samplings.setdefault(Sampling.of(config.video) if config.video else None, []).append(place)
    seen: dict[int, Seen] = {}
    for places in samplings.values():
        frames = frames_of(configs[places[0]])
        made: dict[Hashable, Seen] = {}
        for place in places:
            config = configs[place]
            preprocess = preprocess_of(config.input)
            key = preprocess, config.crops
            if key not in made:
                made[key] = made_of(frames, preprocess, config)
            seen[place] = made[key]
        del frames  # before the next are there
    return [seen[place] for place in range(len(configs))]


def _read(path: Path, limits: MediaLimits) -> bytes:
    """A file's bytes, and of one that is too large no more than shows that it is. Raises OSError."""
    with path.open("rb") as file:
        return file.read(limits.max_bytes + 1)


def _of_list(pictures: Sequence[Image.Image], wanted: Sampling, limits: MediaLimits) -> Frames:
    if not pictures:
        raise BrokenMedia("the clip has no pictures; send at least one", field="frames", got=0)
    bound("max_frames", "{value} frames of one clip were asked for", wanted.count, limits.max_frames)
    timeline = Timeline.even(len(pictures))
    chosen = timeline.chosen(wanted, timeline.spans(wanted, limits.max_windows))
    limits.check_clip(sum(pictures[i].width * pictures[i].height for i in set(chosen)))
    taken = {i: opened_image(pictures[i], limits) for i in set(chosen)}
    return Frames([taken[i] for i in chosen])


def _wrong(config: AdapterConfig, kind: str) -> WrongModality:
    return WrongModality(
        f"task {config.task} takes {_NOUNS[config.modality]}s, a {_NOUNS[kind]} came",
        expected=config.modality, got=kind,
    )  # fmt: skip
