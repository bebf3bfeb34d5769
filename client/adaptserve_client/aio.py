"""AsyncClient: the same for asyncio. It only sends; what is asked and how it is read is in ``calls``."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from adaptserve_client import calls
from adaptserve_client.answers import BatchOutcome, Classification, Embedding, ServerInfo, Task, Upload, Version
from adaptserve_client.client import CONCURRENCY, RETRIES, TIMEOUT_S
from adaptserve_client.errors import (
    AdaptServeError,
    NoAnswerError,
    ProblemError,
    UnavailableError,
    refusal_of,
    translated,
)
from adaptserve_client.examples import AsyncExampleMethods
from adaptserve_client.history import AsyncHistoryMethods
from adaptserve_client.jobs import AsyncJobMethods
from adaptserve_client.portions import MAX_BYTES, MAX_ITEMS, Item, Loaded, Portion, Terms, portions
from adaptserve_client.retries import Attempts
from adaptserve_client.sources import File, Stream, content_of, name_of, stream_of
from adaptserve_client.traffic import AsyncTrafficMethods

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

T = TypeVar("T")
Outcomes = asyncio.Queue[BatchOutcome | BaseException | None]


class AsyncClient(AsyncExampleMethods, AsyncJobMethods, AsyncTrafficMethods, AsyncHistoryMethods):
    """Asks one server from asyncio; arguments, answers and errors are those of ``Client``. Files are read in threads.

    async with AsyncClient("http://127.0.0.1:8000") as client:
        print((await client.predict("photo.jpg", task="pets")).best)
        async for item in client.batch(Path("photos").glob("*.jpg"), task="pets"):
            print(item.name, item.error or item.answer.best.label)
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT_S,
        retries: int = RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
        user_agent: str | None = None,
    ) -> None:
        self.url = calls.address_of(url)
        self._timeout, self._retries = timeout, retries
        self._http = httpx.AsyncClient(
            base_url=self.url, headers=calls.headers_of(api_key, user_agent), transport=transport
        )
        self._http.event_hooks = {"response": [self._remember]}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _remember(self, response: httpx.Response) -> None:
        calls.remember(self._http.headers, response)

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def predict(self, file: File, *, task: str, **options: Unpack[calls.PredictOptions]) -> Classification:
        """Ask a task about one picture or clip: a path, bytes, or an open file. ``options``: PredictOptions."""
        return await self._send(calls.predict(await asyncio.to_thread(content_of, file), task, options))

    async def predict_many(
        self, file: File, *, tasks: Sequence[str], **options: Unpack[calls.PredictOptions]
    ) -> list[Classification]:
        """Ask several tasks about one picture or clip, which is decoded once. All answer, in order, or none."""
        return await self._send(calls.predict_many(await asyncio.to_thread(content_of, file), tasks, options))

    async def embed(self, file: File, *, frames: int | None = None) -> Embedding:
        """The frozen backbone's vector of a picture or clip, before any adapter. ``frames``: of a clip."""
        return await self._send(calls.embed(await asyncio.to_thread(content_of, file), frames))

    def batch(
        self,
        items: Iterable[Item],
        *,
        task: str,
        max_items: int = MAX_ITEMS,
        max_bytes: int = MAX_BYTES,
        concurrency: int = CONCURRENCY,
        **options: Unpack[calls.BatchOptions],
    ) -> AsyncGenerator[BatchOutcome, None]:
        """Ask a task about any number of paths, or names with bytes; yields outcomes in order, as ``Client.batch``."""
        terms = Terms(self.url, self._retries, max_items, max_bytes)
        calls.check(options, calls.BatchOptions)  # raises TypeError now rather than at the first outcome
        return self._batch(portions(items, terms), task, concurrency, options)

    async def upload(self, file: File, *, task: str, activate: bool = True) -> Upload:
        """Publish an adapter file as a task's next version; not ``activate`` stages it."""
        content = await asyncio.to_thread(stream_of, file)
        return await self._send(calls.upload(content, task, activate=activate, filename=name_of(file)))

    def tasks(self, prefix: str = "", *, limit: int | None = None) -> AsyncIterator[Task]:
        """The tasks that the key may see, by name, from as many pages as there are, of ``limit`` tasks each."""
        return self._pages(lambda after: calls.tasks(prefix, after, limit))

    async def task(self, task: str) -> Task:
        """A task with all its labels."""
        return await self._send(calls.one_task(task))

    def versions(self, task: str) -> AsyncIterator[Version]:
        """The versions that are kept of a task, oldest first."""
        return self._pages(lambda after: calls.versions(task, after))

    async def version(self, task: str, version: int) -> Version:
        """One version."""
        return await self._send(calls.one_version(task, version))

    async def download(self, task: str, version: int) -> bytes:
        """A version's file, as it was uploaded."""
        return await self._send(calls.download(task, version))

    async def activate(self, task: str, version: int) -> Task:
        """Let a version answer, at once."""
        return await self._send(calls.activate(task, version))

    async def deactivate(self, task: str) -> None:
        """Let no version of a task answer unless it is named; all are kept."""
        await self._send(calls.deactivate(task))

    async def delete(self, task: str, version: int | None = None) -> None:
        """Remove a version that is not the active one, or without ``version`` the task with all of them."""
        await self._send(calls.delete(task, version))

    async def server(self) -> ServerInfo:
        """Which backbone the server runs, at which size and precision, and how many tasks it has."""
        return await self._send(calls.server())

    async def metrics(self) -> str:
        """Prometheus' text of the whole server."""
        return await self._send(calls.metrics())

    async def stats(self, limit: int = 100) -> dict[str, Any]:
        """The same as one document, with the ``limit`` tasks that were asked most."""
        return await self._send(calls.stats(limit))

    async def health(self) -> bool:
        """True when the server's process answers."""
        return await self._is("livez")

    async def ready(self) -> bool:
        """True when its device computes, too."""
        return await self._is("readyz")

    async def _is(self, which: calls.Probe) -> bool:
        try:
            await self._once(calls.health(which))
        except (NoAnswerError, UnavailableError):
            return False
        return True

    async def _pages(self, page: Callable[[Any], calls.Request[tuple[list[T], Any]]]) -> AsyncIterator[T]:
        after = None
        while True:
            entries, after = await self._send(page(after))
            for entry in entries:
                yield entry
            if after is None:
                return

    async def _send(self, request: calls.Request[T]) -> T:
        attempts = Attempts(self._retries, repeatable=request.repeatable)
        while True:
            try:
                return await self._once(request)
            except AdaptServeError as error:
                pause = attempts.pause_after(error)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def _once(self, request: calls.Request[T]) -> T:
        content = request.content
        body = _in_threads(content.chunks()) if isinstance(content, Stream) else content
        with translated(self.url):
            response = await self._http.send(self._built(request, body))
        if not response.is_success:
            raise refusal_of(response)
        return request.read(response)

    def _built(self, request: calls.Request[Any], body: Any) -> httpx.Request:
        return self._http.build_request(**request.arguments(body, self._timeout))

    async def _batch(
        self, cut: Iterator[Portion], task: str, concurrency: int, options: calls.BatchOptions
    ) -> AsyncGenerator[BatchOutcome, None]:
        running: deque[tuple[asyncio.Task[None], Outcomes]] = deque()
        try:
            while True:
                while len(running) < max(1, concurrency) and (portion := await asyncio.to_thread(next, cut, None)):
                    out: Outcomes = asyncio.Queue()
                    running.append((asyncio.create_task(self._run(portion, out, task, options)), out))
                if not running:
                    return
                while (outcome := await running[0][1].get()) is not None:
                    if isinstance(outcome, BaseException):
                        raise outcome
                    yield outcome
                running.popleft()
        finally:
            for asking, _ in running:
                asking.cancel()
            await asyncio.gather(*(asking for asking, _ in running), return_exceptions=True)

    async def _run(self, portion: Portion, out: Outcomes, task: str, options: calls.BatchOptions) -> None:
        try:
            await self._ask(portion, out, task, options)
            out.put_nowait(None)
        except Exception as error:
            out.put_nowait(error)

    async def _ask(self, portion: Portion, out: Outcomes, task: str, options: calls.BatchOptions) -> None:
        def put() -> None:
            for outcome in portion.ready():
                out.put_nowait(outcome)

        put()
        if portion.alone:
            await self._alone(portion.alone, portion, task, options)
            put()
        pause: float | None = 0.0 if portion.left else None
        while pause is not None:
            await asyncio.sleep(pause)
            failure: AdaptServeError | None = None
            try:
                await self._stream(portion, put, task, options)
            except AdaptServeError as error:
                failure = error
            pause = portion.after(failure)
            put()

    async def _stream(self, portion: Portion, put: Callable[[], None], task: str, options: calls.BatchOptions) -> None:
        request = calls.batch(await asyncio.to_thread(portion.body), task, options)
        with translated(self.url):
            response = await self._http.send(self._built(request, request.content), stream=True)
            try:
                if not response.is_success:
                    await response.aread()
                    raise refusal_of(response)
                async for data in response.aiter_bytes():
                    portion.take(data)
                    put()
            finally:
                await response.aclose()

    async def _alone(self, item: Loaded, portion: Portion, task: str, options: calls.BatchOptions) -> None:
        try:
            content = await asyncio.to_thread(stream_of, item.content)
            answer = await self._send(calls.predict(content, task, options))
        except (ProblemError, OSError) as error:
            portion.fail(item, error)
        else:
            portion.settle(item, answer=answer)


async def _in_threads(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk
