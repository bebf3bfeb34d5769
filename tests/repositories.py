"""A repository of few tasks, and how tests fill it and open it again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.store.repository import Repository, VersionInfo


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    made = Repository(tmp_path / "data", max_tasks=3, max_versions=4)
    assert made.recover() == []
    yield made
    made.close()


def put(repository: Repository, task: str, content: bytes, activate: bool = True) -> tuple[VersionInfo, bool]:
    staging = repository.open_staging(1000)
    try:
        staging.write(content)
        return repository.publish(task, staging, activate=activate)
    finally:
        staging.discard()


def reopened(repository: Repository) -> Repository:
    repository.close()
    again = Repository(repository.root)
    again.recover()
    return again
