"""Baselines: each trains exactly what it says, the shared backbone stays as it was, and only a report is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adapters.backbone import Backbone, fingerprint_of
from adapters.errors import TrainingError
from adapters.training.baselines import PROMPTS, PromptedModel, TunedModel, model_of
from adapters.training.fit import FitConfig, fit, images_of, loss_of
from adapters.training.model import HeadedModel
from adapters.training.recipe import Recipe, config_of
from service.cli.main import app
from tests.houses import Kit
from tests.models import small_backbone
from tests.test_training_fit import tinted
from tests.training import failed, one_thread, pictures, runner

__all__ = ["one_thread", "pictures"]
LABELS = ("bluish", "reddish")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(tmp_path_factory.mktemp("baselines") / "vit")


def base(kit: Kit, data: Path, file: Path) -> list[str]:
    """The command without options that only adapters take."""
    backbone = ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--device", "cpu"]
    return ["train", str(data), "--out", str(file), *backbone]


def model(backbone: Backbone, recipe: Recipe) -> HeadedModel:
    torch.manual_seed(0)
    return model_of(recipe, backbone, config_of(recipe, backbone, "image", LABELS))


METHODS = {
    "vpt": (Recipe("t", "vpt", prompts=4), {"prompts", "head.weight", "head.bias"}),
    "vpt, cls": (Recipe("t", "vpt", pool="backbone"), {"prompts", "head.weight", "head.bias"}),
    "full": (Recipe("t", "full"), {"weights", "head.weight", "head.bias"}),
    "full, cls": (Recipe("t", "full", pool="cls"), {"weights", "head.weight", "head.bias"}),
}


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_all_that_is_trained_and_nothing_frozen(backbone: Backbone, name: str) -> None:
    recipe, expected = METHODS[name]
    before = {n: p.clone() for n, p in backbone.model.named_parameters()}
    built = model(backbone, recipe)
    with torch.no_grad():
        built.head.weight.normal_(std=0.1)  # far enough from zero that gradients pass
    pixels, labels = tinted(7).tensors
    loss_of(built(images_of(built, pixels)), labels).backward()
    named = dict(built.named_parameters())
    assert {n.split(".")[0] if n.startswith("weights.") else n for n in named} == expected
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in named.values())
    assert all(torch.equal(before[n], p) for n, p in backbone.model.named_parameters())
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
    if isinstance(built, TunedModel):
        assert sum(w.numel() for w in built.weights) == backbone.layout.parameters


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_and_the_backbone_is_bare_again(backbone: Backbone, name: str) -> None:
    before, images = fingerprint_of(backbone.model), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        bare = backbone.features(images).normed
    built = model(backbone, METHODS[name][0])
    start = {n: t.clone() for n, t in built.state_dict().items()}
    result = fit(built, tinted(64), tinted(32, seed=1), FitConfig(epochs=6, batch=8, lr=3e-3))
    assert result.accuracy >= 0.9
    moved = {n for n, p in built.named_parameters() if not torch.equal(start[n], p)}
    assert moved == {n for n, _ in built.named_parameters()}
    assert fingerprint_of(backbone.model) == before
    with torch.inference_mode():
        assert torch.equal(backbone.features(images).normed, bare)


def test_prompts_are_tokens_of_their_block_alone(backbone: Backbone) -> None:
    """Against the definition, written out: [prefix, prompts, patches] into each block, prompts dropped after it."""
    built = model(backbone, Recipe("t", "vpt", prompts=3, pool="cls")).eval()
    assert isinstance(built, PromptedModel)
    images, net = torch.randn(2, 3, 32, 32), backbone.model
    with torch.inference_mode():
        x = net._pos_embed(net.patch_embed(images))
        for block, own in zip(net.blocks, built.prompts, strict=True):
            x = block(torch.cat([x[:, :1], own.expand(2, -1, -1), x[:, 1:]], dim=1))
            x = torch.cat([x[:, :1], x[:, 4:]], dim=1)
        torch.testing.assert_close(built.vectors(images), net.norm(x)[:, 0])


def test_an_error_in_a_forward_pass_leaves_no_prompts_behind(backbone: Backbone) -> None:
    built, images = model(backbone, Recipe("t", "vpt")), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        bare = backbone.features(images).normed
        with pytest.raises((RuntimeError, AssertionError)):
            built(torch.randn(2, 3, 7, 7))
        assert torch.equal(backbone.features(images).normed, bare)


def test_full_tuning_starts_as_the_backbone(backbone: Backbone) -> None:
    built, images = model(backbone, Recipe("t", "full", pool="cls")).eval(), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(built.vectors(images), backbone.features(images).normed[:, 0])


@pytest.mark.parametrize("family", ["dinov2", "gap"])
def test_plain_vits_take_prompts_whatever_their_prefix(tmp_path: Path, family: str) -> None:
    backbone = small_backbone(tmp_path / family, family)
    built = model(backbone, Recipe("t", "vpt"))
    assert isinstance(built, PromptedModel)
    assert built.prompts.shape[1] == PROMPTS
    size = backbone.input.size
    assert built(torch.randn(2, 3, *size)).shape == (2, 2)


@pytest.mark.parametrize("family", ["swin", "eva02", "beit", "relpos"])
def test_other_families_take_full_tuning_but_no_prompts(tmp_path: Path, family: str) -> None:
    backbone = small_backbone(tmp_path / family, family)
    with pytest.raises(TrainingError, match="a plain ViT"):
        model(backbone, Recipe("t", "vpt"))
    size = backbone.input.size
    assert model(backbone, Recipe("t", "full"))(torch.randn(2, 3, *size)).shape == (2, 2)


@pytest.mark.parametrize(("method", "why"), [("vpt", "prompts are tokens"), ("full", "changes the backbone")])
def test_the_command_leaves_a_report_and_no_file(
    kit: Kit, pictures: Path, tmp_path: Path, method: str, why: str
) -> None:
    file = tmp_path / "a.safetensors"
    result = runner.invoke(app, [*base(kit, pictures, file), "--method", method, "--epochs", "2", "--batch", "8"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.strip().splitlines()
    assert why in lines[0]
    assert "no adapter file to serve" in lines[0]
    assert lines[-1] == lines[0]
    assert "adaptserve push" not in result.stdout
    report = tmp_path / f"a.safetensors.{method}.report"
    assert str(report / "index.html") in lines[-1]
    assert [p.name for p in tmp_path.iterdir()] == [report.name]
    told = json.loads((report / "metrics.json").read_text())
    assert told["digest"] is None
    assert told["training"]["method"] == method
    assert len(told["training"]["history"]) == 2
    assert told["training"]["peak_memory_bytes"] > 0
    assert len(told["held_out"]) == told["training"]["held_out_examples"] == 6
    page = (report / "index.html").read_text()
    assert "there is no adapter file to serve" in page
    assert "sha256" not in page


def test_options_of_other_methods_are_one_line(kit: Kit, pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    refused = failed(kit, pictures, file, "--method", "full", "--rank", "4")
    assert "method full trains the whole backbone; leave out rank, scale" in refused
    assert "prompts are for method vpt" in failed(kit, pictures, file, "--prompts", "4")


def test_a_report_that_cannot_be_written_loses_no_training(kit: Kit, pictures: Path, tmp_path: Path) -> None:
    file, options = tmp_path / "a.safetensors", ["--method", "vpt", "--epochs", "2", "--batch", "8"]
    in_the_way = tmp_path / "a.safetensors.vpt.report"
    in_the_way.touch()
    stopped = runner.invoke(app, [*base(kit, pictures, file), *options])
    assert stopped.exit_code == 1
    assert "could not be written" in stopped.stderr
    in_the_way.unlink()
    resumed = runner.invoke(app, [*base(kit, pictures, file), *options, "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert "resumed after epoch 2" in resumed.stdout
    assert [p.name for p in tmp_path.iterdir()] == [in_the_way.name]
