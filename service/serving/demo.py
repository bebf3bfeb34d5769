"""The demo's adapters: published once, into a repository that never held anything.

It does not know how they were trained; adapters/training does.
"""

from __future__ import annotations

import logging
from pathlib import Path

import adapters
from adapters.errors import AdaptError
from service.serving.catalogue import Catalogue

log = logging.getLogger(__name__)

DEMO = Path(adapters.__file__).parent / "demo"
CHUNK = 1024 * 1024


def publish_demo(catalogue: Catalogue) -> None:
    """Publish the shipped files as tasks of their own names. A file that does not fit is skipped with a warning.

    Once deleted, a demo task stays away: the repository remembers that it was there.
    """
    if catalogue.repository.tasks():
        return
    for path in sorted((DEMO / "tasks").glob("*.safetensors")):
        try:
            adapter = catalogue.read(path)
            staging = catalogue.repository.open_staging(path.stat().st_size)
            try:
                with path.open("rb") as file:
                    while chunk := file.read(CHUNK):
                        staging.write(chunk)
                catalogue.publish(staging, adapter.config.task, adapter, activate=True)
            finally:
                staging.discard()
        except AdaptError as error:
            log.warning("the demo's %s is not served: %s", path.name, error.message)


def samples() -> list[Path]:
    """The shipped sample inputs, pictures and clips that no training saw."""
    return sorted(path for path in (DEMO / "samples").glob("*") if path.is_file())
