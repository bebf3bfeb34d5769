"""Which store a server has, by its settings: a folder of its own, or one that several servers share.

Each of its processes opens one; the process that the others answer to also follows what is shared.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from service.settings import Settings
from service.store.follower import Follower
from service.store.journal import Journal
from service.store.mirror import Mirror
from service.store.objects import open_objects
from service.store.recovery import recover_examples
from service.store.repository import Repository
from service.store.staging import disk_errors
from service.store.truth import Truth

log = logging.getLogger(__name__)

WRITE_RETRIES = 2
"""Of a request of somebody who waits; whoever follows asks again anyway."""


def open_repository(settings: Settings, journal: Journal | None = None, owner: str = "") -> Repository:
    """What this process knows of the store; ``owner`` as ``Repository`` has it. Raises StoreRefused and more."""
    bounds: dict[str, Any] = {
        "max_tasks": settings.max_tasks, "max_versions": settings.max_versions_per_task, "owner": owner,
        "server": settings.server_name,
    }  # fmt: skip
    if not settings.store:
        return Repository(
            settings.data_dir, journal, history_file_bytes=settings.history_file_bytes,
            max_history_bytes=settings.max_history_bytes, **bounds,
        )  # fmt: skip
    return Mirror(
        settings.folder, Truth(open_objects(settings.store, timeout_s=settings.store_timeout_s,
        retries=WRITE_RETRIES)), journal, max_bytes=settings.store_cache_bytes,
        max_waiting=settings.max_store_waiting, **bounds,
    )  # fmt: skip


@contextmanager
def followed(settings: Settings, repository: Repository) -> Iterator[None]:
    """Bring in what other servers change, for as long as this lasts; nothing to do for a folder of this server's own.

    For one process of the server, after ``recover`` and before any other reads. Raises StoreRefused.
    """
    if not isinstance(repository, Mirror):
        yield
        return
    with disk_errors():  # of what is this server's own: examples, trainings
        shutil.rmtree(settings.data_dir / "staging", ignore_errors=True)
        (settings.data_dir / "staging").mkdir()
    for sentence in recover_examples(settings.data_dir):  # they are this server's own
        log.warning("recovery: %s", sentence)
    own = settings.data_dir / "tasks"
    if own.is_dir() and any(own.iterdir()):
        log.warning(
            "%s has tasks of its own, which are not served while there is a store; `adaptserve store copy %s %s` "
            "brings them there", settings.data_dir, settings.data_dir, settings.store,
        )  # fmt: skip
    objects = open_objects(settings.store, timeout_s=min(settings.store_timeout_s, 2.0), retries=0)
    follower = Follower(repository, Truth(objects), every_s=settings.store_poll_s)
    try:
        follower.start()
        yield
    finally:
        follower.close()
