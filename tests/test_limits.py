"""One set of bounds: each is a setting, training and serving share the defaults, and a refusal names the setting."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from adapters.backbone import Backbone
from adapters.config import SiteConfig
from adapters.errors import AdapterTooLarge, MediaTooLarge
from adapters.file import read_adapter, write_adapter
from adapters.header import refusals
from adapters.layout import MIN_SLOT_RANK
from adapters.limits import MEDIA_SETTINGS, FileLimits, MediaLimits, bound, needed, variable
from adapters.media import Excerpt, Sampling, decode_clip, decode_image
from adapters.training.run import MAX_HISTORY, TrainingPlan
from service.limits import file_limits, media_limits
from service.settings import Settings, read_settings
from tests.houses import CLIP, Kit, house, problem
from tests.media_samples import clip, encode, scene
from tests.models import Spec, random_adapter, small_backbone

NUMBERS = [field.name for field in fields(MediaLimits) if isinstance(field.default, int | float)]
SETTINGS = {variable(name) for name in Settings.model_fields}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(tmp_path_factory.mktemp("limits") / "vit")


def named(message: str) -> set[str]:
    """The environment variables in a message; all of them must exist."""
    found = set(re.findall(r"ADAPTSERVE_\w+", message))
    assert found <= SETTINGS, message
    return found


def test_training_and_a_server_without_settings_have_the_same_bounds() -> None:
    plan = TrainingPlan.__dataclass_fields__
    assert media_limits(Settings()) == MediaLimits() == plan["limits"].default_factory()
    assert file_limits(Settings(), 0) == FileLimits(max_rank=0) == plan["served"].default_factory()


def test_every_bound_on_media_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(NUMBERS, 1):
        monkeypatch.setenv(variable(MEDIA_SETTINGS.get(name, name)), str(number))
    expected = dict(zip(NUMBERS, range(1, 1 + len(NUMBERS)), strict=True))
    assert media_limits(read_settings()) == replace(media_limits(Settings()), **expected)


def refused(field: str) -> MediaTooLarge:
    """What a picture or clip gets that is over one bound."""
    tight = replace(MediaLimits(), **{field: 0.1 if field.endswith("_s") else 1})
    with pytest.raises(MediaTooLarge) as caught:  # noqa: PT012
        if field == "decode_timeout_s":
            decode_image(encode(scene(), "PNG"), replace(tight, decode_timeout_s=-1))
        elif field in ("max_pixels", "max_scan_pixels"):
            decode_image(encode(scene(), "JPEG", progressive=True), tight)
        elif field == "max_windows":
            decode_clip(clip(), Sampling(4, excerpt=Excerpt(window=0.1)), tight)
        else:
            decode_clip(clip(), 4, tight)
    return caught.value


@pytest.mark.parametrize("field", NUMBERS)
def test_a_refused_picture_or_clip_names_its_setting(field: str) -> None:
    assert named(refused(field).message) == {variable(MEDIA_SETTINGS.get(field, field))}


def test_bounds_are_inclusive() -> None:
    bound("max_side", "{value}", 5, 5)


def sites(rank: int) -> tuple[SiteConfig, ...]:
    return (SiteConfig(site="parallel", blocks=(0, 1), rank=rank),)


CASES: list[tuple[Spec, FileLimits, set[str]]] = [
    (Spec(sites(17)), FileLimits(max_rank=16), {"ADAPTSERVE_MAX_RANK"}),
    (Spec(classes=9), FileLimits(max_classes=8), {"ADAPTSERVE_MAX_CLASSES"}),
    (Spec(frames=33), FileLimits(), {"ADAPTSERVE_MAX_CLIP_FRAMES", "ADAPTSERVE_MAX_BATCH_ROWS"}),
    (Spec(sites(4)), FileLimits(max_file_bytes=1000), {"ADAPTSERVE_MAX_ADAPTER_BYTES"}),
    (Spec(sites(4)), FileLimits(max_header_bytes=1000), {"ADAPTSERVE_MAX_ADAPTER_HEADER_BYTES"}),
]


@pytest.mark.parametrize(("spec", "limits", "settings"), CASES)
def test_what_a_server_refuses_is_known_before(
    backbone: Backbone, tmp_path: Path, spec: Spec, limits: FileLimits, settings: set[str]
) -> None:
    adapter = random_adapter(backbone, spec, 1)
    path = tmp_path / "a.safetensors"
    write_adapter(path, adapter.config, adapter.tensors)
    with pytest.raises(AdapterTooLarge) as caught:
        read_adapter(path, backbone.layout, limits)
    assert named(caught.value.message) == settings
    (foreseen,) = refusals(adapter.config, backbone.layout, limits)
    assert named(foreseen.message) == set(re.findall(r"ADAPTSERVE_\w+", needed(foreseen))) == settings
    assert refusals(adapter.config, backbone.layout, FileLimits(max_frames=128)) == []


def test_the_size_that_is_foreseen_is_enough(backbone: Backbone, tmp_path: Path) -> None:
    """With the settings that the refusal names, the file is taken: also with all that training tells of itself."""
    adapter = random_adapter(backbone, Spec(sites(8), classes=300), 1)
    path, small = tmp_path / "a.safetensors", FileLimits(max_file_bytes=1, max_header_bytes=1)
    line = {"epoch": 199, "loss": 0.12345, "held_out_loss": 0.12345, "accuracy": 0.12345, "seconds": 12345.12345}
    told = adapter.config.model_copy(update={"training": {"history": [line] * MAX_HISTORY, "recipe": "x" * 2000}})
    write_adapter(path, told, adapter.tensors)
    header, file = (int(str(r.facts["value"])) for r in refusals(adapter.config, backbone.layout, small))
    limits = FileLimits(max_file_bytes=file, max_header_bytes=header)
    assert read_adapter(path, backbone.layout, limits).config == told
    assert file < path.stat().st_size + 100_000


def test_the_rank_of_a_slot(backbone: Backbone) -> None:
    layout = backbone.layout
    assert layout.slot_rank() == max(MIN_SLOT_RANK, layout.default_rank()) == MIN_SLOT_RANK
    assert layout.slot_rank(24) == 24
    # A paper's file of rank 64 fits wherever that is a sixth of the width at most.
    for width, rank in ((192, 32), (384, 64), (768, 64), (96, 16)):
        assert replace(layout, sites={"parallel": ((width, width),) * 2}, parameters=0).slot_rank() == rank


def test_the_setting_that_a_refused_upload_names_lets_it_in(kit: Kit, tmp_path: Path) -> None:
    wide = kit.file(1, Spec(sites(20), 5))[0]
    long = kit.file(2, replace(CLIP, frames=40))[0]
    with house(kit.settings(data_dir=tmp_path / "1")) as home:
        first = problem(home.put("wide", wide), 413)["detail"]
        second = problem(home.put("long", long), 413)["detail"]
    given = dict(re.findall(r"(ADAPTSERVE_\w+)=(\d+)", f"{first} {second}"))
    assert given.keys() == {"ADAPTSERVE_MAX_RANK", "ADAPTSERVE_MAX_CLIP_FRAMES", "ADAPTSERVE_MAX_BATCH_ROWS"}
    changes = {name.removeprefix("ADAPTSERVE_").lower(): int(value) for name, value in given.items()}
    with house(kit.settings(data_dir=tmp_path / "2", **changes)) as home:
        assert home.put("wide", wide).status_code == home.put("long", long).status_code == 201
