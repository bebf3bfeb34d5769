"""The demo's adapters: published once, into a repository that never held anything.

It does not know how they were trained; adapters/training does.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from adapters.errors import AdaptError
from adapters.layout import Layout
from adapters.limits import FileLimits
from service.errors import StorageFailed, StorageFull, StorageReadOnly, StoreAway, StoreRefused
from service.store.catalogue import Catalogue
from service.store.events import Actor
from service.store.repository import Repository

log = logging.getLogger(__name__)

DEMO = Path(str(files("adapters"))) / "demo"
CHUNK = 1024 * 1024
DISK = (StorageFull, StorageReadOnly, StorageFailed, StoreAway, StoreRefused)
"""What another start may find mended."""
_BEGUN, _DONE = "begun\n", "done\n"


def publish_demo_in(repository: Repository, layout: Layout, limits: FileLimits) -> None:
    """``publish_demo`` for whoever has no catalogue."""
    publish_demo(Catalogue(repository, layout, limits, lambda _: None, cache_bytes=0))


def publish_demo(catalogue: Catalogue) -> None:
    """Publish the shipped files as tasks of their own names. A file that does not fit is skipped with a warning.

    It is done once for a data folder that never held anything, in the next start where the first was cut off. So a
    deleted task stays away, and a folder in use gets no tasks that a later release may ship: they can be pushed.
    """
    marker = catalogue.repository.root / "demo"
    begun = marker.exists()
    if catalogue.repository.had() if not begun else marker.read_text() == _DONE:
        return
    _mark(marker, _BEGUN)
    whole = True
    for path in sorted((DEMO / "tasks").glob("*.safetensors")):
        try:
            _publish(catalogue, path)
        except AdaptError as error:
            log.warning("the demo's %s is not served: %s", path.name, error.message)
            # A start at the backbone's own size publishes what one at another size cannot serve.
            other_size = error.facts.get("field") == "input.size"
            whole = whole and not (other_size or isinstance(error, DISK))
    if whole:
        _mark(marker, _DONE)


def _publish(catalogue: Catalogue, path: Path) -> None:
    header = catalogue.check(path)
    if catalogue.repository.had(header.config.task):
        return
    staging = catalogue.repository.open_staging(path.stat().st_size)
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                staging.write(chunk)
        catalogue.publish(staging, header.config.task, header, activate=True, by=Actor(origin="demo"))
    finally:
        staging.discard()


def _mark(marker: Path, state: str) -> None:
    """Where the disk refuses, the publishing fails as well and says so."""
    with suppress(OSError):
        marker.write_text(state)


def samples() -> list[Path]:
    """The shipped sample inputs, pictures and clips that no training saw."""
    return sorted(path for path in (DEMO / "samples").glob("*") if path.is_file())
