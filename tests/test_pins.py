"""Pinned tasks: there before the server is ready, never put out, and whichever version is active."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapters.errors import NoRoom
from service.alone import alone
from service.errors import EngineLost
from service.web.pins import Pins
from tests.houses import House, Kit, Process, house, photograph, until

PICTURE = photograph()


def tier(home: House, task: str) -> str:
    """Where its active version is."""
    digest = home.built.catalogue.repository.version(task, None).digest
    return home.local.bank.tier(digest)


def test_pinned_tasks_are_there_at_the_start_and_stay_through_a_flood_of_others(kit: Kit, tmp_path: Path) -> None:
    settings = kit.settings(data_dir=tmp_path, slots=3, pinned_tasks="kept, later")
    with house(settings) as home:
        for number in range(6):
            home.put(f"task-{number}", kit.file(number)[0]).raise_for_status()
        home.put("kept", kit.file(10)[0]).raise_for_status()
    with house(settings) as home:  # nobody has asked for anything
        assert tier(home, "kept") == "device"
        assert home.client.get("/v1/tasks/kept").json()["residency"] == "device"
        for _ in range(2):
            for number in range(6):
                assert home.ask(f"task-{number}", PICTURE).status_code == 200
                assert tier(home, "kept") == "device"
        assert home.local.bank.stats().evictions["device"] >= 8

        # A new version takes the place of the old one, and what comes later is pinned too.
        old = home.built.catalogue.repository.version("kept", None).digest
        home.put("kept", kit.file(11)[0]).raise_for_status()
        home.put("later", kit.file(12)[0]).raise_for_status()
        assert until(lambda: len(pinned_now(home)) == 2 and old not in pinned_now(home).values())
        for number in range(6):
            assert home.ask(f"task-{number}", PICTURE).status_code == 200
        assert (tier(home, "kept"), tier(home, "later")) == ("device", "device")
        assert home.local.bank.tier(old) != "device"

        # One that is deleted, or answers no more, holds no slot.
        home.client.delete("/v1/tasks/later").raise_for_status()
        assert until(lambda: list(pinned_now(home)) == ["kept"])


def pinned_now(home: House) -> dict[str, str]:
    return dict(home.local._pinned)


def test_more_than_the_slots_hold_are_refused_at_the_start(kit: Kit, tmp_path: Path) -> None:
    with (
        pytest.raises(NoRoom, match=r"2 tasks are pinned \(ADAPTSERVE_PINNED_TASKS\), and the device has 2 slots"),
        alone(kit.settings(data_dir=tmp_path, slots=2, pinned_tasks="a,b")),
    ):
        pass


@pytest.mark.parametrize("given", ["A", "a,a", "a b", ","])
def test_names_that_are_none_stop_the_start(kit: Kit, given: str) -> None:
    if given == ",":
        assert kit.settings(pinned_tasks=given).pinned_tasks == given
    else:
        with pytest.raises(ValueError, match=r"is no task's name|is named twice"):
            kit.settings(pinned_tasks=given)


def test_a_pinned_task_that_cannot_run_is_logged_and_holds_up_nobody(
    kit: Kit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = kit.settings(data_dir=tmp_path, slots=3, pinned_tasks="broken,kept")
    with house(settings) as home:
        for number, task in enumerate(("broken", "kept")):
            home.put(task, kit.file(number)[0]).raise_for_status()
        path = home.built.catalogue.repository.path("broken", 1)
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    with house(settings) as home:
        assert tier(home, "kept") == "device"
        assert home.ask("kept", PICTURE).status_code == 200
        assert "pinned task" in caplog.text


def test_a_look_that_fails_is_not_the_last(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with alone(kit.settings(data_dir=tmp_path, slots=3, pinned_tasks="a")) as home:
        pins: Pins = home.front_end.pins
        looks, failures = [], [EngineLost("it has ended"), RuntimeError("a mistake")]

        async def settle() -> None:
            looks.append(1)
            if failures:
                raise failures.pop()
            raise asyncio.CancelledError

        monkeypatch.setattr("service.web.pins.LOOK_S", 0.0)
        monkeypatch.setattr(pins, "settle", settle)
        monkeypatch.setattr(pins, "_wanted", lambda: {"a": "new"})
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(pins.follow())
        assert len(looks) == 3


@pytest.mark.torture
def test_the_next_engine_has_them_before_the_server_is_ready_again(kit: Kit, tmp_path: Path) -> None:
    given = [
        "--data-dir", str(tmp_path / "data"), "--backbone", str(kit.folder / "vit"), "--weights", "random:0",
        "--device", "cpu",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTSERVE_PINNED_TASKS", "kept,absent")
        patch.setenv("ADAPTSERVE_SLOTS", "3")
        with Process(given, tmp_path / "log") as server:
            server.client.put("/v1/tasks/kept/adapter", content=kit.file(1)[0]).raise_for_status()
            (engine,) = server.family("service.engine.process")
            engine.kill()
            assert until(lambda: server.client.get("/readyz").status_code == 503)
            assert until(lambda: server.client.get("/readyz").status_code == 200, 60)
            assert server.client.get("/v1/tasks/kept").json()["residency"] == "device"
