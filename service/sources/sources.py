"""All sources of a server together: the watched folder, and the file of tasks.

It knows what they are made of; it does not know in which process it is.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from service.engine.interface import Link
from service.messages import BRING, Told
from service.settings import Settings
from service.sources.declaring import Declaring
from service.sources.taking import Taking
from service.sources.watching import Watching
from service.store.catalogue import Catalogue
from service.watch.metrics import Metrics

CLOSE_S = 10.0
OTHER_THREADS = 4


class Sources:
    """``begin`` before anybody is served, then ``run``; all on one event loop."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, engine: Link, metrics: Metrics,
        send: Callable[[Told], None],
    ) -> None:  # fmt: skip
        """``send`` reaches every front end. Raises BadTasksFile."""
        taking = Taking(settings, catalogue, engine, metrics)
        self._watching = Watching(settings, taking) if settings.watch_folder else None
        self._declaring = Declaring(settings, taking, send) if settings.tasks_file else None
        self._most = settings.max_source_fetches
        self._asked: set[asyncio.Task[None]] = set()

    def heard(self, message: Told) -> None:
        """What a front end says."""
        if self._declaring is None:
            return
        if message.name == BRING:
            task = asyncio.ensure_future(self._declaring.answer(message.value))
            self._asked.add(task)
            task.add_done_callback(self._asked.discard)
        else:
            self._declaring.tell()

    async def begin(self) -> None:
        """Bring in what is to be there before anybody is served."""
        threads = ThreadPoolExecutor(3 * self._most + OTHER_THREADS, "source")
        asyncio.get_running_loop().set_default_executor(threads)  # a source that is slow holds up nothing else
        if self._declaring is not None:
            await self._declaring.begin()

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for one in (self._watching, self._declaring):
                if one is not None:
                    group.create_task(one.run())


@contextmanager
def running(make: Callable[[], Sources]) -> Iterator[Callable[[Told], None]]:
    """On a thread of its own, for a server that is one process; what to tell it by. Raises as ``begin``."""
    began, failures = threading.Event(), list[Exception]()
    made: list[tuple[Sources, asyncio.Task[None] | None, asyncio.AbstractEventLoop]] = []

    async def work() -> None:
        try:
            sources = make()
            made.append((sources, asyncio.current_task(), asyncio.get_running_loop()))
            await sources.begin()
        except Exception as error:
            failures.append(error)
            return
        finally:
            began.set()
        await sources.run()

    def run() -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(work())

    def tell(message: Told) -> None:
        sources, _, loop = made[0]
        loop.call_soon_threadsafe(sources.heard, message)

    thread = threading.Thread(target=run, name="sources", daemon=True)
    thread.start()
    began.wait()
    try:
        if failures:
            raise failures[0]
        yield tell
    finally:
        if made and not failures:
            _, task, loop = made[0]
            assert task is not None
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(task.cancel)
        thread.join(CLOSE_S)
