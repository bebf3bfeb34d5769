"""The folder of a running server: whoever lives keeps it, and what the dead left goes at the next start."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from service.scratch import LONGEST, PREFIX, Scratch, _place, sweep


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Short enough, however deep pytest's own folder lies."""
    monkeypatch.setattr("service.scratch._place", lambda: tmp_path)
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


@pytest.mark.parametrize("length", [LONGEST, LONGEST + 1, 200])
def test_a_socket_fits_however_long_the_folder_for_temporary_files_is(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        place = Path(short) / ("x" * (length - len(short) - 1))
        place.mkdir()
        monkeypatch.undo()
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        with Scratch() as scratch, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(scratch.path / "engine-99.sock"))
            assert scratch.path.parent == _place() == (place if length <= LONGEST else Path("/tmp"))
            assert len(str(scratch.path / "engine-99.sock")) <= 103
