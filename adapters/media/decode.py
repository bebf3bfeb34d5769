"""decode: a body -> the pictures that a task takes, one or T.

It does not know formats; it compares what came with what the task wants.
"""

from __future__ import annotations

from adapters.clip_formats import ANIMATED
from adapters.config import AdapterConfig
from adapters.errors import WrongModality
from adapters.limits import Deadline, MediaLimits
from adapters.media.images import decode_image
from adapters.media.sniff import media_format
from adapters.media.video import Frames, decode_clip

_NOUNS = {"image": "picture", "video": "clip"}


def decode(data: bytes, config: AdapterConfig, limits: MediaLimits, deadline: Deadline | None = None) -> Frames:
    """RGB pictures: 1 for an image task, ``config.frames`` for a video task. Raises a MediaError.

    A ``deadline`` is one that other work on the same body shares.
    """
    limits.check_bytes(data)
    kind, name = media_format(data)
    if kind != config.modality and not (config.video and name in ANIMATED):
        raise _wrong(config, kind)
    if config.video is None:
        return Frames([decode_image(data, limits, deadline)])
    try:
        return decode_clip(data, config.video.frames, limits, config.video.sampling, deadline)
    except WrongModality as error:  # a picture of a kind that may move, and does not
        raise _wrong(config, kind) from error


def _wrong(config: AdapterConfig, kind: str) -> WrongModality:
    return WrongModality(
        f"task {config.task} takes {_NOUNS[config.modality]}s, a {_NOUNS[kind]} came",
        expected=config.modality, got=kind,
    )  # fmt: skip
