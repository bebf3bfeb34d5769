"""What can go wrong with a file, a backbone or a picture, as one tree of exceptions.

It does not know HTTP: ``service.errors`` gives each class its status.

AdaptError
├── BackboneError            the model cannot be loaded, or is of a family without sites
├── MediaError
│   ├── UnsupportedMedia     not a picture or clip in a format we read
│   ├── BrokenMedia          a known format that does not decode
│   ├── MediaTooLarge        more bytes, pixels, frames or seconds than the limits allow
│   ├── WrongModality        a clip for a task that takes pictures, or the reverse
│   └── OutsideClip          a part of a clip was asked that it does not have
├── AdapterError
│   ├── NotAnAdapter         not a safetensors file at all (a pickle, a picture, ...)
│   ├── BrokenAdapter        safetensors, but truncated, wrongly named, wrongly shaped, not finite
│   ├── WrongBase            made for another backbone
│   └── AdapterTooLarge      more bytes, rank or classes than the server has room for
├── UnknownTask              no adapter is held under that name
├── ImportRefused            another tool's file that cannot become an adapter of this backbone
├── NoRoom                   no slot, cache or disk space left
│   └── LoadsBehind          more adapters wait to be loaded than can be in time
└── TrainingError            the labelled data, the options or the disk do not let an adapter be trained
"""

from __future__ import annotations

from typing import Self


class AdaptError(Exception):
    """Base of all our errors: one sentence for people, and named facts for machines.

    ``facts`` are JSON values such as ``tensor``, ``expected``, ``got``, ``limit``, ``value``.
    """

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def copy(self) -> Self:
        """The same for another caller: with facts of its own, and without the traceback that holds what failed."""
        twin = type(self).__new__(type(self), *self.args)
        twin.__dict__.update(self.__dict__, facts=dict(self.facts))
        return twin


class BackboneError(AdaptError):
    """The backbone cannot be loaded or has no place for adapters."""


class MediaError(AdaptError):
    """The picture or clip cannot be used."""


class UnsupportedMedia(MediaError):
    """No picture or clip of a kind that we read; the file itself may be whole."""

    @classmethod
    def named(cls, what: str, instead: str) -> UnsupportedMedia:
        """The refusal of ``what`` it is, with its article; ``instead`` is what to send."""
        return cls(f"this is {what}, which is not read here; send {instead}", field="body", expected=instead, got=what)


class BrokenMedia(MediaError):
    """The format is known, the content does not decode."""


class MediaTooLarge(MediaError):
    """The picture or clip is larger than a limit."""


class WrongModality(MediaError):
    """A clip came for a task that takes pictures, or the reverse."""


class OutsideClip(MediaError):
    """A part of a clip was asked that it does not have."""


class AdapterError(AdaptError):
    """The adapter file cannot be used."""


class NotAnAdapter(AdapterError):
    """The bytes are not a safetensors file."""


class BrokenAdapter(AdapterError):
    """The file is safetensors, and its content is not a valid adapter."""


class WrongBase(AdapterError):
    """The adapter was made for another backbone."""


class AdapterTooLarge(AdapterError):
    """The adapter is larger than a limit."""


class UnknownTask(AdaptError):
    """There is no such task."""


class ImportRefused(AdaptError):
    """Another tool's file cannot become an adapter of this backbone."""


class NoRoom(AdaptError):
    """A bounded store is full."""


class LoadsBehind(NoRoom):
    """The adapter cannot be loaded in time; the loads before it take ``wait_s`` seconds."""

    def __init__(self, message: str, *, wait_s: float, **facts: object) -> None:
        super().__init__(message, **facts)
        self.wait_s = wait_s


class TrainingError(AdaptError):
    """No adapter can be trained from what was given."""
