"""A client of AdaptServe: pictures and clips in, labels out. It needs httpx alone.

    from adaptserve_client import Client

    with Client("http://127.0.0.1:8000") as client:
        print(client.predict("photo.jpg", task="pets").best)

``AsyncClient`` is the same for asyncio; ``adaptserve_client.errors`` draws the tree of what is raised.
"""

from adaptserve_client.aio import AsyncClient
from adaptserve_client.answers import (
    BatchOutcome,
    Classification,
    Embedding,
    ScoredLabel,
    ServerInfo,
    Task,
    Upload,
    Version,
    Window,
)
from adaptserve_client.calls import BatchOptions, PredictOptions
from adaptserve_client.client import Client
from adaptserve_client.errors import (
    AdaptServeError,
    AuthenticationError,
    BadAddressError,
    BadRequestError,
    BrokenAdapterError,
    BrokenMediaError,
    ConflictError,
    DeadlineError,
    ForbiddenError,
    NoAnswerError,
    NoRoomError,
    NotFoundError,
    OverloadedError,
    ProblemError,
    ServerError,
    TimedOutError,
    TooLargeError,
    UnavailableError,
    UnexpectedAnswerError,
    UnknownTaskError,
    UnknownVersionError,
    UnprocessableError,
    UnsupportedError,
    WrongBaseError,
    WrongModalityError,
)
from adaptserve_client.examples import Addition, Feedback, LabelledExample
from adaptserve_client.history import Change
from adaptserve_client.jobs import TrainedVersion, Training
from adaptserve_client.traffic import TaskTraffic, VersionAgreement, VersionReport
from adaptserve_client.version import __version__

__all__ = [
    "AdaptServeError",
    "Addition",
    "AsyncClient",
    "AuthenticationError",
    "BadAddressError",
    "BadRequestError",
    "BatchOptions",
    "BatchOutcome",
    "BrokenAdapterError",
    "BrokenMediaError",
    "Change",
    "Classification",
    "Client",
    "ConflictError",
    "DeadlineError",
    "Embedding",
    "Feedback",
    "ForbiddenError",
    "LabelledExample",
    "NoAnswerError",
    "NoRoomError",
    "NotFoundError",
    "OverloadedError",
    "PredictOptions",
    "ProblemError",
    "ScoredLabel",
    "ServerError",
    "ServerInfo",
    "Task",
    "TaskTraffic",
    "TimedOutError",
    "TooLargeError",
    "TrainedVersion",
    "Training",
    "UnavailableError",
    "UnexpectedAnswerError",
    "UnknownTaskError",
    "UnknownVersionError",
    "UnprocessableError",
    "UnsupportedError",
    "Upload",
    "Version",
    "VersionAgreement",
    "VersionReport",
    "Window",
    "WrongBaseError",
    "WrongModalityError",
    "__version__",
]
