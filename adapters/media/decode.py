"""decode: a body -> the pictures that a task takes, one or T.

It does not know formats; it compares what came with what the task wants.
"""

from __future__ import annotations

from PIL import Image

from adapters.config import AdapterConfig
from adapters.errors import WrongModality
from adapters.media.images import decode_image
from adapters.media.limits import Deadline, MediaLimits
from adapters.media.sniff import sniff
from adapters.media.video import decode_clip

_NOUNS = {"image": "picture", "video": "clip"}


def decode(
    data: bytes, config: AdapterConfig, limits: MediaLimits, deadline: Deadline | None = None
) -> list[Image.Image]:
    """RGB pictures: 1 for an image task, ``config.frames`` for a video task. Raises a MediaError.

    A ``deadline`` is one that other work on the same body shares.
    """
    limits.check_bytes(data)
    kind = sniff(data)
    if kind != config.modality:
        raise WrongModality(
            f"task {config.task} takes {_NOUNS[config.modality]}s, a {_NOUNS[kind]} came",
            expected=config.modality, got=kind,
        )  # fmt: skip
    if config.video is None:
        return [decode_image(data, limits, deadline)]
    return decode_clip(data, config.video.frames, limits, config.video.sampling, deadline)
