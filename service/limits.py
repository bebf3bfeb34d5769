"""The settings' bounds as the library takes them; the server and `adaptserve train` keep the same ones."""

from __future__ import annotations

import os
from dataclasses import fields

from adapters.limits import MEDIA_SETTINGS, FileLimits, MediaLimits
from service.settings import Settings
from service.store.examples import ExampleLimits


def media_limits(settings: Settings) -> MediaLimits:
    """Bounds on pictures and clips."""
    names = [field.name for field in fields(MediaLimits)]
    return MediaLimits(**{name: getattr(settings, MEDIA_SETTINGS.get(name, name)) for name in names})


def file_limits(settings: Settings, max_rank: int) -> FileLimits:
    """Bounds on adapter files; ``max_rank`` is that of the slots."""
    return FileLimits(
        max_file_bytes=settings.max_adapter_bytes,
        max_header_bytes=settings.max_adapter_header_bytes,
        max_rank=max_rank,
        max_classes=settings.max_classes,
        max_frames=min(settings.max_clip_frames, settings.max_batch_rows),  # a view's rows go in one batch
        max_rows=settings.max_clip_frames,
    )


def example_limits(settings: Settings) -> ExampleLimits:
    """Bounds on labelled examples."""
    return ExampleLimits(**{field.name: getattr(settings, field.name) for field in fields(ExampleLimits)})


def pixel_rows(settings: Settings) -> int:
    """Frames that a front end may hold: as many as may be queued or compared, and a clip for each body in a decoder."""
    clip = max(settings.max_batch_rows, settings.max_clip_frames)
    return settings.max_queue_rows + settings.max_shadow_rows + clip * (decode_workers(settings) + 1)


def decode_workers(settings: Settings) -> int:
    """Threads that decode in one process."""
    return settings.decode_workers or len(os.sched_getaffinity(0))


def share(settings: Settings, front_ends: int) -> Settings:
    """What one of so many front ends may hold, so that together they hold what the settings say."""
    divided = {
        "max_bodies_bytes": settings.max_bodies_bytes, "max_decodes_waiting": settings.max_decodes_waiting,
        "decode_workers": decode_workers(settings),
        "config_cache_bytes": settings.config_cache_bytes,
    }  # fmt: skip
    return settings.model_copy(update={name: -(-value // front_ends) for name, value in divided.items()})
