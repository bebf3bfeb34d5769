"""What can go wrong with a call, as one tree of exceptions; a problem document (RFC 9457) becomes a ``ProblemError``.

AdaptServeError
├── BadAddressError             the server's URL cannot be used
├── NoAnswerError               no connection, or it broke before the answer was whole
│   └── TimedOutError           no answer in time
├── UnexpectedAnswerError       an answer that is none of AdaptServe's: a proxy's page, another server
└── ProblemError                the server says what is wrong: status, type, title, detail, retry_after, request_id
    ├── BadRequestError         400  a parameter is wrong
    ├── AuthenticationError     401  no key came, or an unknown one
    ├── ForbiddenError          403  the key does not reach this
    ├── NotFoundError           404
    │   ├── UnknownTaskError         no such task, or no version of it is active
    │   └── UnknownVersionError      the task has no such version
    ├── ConflictError           409  the present state forbids it
    ├── TooLargeError           413  a picture, clip or adapter passes a limit of the server
    ├── UnsupportedError        415  not a format that is read
    ├── UnprocessableError      422  readable, but wrong
    │   ├── BrokenMediaError         a picture or clip that does not decode
    │   ├── WrongModalityError       a clip for a task that takes pictures, or the reverse
    │   ├── BrokenAdapterError       a file that is no valid adapter
    │   └── WrongBaseError           an adapter that was made for another backbone
    ├── OverloadedError         429  a queue is full; retry_after says when to come back
    └── ServerError             5xx  not the caller's fault
        ├── UnavailableError    503  starting, stopping, or the device does not answer
        ├── DeadlineError       504  the deadline passed
        └── NoRoomError         507  no room on the server's disk or device
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx


class AdaptServeError(Exception):
    """Base of everything that this package raises about a call."""


class BadAddressError(AdaptServeError, ValueError):
    """The server's URL cannot be used."""


class NoAnswerError(AdaptServeError):
    """No connection, or one that broke; ``url`` was asked, ``sent`` tells whether the server may have seen it."""

    def __init__(self, reason: str, *, url: str, sent: bool) -> None:
        super().__init__(f"no answer from {url}: {reason}")
        self.url = url
        self.sent = sent


class TimedOutError(NoAnswerError):
    """The server did not answer in time."""


class UnexpectedAnswerError(AdaptServeError):
    """What answered is no AdaptServe server, or one of another age."""


class ProblemError(AdaptServeError):
    """The server's word for what is wrong.

    ``type`` is a URN that stays the same, ``detail`` a sentence for people, ``request_id`` what the server's log has,
    ``retry_after`` seconds or None, ``members`` all that the document holds: the field, the limit, the value seen.
    """

    def __init__(self, document: Mapping[str, Any], *, retry_after: float | None = None) -> None:
        self.members = dict(document)
        self.status = int(document.get("status", 0))
        self.title = str(document.get("title", ""))
        self.detail = str(document.get("detail", document.get("error", "")))
        self.type = str(document.get("type", "about:blank"))
        self.request_id: str | None = document.get("request_id")
        self.retry_after = retry_after
        super().__init__(f"{self.detail} ({self.status} {self.title.lower()})")


class BadRequestError(ProblemError):
    """A parameter is wrong."""


class AuthenticationError(ProblemError):
    """No key came, or an unknown one."""


class ForbiddenError(ProblemError):
    """The key's scope or its list of tasks does not reach this."""


class NotFoundError(ProblemError):
    """There is no such thing."""


class UnknownTaskError(NotFoundError):
    """No such task, or no version of it is active."""


class UnknownVersionError(NotFoundError):
    """The task has no such version."""


class ConflictError(ProblemError):
    """The present state forbids it."""


class TooLargeError(ProblemError):
    """A picture, clip, adapter or request passes a limit of the server."""


class UnsupportedError(ProblemError):
    """Not a format that is read."""


class UnprocessableError(ProblemError):
    """Readable, but wrong."""


class BrokenMediaError(UnprocessableError):
    """A picture or clip that does not decode."""


class WrongModalityError(UnprocessableError):
    """A clip for a task that takes pictures, or the reverse."""


class BrokenAdapterError(UnprocessableError):
    """A file that is no valid adapter."""


class WrongBaseError(UnprocessableError):
    """An adapter that was made for another backbone."""


class OverloadedError(ProblemError):
    """A queue of the server is full; ``retry_after`` says in how many seconds to come back."""


class ServerError(ProblemError):
    """Not the caller's fault."""


class UnavailableError(ServerError):
    """Starting, stopping, or the device does not answer."""


class DeadlineError(ServerError):
    """The deadline passed."""


class NoRoomError(ServerError):
    """No room on the server's disk or device."""


_BY_STATUS: dict[int, type[ProblemError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
    415: UnsupportedError,
    422: UnprocessableError,
    429: OverloadedError,
    503: UnavailableError,
    504: DeadlineError,
    507: NoRoomError,
}
_URN = "urn:adaptserve:problem:"
_BY_TYPE: dict[str, type[ProblemError]] = {
    f"{_URN}unknown-task": UnknownTaskError,
    f"{_URN}unknown-version": UnknownVersionError,
    f"{_URN}broken-media": BrokenMediaError,
    f"{_URN}wrong-modality": WrongModalityError,
    f"{_URN}broken-adapter": BrokenAdapterError,
    f"{_URN}wrong-base": WrongBaseError,
}


def problem_of(document: Mapping[str, Any], retry_after: float | None = None) -> ProblemError:
    """A problem document as the class of its type, else of its status."""
    try:
        status = int(document.get("status", 0))
    except (TypeError, ValueError):
        status, document = 0, {**document, "status": 0}
    kind = _BY_TYPE.get(str(document.get("type")))
    if kind is None:
        kind = _BY_STATUS.get(status, ServerError if status >= 500 else ProblemError)
    return kind(document, retry_after=retry_after)


def refusal_of(response: httpx.Response) -> ProblemError:
    """What a response that is no success says; its body must have been read.

    One without a problem document, of a proxy say, gets one made of its status.
    """
    document: dict[str, Any] = {}
    try:
        found = response.json()
        if isinstance(found, dict):
            document = found
    except ValueError:
        pass
    status = response.status_code
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "unknown status"
    said = document.get("detail") or document.get("error")
    document |= {
        "status": status,
        "title": document.get("title") or phrase,
        "detail": said if isinstance(said, str) else f"{response.url} answered {status} {phrase}",
        "request_id": document.get("request_id") or response.headers.get("x-request-id"),
    }
    return problem_of(document, _seconds(response.headers.get("retry-after")))


def _seconds(retry_after: str | None) -> float | None:
    """Seconds that ``Retry-After`` asks for: a number, or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None


@contextmanager
def translated(base: str) -> Iterator[None]:
    """The transport's errors as ours; ``base`` is the server's URL, where an error does not say what was asked."""
    try:
        yield
    except httpx.TimeoutException as error:
        sent = not isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout)
        raise TimedOutError("it did not come in time", url=_url(error, base), sent=sent) from error
    except httpx.TransportError as error:
        message = str(error) or type(error).__name__
        sent = not isinstance(error, httpx.ConnectError | httpx.UnsupportedProtocol)
        raise NoAnswerError(message, url=_url(error, base), sent=sent) from error
    except httpx.DecodingError as error:
        raise UnexpectedAnswerError(f"{base} sent what cannot be unpacked: {error}") from error


def _url(error: httpx.RequestError, base: str) -> str:
    try:
        return str(error.request.url)
    except RuntimeError:  # the error came before there was a request
        return base
