"""Heads that see time, or two vectors, in files, pages and bounds: what is written, taken, and refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from adapters.backbone import Backbone
from adapters.bank import PAGE, SimpleBank, pack
from adapters.config import VideoConfig
from adapters.errors import AdapterTooLarge, BrokenAdapter
from adapters.file import Adapter, read_adapter, write_adapter, write_tensors
from adapters.header import read_header, refusals
from adapters.heads import HEAD_SHARE, VALUES, group_pages, groups_of, pages_of, rank_of_head, width_of_head
from adapters.limits import FileLimits
from adapters.media import Sampling
from adapters.meta import AdapterMeta
from tests.heads import SPECS, TIMED, adapters, backbone
from tests.models import Spec, config_of, random_adapter

__all__ = ["adapters", "backbone"]
DEMO = Path(__file__).parent.parent / "adapters" / "demo" / "tasks"


@pytest.mark.parametrize("number", TIMED)
def test_a_head_takes_as_many_pages_as_it_says(backbone: Backbone, adapters: list[Adapter], number: int) -> None:
    adapter = adapters[number]
    packed = pack(adapter, backbone.layout, 8, torch.float32)
    assert len(packed.pages) == len(packed.page_bias) == packed.meta.pages == pages_of(adapter.config)
    groups = groups_of(adapter.config) * group_pages(adapter.config.head, adapter.config.frames)
    assert packed.meta.class_pages == len(packed.pages) - groups
    assert packed.pages.shape[1:] == (PAGE, backbone.layout.width)


def test_a_bank_of_one_thread_makes_room_for_them(backbone: Backbone, adapters: list[Adapter]) -> None:
    bank = SimpleBank(backbone.layout, {}, dtype=torch.float32, device=torch.device("cpu"))
    for number, adapter in enumerate(adapters):
        bank.put(str(number), adapter)
    assert bank.slabs.page_count >= sum(pages_of(adapter.config) for adapter in adapters)
    assert all(len(bank[str(number)].pages) == pages_of(adapter.config) for number, adapter in enumerate(adapters))


def test_a_file_without_such_a_head_says_nothing_of_it() -> None:
    assert VideoConfig(frames=4).model_dump_json() == '{"frames":4,"sampling":"uniform"}'
    told = VideoConfig(frames=4, head="frames", head_rank=3).model_dump_json()
    assert json.loads(told) == {"frames": 4, "sampling": "uniform", "head": "frames", "head_rank": 3}
    assert Sampling.of(VideoConfig.model_validate_json(told)) == Sampling.of(VideoConfig(frames=4))


@pytest.mark.parametrize("path", sorted(DEMO.glob("*.safetensors")), ids=lambda path: path.stem)
def test_the_config_of_an_older_file_is_written_as_it_was(path: Path) -> None:
    with safe_open(path, "pt") as file:
        told = file.metadata()["adaptserve"]
    assert read_header(path, FileLimits()).config.model_dump_json(exclude_none=True) == told


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"head": "later"}, "video.head"),
        ({"head": "mean", "head_rank": 2}, "video"),
        ({"head": "mean", "head_width": 2}, "video"),
        ({"head": "frames", "head_width": 2}, "video"),
        ({"head": "attention"}, "video"),
        ({"head": "attention", "head_width": 15, "head_rank": 1}, "video"),
        ({"head": "frames", "head_rank": -1}, "video.head_rank"),
        ({"head": "attention", "head_width": 5000}, "video.head_width"),
    ],
)
def test_a_head_that_contradicts_itself_is_refused(
    backbone: Backbone, tmp_path: Path, fields: dict[str, Any], field: str
) -> None:
    adapter = random_adapter(backbone, SPECS[2], 0)
    config = adapter.config.model_dump(mode="json", exclude_none=True)
    config["video"] = {"frames": 4, **fields}
    path = tmp_path / "a.safetensors"
    write_tensors(path, adapter.tensors, {"adaptserve": json.dumps(config)})
    with pytest.raises(BrokenAdapter) as caught:
        read_adapter(path, backbone.layout, FileLimits())
    assert caught.value.facts["field"] == field


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (Spec((), 49, frames=4, head="frames"), "labels"),
        (Spec((), 3, frames=4, head="frames", head_rank=49), "video.head_rank"),
        (Spec((), 3, frames=4, head="attention", head_width=46), "video.head_width"),
        (Spec((), 3, frames=49, head="attention", head_width=15), "video.frames"),
    ],
)
def test_a_head_wider_than_the_backbone_is_refused(backbone: Backbone, tmp_path: Path, spec: Spec, field: str) -> None:
    with pytest.raises(BrokenAdapter, match="on a backbone of this width") as caught:
        backbone.layout.check(config_of(backbone, spec), max_rank=99, max_classes=999, max_frames=99)
    assert caught.value.facts["field"] == field


@pytest.mark.parametrize("number", TIMED)
def test_tensors_of_another_shape_name_themselves(
    backbone: Backbone, adapters: list[Adapter], number: int, tmp_path: Path
) -> None:
    """Of other frames, of none, too many, or not a number."""
    adapter, path = adapters[number], tmp_path / "a.safetensors"

    def read(tensors: dict[str, torch.Tensor], **video: int) -> None:
        old = adapter.config.video
        assert old is not None
        config = adapter.config.model_copy(update={"video": old.model_copy(update=video)})
        write_adapter(path, config, tensors)
        read_adapter(path, backbone.layout, FileLimits())

    read(dict(adapter.tensors))
    with pytest.raises(BrokenAdapter, match="has shape"):
        read(dict(adapter.tensors), frames=adapter.config.frames + 1)
    for name in (name for name in adapter.tensors if name.startswith("head.")):
        with pytest.raises(BrokenAdapter, match=f"{name} is missing"):
            read({n: t for n, t in adapter.tensors.items() if n != name})
        with pytest.raises(BrokenAdapter, match=f"{name} has shape"):
            read({**adapter.tensors, name: adapter.tensors[name][:-1]})
        bad = adapter.tensors[name].clone()
        bad.view(-1)[-1] = torch.nan
        with pytest.raises(BrokenAdapter, match=f"{name} holds 1 values that are NaN"):
            read({**adapter.tensors, name: bad})
    with pytest.raises(BrokenAdapter, match="belongs to no site"):
        read({**adapter.tensors, "head.more.weight": torch.ones(1)})


def test_a_head_larger_than_a_server_takes_names_the_setting(backbone: Backbone) -> None:
    config = config_of(backbone, Spec((), 20, frames=8, head="frames"))
    assert pages_of(config) == 2 + 2 * 8
    layout = backbone.layout
    layout.check(config, max_rank=8, max_classes=18 * PAGE, max_frames=32)
    with pytest.raises(AdapterTooLarge, match="ADAPTSERVE_MAX_CLASSES=288") as caught:
        layout.check(config, max_rank=8, max_classes=17 * PAGE, max_frames=32)
    assert caught.value.facts == {"field": "video.head", "limit": 272, "value": 288, "settings": ["max_classes"]}
    assert [r.facts["field"] for r in refusals(config, layout, FileLimits(max_classes=100))] == ["video.head"]
    assert not refusals(config, layout, FileLimits())


@given(
    st.integers(48, 1024), st.integers(1, 64), st.integers(2, 2000), st.floats(2e5, 1e9),
)  # fmt: skip
def test_training_makes_heads_within_their_share(width: int, frames: int, classes: int, parameters: float) -> None:
    rank = rank_of_head(width, frames, classes, int(parameters))
    values = width_of_head(width, frames, classes, int(parameters))
    assert 0 <= rank <= min(width, classes)
    assert rank or classes <= width
    assert values % VALUES == 0
    assert VALUES <= values <= width // PAGE * VALUES
    most = max(HEAD_SHARE * int(parameters), classes * width / 2)
    size = rank * (frames * width + classes) if rank else classes * frames * width
    assert size + classes <= most or rank == 1
    size = values // VALUES * PAGE * (width + frames) + classes * (values + 1)
    assert size <= most or values == VALUES


def test_meta_of_a_plain_head_is_as_it_was(backbone: Backbone, adapters: list[Adapter]) -> None:
    meta = AdapterMeta.of(adapters[1].config, backbone.layout, digest="", parameters=1)
    assert (meta.head, meta.groups, meta.pages) == ("mean", 0, 1)


def test_a_head_of_two_vectors_counts_twice_and_takes_no_other_norm_or_head(backbone: Backbone) -> None:
    config = config_of(backbone, SPECS[8])
    assert pages_of(config) == 2 * pages_of(config.model_copy(update={"pool": "cls"})) == 8
    bounds = {"max_rank": 64, "max_frames": 8}
    backbone.layout.check(config, max_classes=128, **bounds)
    with pytest.raises(AdapterTooLarge, match="as large as one of 128 classes") as caught:
        backbone.layout.check(config, max_classes=112, **bounds)
    assert caught.value.facts["field"] == "pool"
    for changes in ({"norm": "trained"}, {"head": "frames", "frames": 4}):
        with pytest.raises(ValueError, match="cls\\+avg"):
            config_of(backbone, replace(SPECS[8], **changes))
