"""A whole server in one process, without a supervisor: for tests, notebooks and measurements.

It builds the parts that the processes have, in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from service.engine.local import LocalEngine, local_engine
from service.engine.pixels import PixelMemory
from service.guardian import Guardian
from service.keys import Keys
from service.limits import pixel_rows
from service.settings import Settings
from service.sources.asking import DeclaredTasks
from service.sources.sources import Sources, running
from service.store.demo import publish_demo
from service.store.locks import FolderLock
from service.store.opening import followed, open_repository
from service.store.repository import Repository
from service.usage import USAGE, prepare_table
from service.watch.counts import Counts
from service.watch.metrics import Metrics
from service.watch.versions import Ledger
from service.web.app import FrontEnd, front_end

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alone:
    """An engine and a front end that asks it."""

    engine: LocalEngine
    front_end: FrontEnd


@contextmanager
def alone(settings: Settings, claim: FolderLock | None = None) -> Iterator[Alone]:
    """Ready to serve: the device has computed a first forward. ``claim``: of the data folder, from whoever has it.

    Raises BackboneError, Conflict and more.
    """
    metrics = Metrics()
    with claim or FolderLock(settings.data_dir), local_engine(settings, settings.device, metrics) as engine:
        repository = open_repository(settings)
        keys = Keys.read(settings.keys, settings.keys_file)
        prepare_table(settings.data_dir / USAGE, keys)
        try:
            for sentence in repository.recover():
                log.warning("recovery: %s", sentence)
            pixels = PixelMemory.private(pixel_rows(settings), engine.facts.layout.input_size)
            declared = DeclaredTasks(settings.source_wait_s)
            elsewhere = declared if settings.tasks_file else None
            with (
                followed(settings, repository),
                front_end(
                    settings, engine, repository, pixels, Counts(), _ledger(repository), metrics, elsewhere=elsewhere
                ) as front,
                ExitStack() as stack,
            ):
                if settings.backbone == "demo":
                    publish_demo(front.catalogue)
                if settings.has_sources:
                    make = partial(Sources, settings, front.catalogue, engine, metrics, declared.heard)
                    declared.connect(stack.enter_context(running(make)))
                yield Alone(engine, front)
        finally:
            repository.close()


def _ledger(repository: Repository) -> Ledger:
    """Whoever counts looks after the versions too."""
    guardian = Guardian(repository)

    async def ask(about: str | None) -> Any:
        return guardian.answer(about)

    return Ledger(guardian.heard, ask)
