"""A file that is replaced: the old one or the new one, and nothing beside it."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import pytest

from adapters.atomic import replacing


def test_the_new_file_takes_the_place_of_the_old_one_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path, mode=0o640) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.name.startswith(".file.")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_private_and_may_be_written_elsewhere_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    path = tmp_path / "file"
    with replacing(path, within=tmp_path / "staging", prefix="a.", suffix=".manifest") as temporary:
        assert temporary.parent == tmp_path / "staging"
        assert (temporary.name[:2], temporary.suffix) == ("a.", ".manifest")
    assert path.stat().st_mode & 0o777 == 0o600
    assert list((tmp_path / "staging").iterdir()) == []


def test_what_took_the_temporary_files_place_is_what_counts(tmp_path: Path) -> None:
    """Libraries that write by name may do the same trick."""
    path = tmp_path / "file"
    with replacing(path, mode=0o644) as temporary:
        other = tmp_path / "other"
        other.write_bytes(b"whole")
        other.replace(temporary)
    assert path.read_bytes() == b"whole"
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["the block", "fsync", "rename"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, at: str, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"new")
            if at == "the block":
                raise error

    with (
        patch.object(os, "fsync", side_effect=error if at == "fsync" else None),
        patch.object(Path, "replace", side_effect=error if at == "rename" else None),
        pytest.raises(type(error)),
    ):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
