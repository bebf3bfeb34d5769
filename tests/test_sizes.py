"""Sizes of pictures: what timm computes at that size, one fingerprint for all, and words for what cannot be."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from adapters import Adapter, Predictor
from adapters.backbone import Backbone, fingerprint_of, load_backbone
from adapters.config import InputConfig, Size, size_of, size_text
from adapters.errors import BackboneError, BrokenAdapter
from adapters.file import write_adapter
from adapters.layout import Layout
from service.engine.interface import Facts
from service.settings import Settings, read_settings
from tests.houses import CLIP, IMAGE, House, Kit, house, photograph, scores_of
from tests.media_samples import clip
from tests.models import FAMILIES, Spec, random_adapter, small_backbone

NAIVE = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
WIDE: dict[str, Size] = {"dinov2": (42, 70), "eva02": (42, 70), "deepseek": (42, 70)}
"""For patches of 14; for all others 48x80."""
ONE_SIZE = {"cait", "hiera", "hieradet", "sam"}
"""Whose positions timm does not resample."""
OLD_ADAPTER = Spec((), 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every family with its weights beside its config."""
    root = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        save_file(small_backbone(root / family, family).model.state_dict(), root / family / "model.safetensors")
    return root


def load(folder: Path, family: str, size: Any = None, weights: str = "") -> Backbone:
    return load_backbone(str(folder / family), weights, "cpu", "float32", size)


def timms(folder: Path, family: str, size: Size, state: dict[str, Tensor]) -> Any:
    """timm's own model at that size, with the state as its converter gives it."""
    model = timm.create_model(f"local-dir:{folder / family}", num_classes=0, img_size=size)
    convert = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about how timm resamples tables
        model.load_state_dict(convert(dict(state), model) if convert else state)
    return model.eval()


def images(size: Size, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ONE_SIZE])
@torch.inference_mode()
def test_features_are_timms_at_that_size_to_the_bit(folder: Path, family: str) -> None:
    size = WIDE.get(family, (48, 80))
    own, other = load(folder, family), load(folder, family, size)
    assert other.layout.input_size == other.input.size == size
    assert own.layout.fingerprint == other.layout.fingerprint == fingerprint_of(own.model)
    assert (own.input.mean, own.input.crop_pct) == (other.input.mean, other.input.crop_pct)
    plain = timms(folder, family, size, own.model.state_dict())
    plain.requires_grad_(False)  # torch sums in another order for what may need a gradient
    assert torch.equal(other.pool(other.features(images(size)), "backbone", "frozen"), plain(images(size)))


@torch.inference_mode()
def test_half_precision_is_resampled_as_timm_loads_the_file(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "half.safetensors"
    save_file({n: t.half() for n, t in load(folder, "dinov2").model.state_dict().items()}, file)
    other = load(folder, "dinov2", "42x70", str(file))
    name, args = FAMILIES["dinov2"]
    overlay = {"file": str(file)}
    plain = timm.create_model(
        name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **args | {"img_size": (42, 70)}
    ).eval()
    assert torch.equal(other.features(images((42, 70))).normed, plain.forward_features(images((42, 70))))


@torch.inference_mode()
def test_random_weights_are_those_of_the_own_size_resampled(folder: Path) -> None:
    own, other = load(folder, "vit", weights="random:3"), load(folder, "vit", 48, "random:3")
    assert own.layout.fingerprint == other.layout.fingerprint
    plain = timms(folder, "vit", (48, 48), own.model.state_dict())
    assert torch.equal(other.features(images((48, 48))).normed, plain.forward_features(images((48, 48))))


def test_the_own_size_by_name_is_the_model_as_it_was(folder: Path) -> None:
    own, named = load(folder, "vit"), load(folder, "vit", "32")
    assert own.layout == named.layout
    assert own.layout.resampled == ""
    assert all(torch.equal(t, named.model.state_dict()[n]) for n, t in own.model.state_dict().items())


@pytest.mark.parametrize("family", ["vit", "beit", "gap"])
def test_the_fingerprint_is_that_of_the_weights_whatever_the_config_says(
    folder: Path, tmp_path: Path, family: str
) -> None:
    """A folder that names another size than its weights have: they were resampled, and fingerprinted so, before."""
    own = load(folder, family)
    config = json.loads((folder / family / "config.json").read_text())
    config["model_args"]["img_size"], config["pretrained_cfg"]["input_size"] = 64, [3, 64, 64]
    (tmp_path / family).mkdir()
    (tmp_path / family / "config.json").write_text(json.dumps(config))
    weights = str(folder / family / "model.safetensors")
    there, asked = load(tmp_path, family, None, weights), load(folder, family, 64, weights)
    back = load(tmp_path, family, 32, weights)
    assert there.layout.input_size == asked.layout.input_size == (64, 64)
    assert {one.layout.fingerprint for one in (own, there, asked, back)} == {fingerprint_of(own.model)}
    before = fingerprint_of(there.model)  # as such a folder's adapters were made
    assert there.layout.resampled == asked.layout.resampled == before != own.layout.fingerprint
    old = random_adapter(there, OLD_ADAPTER, 0)
    old_base = old.config.base.model_copy(update={"fingerprint": before})
    Adapter(old.config.model_copy(update={"base": old_base}), old.tensors, old.digest).check(there.layout)


def test_a_checkpoint_that_was_saved_at_a_wide_size_goes_back_to_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its positions make no square: at that size they need none of it, at any other they are refused."""
    monkeypatch.setattr("adapters.backbone.weights.GUESS_S", 0.0)
    wide = load(folder, "vit", (48, 80))
    file = tmp_path / "wide.safetensors"
    save_file(wide.model.state_dict(), file)
    again = load(folder, "vit", "48x80", str(file))
    assert again.layout.fingerprint == fingerprint_of(wide.model)
    with pytest.raises(BackboneError, match="no square grid"):
        load(folder, "vit", None, str(file))


def test_as_many_positions_in_another_grid_are_resampled_too(folder: Path) -> None:
    own, other = load(folder, "vit"), load(folder, "vit", (16, 64))
    assert own.model.pos_embed.shape == other.model.pos_embed.shape
    assert other.layout.resampled == fingerprint_of(other.model) != other.layout.fingerprint
    assert other.layout.fingerprint == own.layout.fingerprint


def test_a_model_whose_own_pictures_are_not_square(tmp_path: Path) -> None:
    name, args = FAMILIES["vit"]
    config = {
        "architecture": name,
        "model_args": args | {"img_size": [64, 48]},
        "pretrained_cfg": {"input_size": [3, 64, 48]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    tall = load_backbone(str(tmp_path), "random:0", "cpu", "float32")
    square = load_backbone(str(tmp_path), "random:0", "cpu", "float32", 40)
    assert (tall.layout.input_size, tall.layout.resampled) == ((64, 48), "")
    assert (square.layout.input_size, square.layout.fingerprint) == ((40, 40), tall.layout.fingerprint)
    adapter = random_adapter(tall, OLD_ADAPTER, 0)
    assert Predictor(tall, adapter)(photograph()).scores.shape == (3,)
    with torch.inference_mode():  # from 8x6 positions
        model = timm.create_model(f"local-dir:{tmp_path}", num_classes=0, img_size=40)
        model.load_state_dict(checkpoint_filter_fn(dict(tall.model.state_dict()), model))
        assert torch.equal(square.features(images((40, 40))).normed, model.eval().forward_features(images((40, 40))))


@pytest.mark.parametrize(
    ("family", "size", "words"),
    [
        ("vit", 30, r"cannot run at 30 pixels: its patches of 8 pixels .*; it can at 24 or at its own 32: choose with"),
        ("vit", "36x41", "at 32x40 or at 40x48 or at its own 32"),
        ("vit", "8x2050", "8x2050 pixels are out of range; each side may have 8 to 2048"),
        ("vit", 7, "7 pixels are out of range"),
        ("vit", "big", "'big' is no size in pixels; give 224 for a square, or height x width as 196x322"),
        ("vit", "32x", "no size in pixels"),
        ("vit", (1, 2, 3), "no size in pixels"),
        ("vit", True, "no size in pixels"),
        ("dinov2", 32, "at its own 28 or at 42|at 42 or at its own 28"),
        ("deepseek", 64, "its patches of 14 pixels .* at 56 or at 70 or at its own 28"),
        ("xcit", 42, "timm makes no such model .*; it can at its own 48"),
        (
            "cait",
            64,
            "its weights: has 1 tensors of another shape .* pos_embed 1x16x48, expected 1x64x48; it can",
        ),
        ("hiera", 64, "pos_embed 1x64x24, expected 1x256x24; it can at its own 32"),
        ("hieradet", 96, "timm makes no such model .*img_size.*; it can at its own 64"),
        ("sam", 64, "rel_pos_h 11x16, expected 15x16; it can at its own 48"),
        ("swin", "16x64", "other windows of attention: .*; it can at 64 or at 96 or at its own 32"),
    ],
)
def test_what_cannot_be_is_told_with_what_can(folder: Path, family: str, size: Any, words: str) -> None:
    with pytest.raises(BackboneError, match=words):
        load(folder, family, size)


def test_a_model_that_timm_makes_at_one_size_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = timm.create_model

    def one_size(name: str, **given: Any) -> Any:
        if "img_size" in given:
            raise TypeError("unexpected keyword argument 'img_size'")
        return make(name, **given)

    monkeypatch.setattr(timm, "create_model", one_size)
    assert load(folder, "vit").layout.input_size == (32, 32)
    with pytest.raises(BackboneError, match="cannot run at 48 pixels: timm .*img_size.*; it can at its own 32"):
        load(folder, "vit", 48)


def test_weights_of_another_architecture_are_not_called_a_matter_of_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.backbone.weights.GUESS_S", 0.0)
    other = str(folder / "dinov2" / "model.safetensors")
    with pytest.raises(BackboneError, match="belongs to another architecture") as caught:
        load(folder, "vit", 48, other)
    with pytest.raises(BackboneError) as own:
        load(folder, "vit", None, other)
    assert caught.value.message == own.value.message


def test_sizes_in_words_and_in_files() -> None:
    assert [size_of(given) for given in (224, "224", " 196X322 ", (8, 2048), [9, 9])] == [
        (224, 224), (224, 224), (196, 322), (8, 2048), (9, 9),
    ]  # fmt: skip
    assert [size_text(size) for size in ((224, 224), (196, 322))] == ["224", "196x322"]
    square, wide = InputConfig(size=224, **NAIVE), InputConfig(size=[196, 322], **NAIVE)
    assert square == InputConfig(size=(224, 224), **NAIVE)
    for config, written in ((square, 224), (wide, [196, 322])):
        assert json.loads(config.model_dump_json())["size"] == written
        assert InputConfig.model_validate_json(config.model_dump_json()) == config
    for wrong in (7, 2049, [32], [8, 9, 10], [32, 4096], "wide", None, 32.5):
        with pytest.raises(ValidationError, match="size"):
            InputConfig(size=wrong, **NAIVE)


def test_a_setting_is_read_once_and_told_in_one_way() -> None:
    assert [read_settings(image_size=given).image_size for given in ("", " ", "224x224", "196X322")] == [
        "", "", "224", "196x322",
    ]  # fmt: skip
    with pytest.raises(ValidationError, match="no size in pixels"):
        Settings(image_size="224 pixels")


def test_the_check_names_both_sizes_and_the_option(folder: Path) -> None:
    small, wide = load(folder, "vit"), load(folder, "vit", "48x80")
    assert small.layout.fingerprint == wide.layout.fingerprint
    one, other = (random_adapter(backbone, OLD_ADAPTER, 0) for backbone in (small, wide))
    one.check(small.layout)
    other.check(wide.layout)
    with pytest.raises(BrokenAdapter) as caught:
        other.check(small.layout)
    words = caught.value.message
    assert words.startswith("input.size is 48x80, the backbone takes 32 pixels; ")
    assert "--image-size 48x80 (ADAPTSERVE_IMAGE_SIZE)" in words
    assert words.endswith("--image-size 32")
    assert (caught.value.facts["expected"], caught.value.facts["got"]) == (32, [48, 80])


def test_facts_come_whole_over_a_socket(folder: Path) -> None:
    wide = load(folder, "vit", "48x80")
    facts = Facts(wide.layout, wide.input, "cpu", "float32", 4, 8, 100)
    told = Facts.of(msgspec.msgpack.decode(msgspec.msgpack.encode(facts.told())))
    assert told == facts
    assert isinstance(told.layout, Layout)


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("wide") / "data", image_size="48x80")) as opened:
        yield opened


@pytest.mark.parametrize(("spec", "body"), [(IMAGE, photograph(3)), (CLIP, clip(count=8))], ids=["picture", "clip"])
def test_a_server_of_that_size_answers_as_the_library(
    home: House, kit: Kit, tmp_path: Path, spec: Spec, body: bytes
) -> None:
    backbone = load_backbone(str(kit.folder / "vit"), "random:0", "cpu", "float32", (48, 80))
    adapter = random_adapter(backbone, spec, 1, size=0.5, task="wide")
    write_adapter(tmp_path / "wide.safetensors", adapter.config, adapter.tensors)
    task = f"wide-{spec.frames}"
    answer = home.put(task, (tmp_path / "wide.safetensors").read_bytes())
    assert answer.status_code == 201, answer.text
    expected = Predictor(backbone, adapter)(body).scores
    np.testing.assert_allclose(scores_of(home.ask(task, body).json()), expected, atol=1e-6)
    assert home.client.get("/v1/tasks").json()["input_size"] == [48, 80]


def test_a_server_refuses_an_adapter_of_another_size_and_says_which_option_fits(home: House, kit: Kit) -> None:
    answer = home.put("small", kit.file(1)[0])
    assert answer.status_code == 422
    problem = answer.json()
    assert "input.size is 32, the backbone takes 48x80 pixels" in problem["detail"]
    assert "--image-size 32" in problem["detail"]
    assert (problem["field"], problem["expected"], problem["got"]) == ("input.size", [48, 80], 32)
    assert home.ask("small", photograph()).status_code == 404
