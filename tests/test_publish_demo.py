"""The demo's tasks: published once into a folder that never held anything; what is deleted stays deleted."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from service.alone import Alone, alone
from service.settings import Settings
from service.store.catalogue import Catalogue
from service.store.demo import publish_demo
from service.store.events import SERVER

DEMO_TASKS = ["animal-or-vehicle", "digit-collage", "digits", "moving-digit"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    """For its backbone and bank; each test has a repository of its own."""
    data = tmp_path_factory.mktemp("data")
    with alone(Settings(data_dir=data, device="cpu", threads=1, decode_workers=1)) as home:
        yield home


@contextmanager
def catalogue(server: Alone, data: Path) -> Iterator[Catalogue]:
    """A start on ``data``, with the demo published."""
    from service.store.repository import Repository

    repository = Repository(data)
    try:
        repository.recover()
        known = server.front_end.catalogue
        made = Catalogue(repository, known.layout, known._limits, known.release, cache_bytes=2**20)
        publish_demo(made)
        yield made
    finally:
        repository.close()


def test_a_server_without_data_has_them(server: Alone) -> None:
    assert list(server.front_end.catalogue.names()) == DEMO_TASKS


@pytest.mark.parametrize("gone", [DEMO_TASKS, DEMO_TASKS[:1]], ids=["all", "one"])
def test_deleted_ones_stay_deleted(server: Alone, tmp_path: Path, gone: list[str]) -> None:
    with catalogue(server, tmp_path) as first:
        for name in gone:
            first.delete_task(name, SERVER)
    for _ in range(2):
        with catalogue(server, tmp_path) as again:
            assert list(again.names()) == [name for name in DEMO_TASKS if name not in gone]


def test_a_start_at_another_size_of_pictures_leaves_them_to_the_next(server: Alone, tmp_path: Path) -> None:
    known = server.front_end.catalogue
    with patch.object(known, "layout", replace(known.layout, input_size=(64, 64))), catalogue(server, tmp_path) as none:
        assert list(none.names()) == []
    with catalogue(server, tmp_path) as again:
        assert list(again.names()) == DEMO_TASKS


def test_a_folder_from_before_the_mark_stays_as_it_was_left(server: Alone, tmp_path: Path) -> None:
    with catalogue(server, tmp_path) as first:
        for name in DEMO_TASKS:
            first.delete_task(name, SERVER)
    (tmp_path / "demo").unlink()
    with catalogue(server, tmp_path) as again:
        assert list(again.names()) == []
        assert not (tmp_path / "demo").exists()


def test_a_first_start_that_was_cut_off_is_ended_by_the_next(server: Alone, tmp_path: Path) -> None:
    with (
        patch.object(Catalogue, "publish", autospec=True, side_effect=[KeyboardInterrupt]),
        pytest.raises(KeyboardInterrupt),
        catalogue(server, tmp_path),
    ):
        pass
    with catalogue(server, tmp_path) as again:
        assert list(again.names()) == DEMO_TASKS


def test_a_disk_that_refused_some_is_asked_again_and_deleted_ones_stay_away(server: Alone, tmp_path: Path) -> None:
    inner = Catalogue.publish

    def publish(self: Catalogue, staging, task, *args, **kwargs):  # type: ignore[no-untyped-def]
        if task == "digits":
            with patch("service.store.files.sync_folder", side_effect=OSError(errno.ENOSPC, "full")):
                return inner(self, staging, task, *args, **kwargs)
        return inner(self, staging, task, *args, **kwargs)

    with patch.object(Catalogue, "publish", publish), catalogue(server, tmp_path) as first:
        assert list(first.names()) == [name for name in DEMO_TASKS if name != "digits"]
        first.delete_task("digit-collage", SERVER)
    with catalogue(server, tmp_path) as again:
        assert list(again.names()) == [name for name in DEMO_TASKS if name != "digit-collage"]
        again.delete_task("digits", SERVER)
    with catalogue(server, tmp_path) as again:
        assert list(again.names()) == ["animal-or-vehicle", "moving-digit"]


def test_a_folder_in_use_gets_none(server: Alone, tmp_path: Path) -> None:
    manifest = tmp_path / "tasks/mine/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"next": 4, "active": None, "versions": {}}))  # a task that was deleted
    with catalogue(server, tmp_path) as found:
        assert list(found.names()) == []


def test_they_come_back_with_a_new_folder(server: Alone, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        with catalogue(server, tmp_path / folder) as found:
            assert list(found.names()) == DEMO_TASKS
