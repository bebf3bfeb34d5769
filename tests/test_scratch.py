"""The folder of a running server: whoever lives keeps it, and what the dead left goes at the next start."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from service.scratch import PREFIX, Scratch, sweep


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_there_until_its_end_and_for_this_user_alone(temporary: Path) -> None:
    with Scratch() as one, Scratch() as other:
        sweep()
        assert one.path != other.path
        assert set(temporary.iterdir()) == {one.path, other.path}
        assert one.path.stat().st_mode & 0o077 == 0
    assert list(temporary.iterdir()) == []


def test_what_a_dead_server_left_goes_and_nothing_else(temporary: Path) -> None:
    dead = Scratch()
    (dead.path / "engine-0.sock").touch()
    dead._lock.close()  # as the kernel does
    for name in (f"{PREFIX}unlocked", "other"):
        (temporary / name).mkdir()
    (temporary / "other" / "lock").touch()
    (temporary / f"{PREFIX}link").symlink_to(temporary / "other")  # one who may not be trusted could make it
    with Scratch() as living:
        left = {path.name for path in temporary.iterdir()}
        assert left == {f"{PREFIX}unlocked", "other", f"{PREFIX}link", living.path.name}
        assert (temporary / "other" / "lock").exists()
