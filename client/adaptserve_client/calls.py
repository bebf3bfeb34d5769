"""What each method sends and how its answer is read: the one core of both clients. It sends nothing."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar, get_type_hints
from urllib.parse import quote

import httpx

from adaptserve_client.answers import Classification, Embedding, ServerInfo, Task, Upload, Version, read
from adaptserve_client.errors import BadAddressError, UnexpectedAnswerError
from adaptserve_client.sources import Stream
from adaptserve_client.version import __version__

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE = "ADAPTSERVE_URL"
GENERATION = "X-AdaptServe-Generation"
KEY_VARIABLES = ("ADAPTSERVE_API_KEY", "ADAPTSERVE_KEY")
CONNECT_TIMEOUT_S = 10.0
UPLOAD_TIMEOUT_S = 600.0
PATIENCE_S = 5.0
"""How much longer than a deadline the answer is waited for: the server's own 504 says more than a time-out here."""
Probe = Literal["livez", "readyz"]


class BatchOptions(TypedDict, total=False):
    """What a question may say beside the picture or clip; what is left out, the server decides.

    ``top_k``: labels in the answer, best first. ``version``: another than the active one. ``min_score``: leave out
    labels below it. ``abstain``: the best score from which the answer counts as ``accepted``. ``embedding``: the task's
    pooled vector, too. ``sticky``: what is equal here goes to one version, where several share the task's traffic.
    ``priority``: how urgent it is among what this key asks, 0 to 9; the server has 5 for what does not say. Of a clip:
    ``start`` and ``end``, and ``window`` and ``stride``, in seconds.
    """

    top_k: int
    version: int
    min_score: float
    abstain: float
    embedding: bool
    sticky: str
    start: float
    end: float
    window: float
    stride: float
    priority: int


class PredictOptions(BatchOptions, total=False):
    """The same of one question, and ``deadline``: seconds that its answer is worth waiting for, once it is sent."""

    deadline: float


@dataclass(frozen=True)
class Request(Generic[T]):
    """One call of the HTTP API. ``repeatable``: a second time changes nothing."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | Stream = b""
    timeout: float | None = None
    repeatable: bool = True

    def arguments(self, content: Any, default_timeout: float) -> dict[str, Any]:
        """Of httpx's ``build_request``."""
        seconds = default_timeout if self.timeout is None else self.timeout
        size = {"Content-Length": str(self.content.size)} if isinstance(self.content, Stream) else {}
        return {
            "method": self.method,
            "url": self.path,
            "params": dict(self.params),
            "headers": {**self.headers, **size},
            "content": content,
            "timeout": httpx.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT_S)),
        }


def address_of(url: str | None) -> str:
    """The server's URL: as given, else of the environment, else this machine's. Raises BadAddressError."""
    text = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise BadAddressError(f"the address cannot be used: {error}; write it like {DEFAULT_URL}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BadAddressError(f"the address cannot be used: '{text}'; write it like {DEFAULT_URL}")
    return text


def remember(headers: httpx.Headers, response: httpx.Response) -> None:
    """Send the number of the latest change that was made along from now on: any server of its store shows it then."""
    told, known = response.headers.get(GENERATION, ""), headers.get(GENERATION, "0")
    if told.isdecimal() and int(told) > int(known):
        headers[GENERATION] = told


def headers_of(api_key: str | None, user_agent: str | None = None) -> dict[str, str]:
    """What every request carries."""
    found = {"User-Agent": user_agent or f"adaptserve-client/{__version__}"}
    key = api_key or next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
    if key:
        found["Authorization"] = f"Bearer {key.strip()}"
    return found


def segment(name: object) -> str:
    """One path segment; whatever the name holds, it cannot climb to another address."""
    return quote(str(name), safe="").replace(".", "%2E")


def task_path(task: str, *more: object) -> str:
    """The address of a task, or of something below it."""
    return "/".join(["/v1/tasks", segment(task), *map(segment, more)])


def check(options: Mapping[str, Any], kind: type) -> None:
    """Raises TypeError for options that ``kind`` does not have."""
    known = get_type_hints(kind)
    if strange := sorted(set(options) - set(known)):
        raise TypeError(f"unknown option {', '.join(map(repr, strange))}; there are {', '.join(known)}")


def asked(options: BatchOptions) -> dict[str, Any]:
    """``params``, ``headers`` and ``timeout`` of a request with these options. Raises TypeError, ValueError."""
    check(options, PredictOptions)
    given: dict[str, Any] = {**options}
    params = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in given.items()
        if value is not None and name not in ("deadline", "priority", "sticky")
    }
    headers, timeout = dict[str, str](), None
    if given.get("sticky") is not None:
        headers["X-AdaptServe-Sticky"] = str(given["sticky"])
    if given.get("priority") is not None:
        headers["X-Priority"] = str(int(given["priority"]))
    deadline = given.get("deadline")
    if deadline is not None:
        if not 0 < deadline < math.inf:
            raise ValueError(f"deadline is a number of seconds above 0, not {deadline}")
        headers["X-Deadline-Ms"] = str(math.ceil(1000 * deadline))
        timeout = deadline + PATIENCE_S
    return {"params": params, "headers": headers, "timeout": timeout}


def predict(content: bytes | Stream, task: str, options: BatchOptions) -> Request[Classification]:
    """One picture or clip, one task."""
    return Request(
        "POST",
        task_path(task, "predict"),
        lambda r: read(Classification, json_of(r), timing=timing_of(r)),
        content=content,
        **asked(options),
    )


def predict_many(content: bytes, tasks: Sequence[str], options: BatchOptions) -> Request[list[Classification]]:
    """One picture or clip, several tasks."""
    fields = asked(options)
    fields["params"] = {"task": list(tasks)} | fields["params"]
    return Request(
        "POST", "/v1/predict",
        lambda r: [read(Classification, one, timing=timing_of(r)) for one in member(json_of(r), "results")],
        content=content, **fields,
    )  # fmt: skip


def embed(content: bytes | Stream, frames: int | None) -> Request[Embedding]:
    """One picture or clip, no task."""
    return Request(
        "POST", "/v1/embed", lambda r: read(Embedding, json_of(r), timing=timing_of(r)),
        params={} if frames is None else {"frames": frames}, content=content,
    )  # fmt: skip


def batch(content: bytes, task: str, options: BatchOptions) -> Request[None]:
    """Many items as a tar; the answer is a stream, which ``adaptserve_client.portions`` reads."""
    fields = asked(options)
    fields["headers"] = {"Content-Type": "application/x-tar"} | fields["headers"]
    return Request("POST", task_path(task, "batch"), lambda _: None, content=content, **fields)


def upload(content: bytes | Stream, task: str, *, activate: bool, filename: str = "") -> Request[Upload]:
    """An adapter file; its name helps the server to say what is wrong with it."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", filename)
    return Request(
        "PUT", task_path(task, "adapter"),
        lambda r: read(Upload, json_of(r), new=r.status_code == 201),
        params={"activate": str(activate).lower()},
        headers={"Content-Disposition": f'attachment; filename="{plain}"'} if plain else {},
        content=content, timeout=UPLOAD_TIMEOUT_S,
    )  # fmt: skip


def tasks(prefix: str, after: Any, limit: int | None) -> Request[tuple[list[Task], Any]]:
    """A page of the list, and where it goes on."""
    return page_of("/v1/tasks", "tasks", Task, {"prefix": prefix or None, "after": after, "limit": limit})


def versions(task: str, after: Any) -> Request[tuple[list[Version], Any]]:
    """A page of the history, and where it goes on."""
    return page_of(task_path(task, "versions"), "versions", Version, {"after": after})


def server() -> Request[ServerInfo]:
    """What the server runs."""
    return Request("GET", "/v1/tasks", lambda r: read(ServerInfo, json_of(r)), params={"limit": 1})


def one_task(task: str) -> Request[Task]:
    """A task with all its labels."""
    return Request("GET", task_path(task), lambda r: read(Task, json_of(r)))


def one_version(task: str, version: int) -> Request[Version]:
    """One version."""
    return Request("GET", task_path(task, "versions", version), lambda r: read(Version, json_of(r)))


def download(task: str, version: int) -> Request[bytes]:
    """A version's file."""
    path = task_path(task, "versions", version, "adapter")
    return Request("GET", path, lambda r: r.content, timeout=UPLOAD_TIMEOUT_S)


def activate(task: str, version: int) -> Request[Task]:
    """A version answers."""
    return Request("POST", task_path(task, "versions", version, "activate"), lambda r: read(Task, json_of(r)))


def deactivate(task: str) -> Request[None]:
    """No version answers unless it is named: the Open Inference Protocol's unload."""
    return Request("POST", f"/v2/repository/models/{segment(task)}/unload", lambda _: None)


def delete(task: str, version: int | None) -> Request[None]:
    """A version, or a task with all of them; again would be 404."""
    path = task_path(task) if version is None else task_path(task, "versions", version)
    return Request("DELETE", path, lambda _: None, repeatable=False)


def health(which: Probe) -> Request[dict[str, Any]]:
    """What the server says of itself."""
    return Request("GET", f"/{which}", json_of, timeout=CONNECT_TIMEOUT_S)


def metrics() -> Request[str]:
    """Prometheus' text."""
    return Request("GET", "/metrics", lambda r: r.text)


def stats(limit: int) -> Request[dict[str, Any]]:
    """What the server has counted."""
    return Request("GET", "/v1/stats", json_of, params={"limit": str(limit)})


def json_of(response: httpx.Response) -> Any:
    """The body. Raises UnexpectedAnswerError."""
    try:
        return response.json()
    except ValueError as error:
        raise UnexpectedAnswerError(
            f"{response.url} answered with something that is no JSON; is it AdaptServe?"
        ) from error


def timing_of(response: httpx.Response) -> dict[str, float]:
    """Milliseconds by stage, from ``Server-Timing``."""
    found = re.findall(r"(\w+);dur=([0-9.]+)", response.headers.get("server-timing", ""))
    return {name: float(value) for name, value in found}


def member(document: Any, name: str) -> Any:
    """A member that must be there. Raises UnexpectedAnswerError."""
    try:
        return document[name]
    except (KeyError, TypeError) as error:
        raise UnexpectedAnswerError(f"the answer has no '{name}'; is it AdaptServe?") from error


def page_of(path: str, name: str, kind: type[T], params: Mapping[str, Any]) -> Request[tuple[list[T], Any]]:
    """A page of a list, and where it goes on."""

    def entries(response: httpx.Response) -> tuple[list[T], Any]:
        document = json_of(response)
        return [read(kind, one) for one in member(document, name)], document.get("next")

    return Request("GET", path, entries, params={key: value for key, value in params.items() if value is not None})
