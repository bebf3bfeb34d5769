"""Client: a server, asked from plain Python. It only sends; what is asked and how it is read is in ``calls``."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from adaptserve_client import calls
from adaptserve_client.answers import BatchOutcome, Classification, Embedding, ServerInfo, Task, Upload, Version
from adaptserve_client.errors import (
    AdaptServeError,
    NoAnswerError,
    ProblemError,
    UnavailableError,
    refusal_of,
    translated,
)
from adaptserve_client.examples import ExampleMethods
from adaptserve_client.history import HistoryMethods
from adaptserve_client.jobs import JobMethods
from adaptserve_client.portions import MAX_BYTES, MAX_ITEMS, Item, Loaded, Portion, Terms, portions
from adaptserve_client.retries import Attempts
from adaptserve_client.sources import File, Stream, content_of, name_of, stream_of
from adaptserve_client.traffic import TrafficMethods

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

T = TypeVar("T")

TIMEOUT_S = 120.0
RETRIES = 4
CONCURRENCY = 2


class Client(ExampleMethods, JobMethods, TrafficMethods, HistoryMethods):
    """Asks one server. Threads may share it; close it, or use it in a ``with`` statement.

        with Client("http://127.0.0.1:8000") as client:
            print(client.predict("photo.jpg", task="pets").best)

    ``url``: else ADAPTSERVE_URL, else http://127.0.0.1:8000. ``api_key``: else ADAPTSERVE_API_KEY or ADAPTSERVE_KEY,
    else none. ``timeout``: seconds that a server may be silent. ``retries``: further tries after 429, 503 and a refused
    or broken connection, after 0.25, 0.5, 1, … seconds less a random part, and not before ``Retry-After`` says.

    Every method raises the errors of ``adaptserve_client.errors``, and OSError for a file that cannot be read.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT_S,
        retries: int = RETRIES,
        transport: httpx.BaseTransport | None = None,
        user_agent: str | None = None,
    ) -> None:
        self.url = calls.address_of(url)
        self._timeout, self._retries = timeout, retries
        self._http = httpx.Client(base_url=self.url, headers=calls.headers_of(api_key, user_agent), transport=transport)
        self._http.event_hooks = {"response": [partial(calls.remember, self._http.headers)]}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def predict(self, file: File, *, task: str, **options: Unpack[calls.PredictOptions]) -> Classification:
        """Ask a task about one picture or clip: a path, bytes, or an open file. ``options``: PredictOptions."""
        return self._send(calls.predict(content_of(file), task, options))

    def predict_many(
        self, file: File, *, tasks: Sequence[str], **options: Unpack[calls.PredictOptions]
    ) -> list[Classification]:
        """Ask several tasks about one picture or clip, which is decoded once. All answer, in order, or none."""
        return self._send(calls.predict_many(content_of(file), tasks, options))

    def embed(self, file: File, *, frames: int | None = None) -> Embedding:
        """The frozen backbone's vector of a picture or clip, before any adapter. ``frames``: of a clip."""
        return self._send(calls.embed(content_of(file), frames))

    def batch(
        self,
        items: Iterable[Item],
        *,
        task: str,
        max_items: int = MAX_ITEMS,
        max_bytes: int = MAX_BYTES,
        concurrency: int = CONCURRENCY,
        **options: Unpack[calls.BatchOptions],
    ) -> Generator[BatchOutcome, None, None]:
        """Ask a task about any number of paths, or names with bytes; yields outcomes in order, as they are done.

        What fails is an outcome with an ``error``; the others go on. A stream that the server cuts short is gone on
        with. Raises only where nothing more can be had: no such task, no key, no server after all tries.

        At most ``concurrency`` requests of ``max_items`` and ``max_bytes`` are under way, and that much is in memory; a
        larger item goes by itself, straight from its file.
        """
        terms = Terms(self.url, self._retries, max_items, max_bytes)
        calls.check(options, calls.BatchOptions)  # raises TypeError now rather than at the first outcome
        return self._batch(portions(items, terms), task, concurrency, options)

    def upload(self, file: File, *, task: str, activate: bool = True) -> Upload:
        """Publish an adapter file as a task's next version; not ``activate`` stages it."""
        return self._send(calls.upload(stream_of(file), task, activate=activate, filename=name_of(file)))

    def tasks(self, prefix: str = "", *, limit: int | None = None) -> Iterator[Task]:
        """The tasks that the key may see, by name, from as many pages as there are, of ``limit`` tasks each."""
        return self._pages(lambda after: calls.tasks(prefix, after, limit))

    def task(self, task: str) -> Task:
        """A task with all its labels."""
        return self._send(calls.one_task(task))

    def versions(self, task: str) -> Iterator[Version]:
        """The versions that are kept of a task, oldest first."""
        return self._pages(lambda after: calls.versions(task, after))

    def version(self, task: str, version: int) -> Version:
        """One version."""
        return self._send(calls.one_version(task, version))

    def download(self, task: str, version: int) -> bytes:
        """A version's file, as it was uploaded."""
        return self._send(calls.download(task, version))

    def activate(self, task: str, version: int) -> Task:
        """Let a version answer, at once."""
        return self._send(calls.activate(task, version))

    def deactivate(self, task: str) -> None:
        """Let no version of a task answer unless it is named; all are kept."""
        self._send(calls.deactivate(task))

    def delete(self, task: str, version: int | None = None) -> None:
        """Remove a version that is not the active one, or without ``version`` the task with all of them."""
        self._send(calls.delete(task, version))

    def server(self) -> ServerInfo:
        """Which backbone the server runs, at which size and precision, and how many tasks it has."""
        return self._send(calls.server())

    def metrics(self) -> str:
        """Prometheus' text of the whole server."""
        return self._send(calls.metrics())

    def stats(self, limit: int = 100) -> dict[str, Any]:
        """The same as one document, with the ``limit`` tasks that were asked most."""
        return self._send(calls.stats(limit))

    def health(self) -> bool:
        """True when the server's process answers."""
        return self._is("livez")

    def ready(self) -> bool:
        """True when its device computes, too."""
        return self._is("readyz")

    def _is(self, which: calls.Probe) -> bool:
        try:
            self._once(calls.health(which))
        except (NoAnswerError, UnavailableError):
            return False
        return True

    def _pages(self, page: Callable[[Any], calls.Request[tuple[list[T], Any]]]) -> Iterator[T]:
        after = None
        while True:
            entries, after = self._send(page(after))
            yield from entries
            if after is None:
                return

    def _send(self, request: calls.Request[T]) -> T:
        attempts = Attempts(self._retries, repeatable=request.repeatable)
        while True:
            try:
                return self._once(request)
            except AdaptServeError as error:
                pause = attempts.pause_after(error)
                if pause is None:
                    raise
            time.sleep(pause)

    def _once(self, request: calls.Request[T]) -> T:
        content = request.content
        body = content.chunks() if isinstance(content, Stream) else content
        with translated(self.url):
            response = self._http.send(self._built(request, body))
        if not response.is_success:
            raise refusal_of(response)
        return request.read(response)

    def _built(self, request: calls.Request[Any], body: Any) -> httpx.Request:
        return self._http.build_request(**request.arguments(body, self._timeout))

    def _batch(
        self, cut: Iterator[Portion], task: str, concurrency: int, options: calls.BatchOptions
    ) -> Generator[BatchOutcome, None, None]:
        running: deque[_Running] = deque()
        try:
            while True:
                while len(running) < max(1, concurrency) and (portion := next(cut, None)):
                    running.append(_Running(self, portion, task, options))
                if not running:
                    return
                yield from running[0].outcomes()
                running.popleft()
        finally:
            for one in running:
                one.stop.set()

    def _stream(self, portion: Portion, task: str, options: calls.BatchOptions) -> Iterator[None]:
        """Ask once; comes back whenever some of the answer has been taken."""
        request = calls.batch(portion.body(), task, options)
        with translated(self.url):
            response = self._http.send(self._built(request, request.content), stream=True)
            try:
                if not response.is_success:
                    response.read()
                    raise refusal_of(response)
                for data in response.iter_bytes():
                    portion.take(data)
                    yield
            finally:
                response.close()

    def _alone(self, item: Loaded, portion: Portion, task: str, options: calls.BatchOptions) -> None:
        try:
            answer = self._send(calls.predict(stream_of(item.content), task, options))
        except (ProblemError, OSError) as error:
            portion.fail(item, error)
        else:
            portion.settle(item, answer=answer)


class _Running:
    """A thread that asks one portion until it is done; what comes out is taken by another."""

    def __init__(self, client: Client, portion: Portion, task: str, options: calls.BatchOptions) -> None:
        self.stop = threading.Event()
        self._out: queue.SimpleQueue[BatchOutcome | BaseException | None] = queue.SimpleQueue()
        self._client, self._portion, self._task, self._options = client, portion, task, options
        threading.Thread(target=self._run, name="adaptserve-batch", daemon=True).start()

    def outcomes(self) -> Iterator[BatchOutcome]:
        """Its outcomes, as they are done. Raises what ended it."""
        while (outcome := self._out.get()) is not None:
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome

    def _run(self) -> None:
        try:
            self._ask()
            self._out.put(None)
        except BaseException as error:
            self._out.put(error)

    def _ask(self) -> None:
        portion = self._portion
        self._put()
        if portion.alone:
            self._client._alone(portion.alone, portion, self._task, self._options)
            self._put()
        pause: float | None = 0.0 if portion.left else None
        while pause is not None and not self.stop.wait(pause):
            failure: AdaptServeError | None = None
            try:
                for _ in self._client._stream(portion, self._task, self._options):
                    self._put()
                    if self.stop.is_set():
                        return
            except AdaptServeError as error:
                failure = error
            pause = portion.after(failure)
            self._put()

    def _put(self) -> None:
        for outcome in self._portion.ready():
            self._out.put(outcome)
