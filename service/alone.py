"""A whole server in one process, without a supervisor: for tests, notebooks and measurements.

It builds the parts that the processes have, in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.engine.local import LocalEngine, local_engine
from service.engine.pixels import PixelMemory
from service.keys import Keys
from service.limits import pixel_rows
from service.settings import Settings
from service.store.demo import publish_demo
from service.store.locks import FolderLock
from service.store.opening import followed, open_repository
from service.usage import USAGE, prepare_table
from service.watch.counts import Counts
from service.watch.metrics import Metrics
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
            with (
                followed(settings, repository),
                front_end(settings, engine, repository, pixels, Counts(), metrics) as front,
            ):
                if settings.backbone == "demo":
                    publish_demo(front.catalogue)
                yield Alone(engine, front)
        finally:
            repository.close()
