"""Service failures as exceptions, and the one table from failure to HTTP status and problem document.

It knows no web framework; the scheduler and the repository raise from here too.

AdaptError (adapters.errors)
├── BadKeys                  500  never sent: the server does not start with them
├── BadTasksFile             500  never sent: the server does not start with it
├── BadRequest               400  the request itself is malformed
│   ├── BadTaskName          400
│   └── BadLabel             400
├── Unauthorised             401
├── Forbidden                403
│   └── ForeignOrigin        403  a page of another origin wants to change something
├── UnknownVersion           404
├── UnknownExample           404
├── UnknownRequest           404  its input is not kept
├── UnknownJob               404
├── RequestTimeout           408  headers or a body came too slowly
├── Conflict                 409  the state forbids it (deleting the active version, a locked folder)
├── BodyTooLarge             413
├── BadRange                 416
├── UnknownHost              421  the request was meant for another name
├── BadScores                422  the adapter's scores are not finite numbers
├── QueueFull                429  with retry_after
│   ├── OverRate             429  a key asks more often than its rate allows
│   ├── OverQuota            429  a key has asked as much as it may today
│   └── TooManyConnections   503
├── RequestHeaderFieldsTooLarge  431
├── ClientGone               499  never sent: there is nobody to send it to
├── ComputeFailed            500  our own fault
├── NotReady                 503
│   └── EngineLost           503  the engine's process ended; another is being started
├── Draining                 503
├── StorageReadOnly          503
├── StorageFailed            503  the disk reports an error of its own
├── StoreAway                503  the store that servers share does not answer
├── StoreRefused             503  it answers, and does not let this server do what it must
├── SourceFailed             503  a declared task could not be brought in from its source; with retry_after
├── DeadlineExceeded         504
└── StorageFull              507
"""

from __future__ import annotations

import re

from adapters.errors import (
    AdapterError,
    AdaptError,
    AdapterTooLarge,
    BackboneError,
    BrokenAdapter,
    BrokenMedia,
    ImportRefused,
    MediaError,
    MediaTooLarge,
    NoRoom,
    NotAnAdapter,
    OutsideClip,
    TrainingError,
    UnsupportedMedia,
    WrongBase,
    WrongModality,
)
from adapters.errors import UnknownTask as UnknownTask  # of a server's store and of a Predictor alike


class BadKeys(AdaptError):
    """The keys that are configured cannot be read or used."""


class BadTasksFile(AdaptError):
    """The file of tasks and their sources cannot be used; the fact ``mistakes`` has all that is wrong with it."""


class BadRequest(AdaptError):
    """The request is malformed."""


class BadTaskName(BadRequest):
    """The task name is not one we allow."""


class BadLabel(BadRequest):
    """What is to be an example's label cannot be one, or there is none."""


class Unauthorised(AdaptError):
    """No valid key came with the request."""


class Forbidden(AdaptError):
    """The key lacks the scope."""


class ForeignOrigin(Forbidden):
    """A page that came from elsewhere asks to change something."""


class UnknownHost(AdaptError):
    """The request's ``Host`` is no name of this server."""


class UnknownVersion(AdaptError):
    """The task has no such version."""


class UnknownExample(AdaptError):
    """The task has no such example."""


class UnknownJob(AdaptError):
    """There is no such training, or not any more."""


class UnknownRequest(AdaptError):
    """The input of that request is not kept."""


class RequestTimeout(AdaptError):
    """The request, its headers or its body, did not come within its time."""


class Conflict(AdaptError):
    """What is asked contradicts the present state."""


class BodyTooLarge(AdaptError):
    """The body passes its bound."""


class BadRange(AdaptError):
    """A range of bytes that holds none; ``size`` is the file's."""

    def __init__(self, message: str, *, size: int) -> None:
        super().__init__(message, size=size)
        self.size = size


class BadScores(AdaptError):
    """The adapter computed scores that are not finite."""


class QueueFull(AdaptError):
    """A bounded queue is full; ``retry_after`` says in how many seconds to try again."""

    def __init__(self, message: str, *, retry_after: float, **facts: object) -> None:
        super().__init__(message, **facts)
        self.retry_after = retry_after


class OverRate(QueueFull):
    """The key asks more often than it may."""


class OverQuota(QueueFull):
    """The key has asked as much as it may today."""


class TooManyConnections(QueueFull):
    """Every connection is taken."""


class RequestHeaderFieldsTooLarge(AdaptError):
    """The headers pass their bound."""


class ClientGone(AdaptError):
    """The client closed the connection before its answer."""


class ComputeFailed(AdaptError):
    """The forward pass raised."""


class NotReady(AdaptError):
    """The server is starting, or its device does not answer."""


class EngineLost(NotReady):
    """The engine's process has ended; another one is being started."""


class Draining(AdaptError):
    """The server is stopping."""


class StorageReadOnly(AdaptError):
    """The data folder cannot be written."""


class StorageFailed(AdaptError):
    """The disk with the data folder fails."""


class StoreAway(AdaptError):
    """The store that several servers share does not answer."""

    retry_after = 2.0


class StoreRefused(AdaptError):
    """The store that several servers share cannot be used as it is: its address, its credentials, its abilities."""


class SourceFailed(AdaptError):
    """A source does not give the file that is declared, or the file is wrong; ``retry_after`` is in seconds."""

    retry_after = 1.0


class DeadlineExceeded(AdaptError):
    """The request's time ran out."""


class StorageFull(AdaptError):
    """The disk is full."""


STATUS: dict[type[AdaptError], int] = {
    AdaptError: 500,
    BackboneError: 503,
    MediaError: 422,
    UnsupportedMedia: 415,
    BrokenMedia: 422,
    WrongModality: 422,
    MediaTooLarge: 413,
    OutsideClip: 422,
    AdapterError: 422,
    NotAnAdapter: 415,
    BrokenAdapter: 422,
    WrongBase: 422,
    AdapterTooLarge: 413,
    ImportRefused: 422,
    NoRoom: 507,
    TrainingError: 422,
    BadRequest: 400,
    BadTaskName: 400,
    BadLabel: 400,
    Unauthorised: 401,
    Forbidden: 403,
    ForeignOrigin: 403,
    UnknownHost: 421,
    UnknownTask: 404,
    UnknownVersion: 404,
    UnknownExample: 404,
    UnknownRequest: 404,
    UnknownJob: 404,
    RequestTimeout: 408,
    Conflict: 409,
    BodyTooLarge: 413,
    BadRange: 416,
    BadScores: 422,
    QueueFull: 429,
    OverRate: 429,
    OverQuota: 429,
    TooManyConnections: 503,
    RequestHeaderFieldsTooLarge: 431,
    ClientGone: 499,
    NotReady: 503,
    EngineLost: 503,
    Draining: 503,
    StorageReadOnly: 503,
    StorageFailed: 503,
    StoreAway: 503,
    StoreRefused: 503,
    SourceFailed: 503,
    DeadlineExceeded: 504,
    StorageFull: 507,
}


def _kinds(base: type[AdaptError]) -> dict[str, type[AdaptError]]:
    found = {base.__name__: base}
    for kind in base.__subclasses__():
        found |= _kinds(kind)
    return found


KINDS = _kinds(AdaptError)
"""Every class of ours by its name."""


def status_of(error: AdaptError) -> int:
    """The status of the nearest class in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem(error: AdaptError, instance: str | None = None) -> dict[str, object]:
    """An RFC 9457 problem document; the error's facts are its extension members."""
    words = re.findall(r"[A-Z][a-z]+", type(error).__name__)
    document: dict[str, object] = {
        "type": "urn:adaptserve:problem:" + "-".join(words).lower(),
        "title": " ".join(words).capitalize(),
        "status": status_of(error),
        "detail": error.message,
    }
    if instance:
        document["instance"] = instance
    return document | {k: v for k, v in error.facts.items() if k not in document and k != "instance"}
