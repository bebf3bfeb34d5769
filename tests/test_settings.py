"""Settings: from the environment, bounded, frozen, documented."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from adapters.clip_formats import CONTAINERS
from service.settings import Settings, markdown_table, read_settings

ROOT = Path(__file__).parent.parent


def test_the_documentation_lists_every_setting() -> None:
    assert markdown_table() in (ROOT / "docs/SETTINGS.md").read_text()
    assert all(field.description for field in Settings.model_fields.values())


def test_the_environment_and_overrides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADAPTSERVE_SLOTS", "7")
    (tmp_path / "env").write_text("ADAPTSERVE_PORT=9000\nADAPTSERVE_SLOTS=9\nOTHER=1\n")
    settings = read_settings(tmp_path / "env", host=None, backbone="vit_base_patch16_224")
    assert (settings.slots, settings.port, settings.host) == (7, 9000, "127.0.0.1")
    assert settings.backbone == "vit_base_patch16_224"


def test_values_out_of_range_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTSERVE_SLOTS", "0")
    with pytest.raises(ValidationError, match="slots"):
        read_settings()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        read_settings().slots = 3


def test_lists_of_names_are_known_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings().clip_formats == tuple(CONTAINERS)
    monkeypatch.setenv("ADAPTSERVE_CLIP_CODECS", "h264, VP9,h264")
    assert read_settings().clip_codecs == ("h264", "vp9")
    monkeypatch.setenv("ADAPTSERVE_CLIP_FORMATS", "mp4,ogg")
    with pytest.raises(ValidationError, match="ogg is not known; name some of mp4, matroska"):
        read_settings()


def test_a_store_that_is_a_path_is_the_data_folder() -> None:
    assert read_settings(store="/srv/tasks").data_dir == Path("/srv/tasks")
    assert read_settings(store="/srv/tasks").store == ""
    shared = read_settings(store="s3://bucket/tasks", data_dir=Path("/srv"))
    assert (shared.store, shared.folder) == ("s3://bucket/tasks", Path("/srv/mirror"))
    with pytest.raises(ValidationError, match="two folders"):
        read_settings(store="/srv/tasks", data_dir=Path("/srv"))
