"""Where weights come from: names, local files, and what is refused; the fingerprint that tells them apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from adapters.backbone import fingerprint_of, load_backbone
from adapters.errors import BackboneError
from tests.models import small_backbone


@pytest.fixture(autouse=True)
def _no_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a refused file may fit is looked for in one test; it takes seconds."""
    monkeypatch.setattr("adapters.backbone.weights.GUESS_S", 0.0)


def test_an_unknown_family_is_an_error() -> None:
    with pytest.raises(BackboneError, match="no attention, and so no transformer blocks"):
        load_backbone("resnet18", "random:0", "cpu")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet18", r"resnet18 .resnet.ResNet. has no attention, .* such as vit_small_patch16_224"),
        ("resnest14d", "has no attention"),  # of its channels alone
        ("resnet50_clip", "has no attention, .* such as vit_base_patch32_clip_224"),
        ("efficientnet_b0", "efficientnet.EfficientNet. has no attention"),
        ("mixer_s16_224", "has no attention"),
        ("mvitv2_tiny", r"has attention .mvitv2.MultiScaleAttention., but .* built of mvitv2.MultiScaleVit; "),
        ("mobilevit_s", r"has attention .attention.Attention., but .* built of byobnet.ByobNet"),
        ("crossvit_9_240", "built of crossvit.MultiScaleBlock"),  # another than SAM 2's
        ("tnt_s_patch16_224", "built of tnt.Block"),
        ("gemma4_vit_167m_enc", "built of gemma4_vit.Gemma4Block"),
        ("vit_pwee_patch16_reg1_gap_256", "attention and MLP read the same tokens"),
        ("qwen3_vit_88m_enc.qwen3_5_0_8b", "does not pool; qwen3_vit_88m.qwen3_5_0_8b has the same weights"),
        ("deepseek_vit_412m_enc", "does not pool; deepseek_vit_412m has the same weights"),
        ("vit_base_patch16_224.no_such_tag", "could not be loaded"),
    ],
)
@pytest.mark.parametrize("weights", ["", "random:0", "none.pth"])
def test_a_model_that_cannot_be_adapted_is_one_line_before_its_weights_are_looked_for(
    name: str, reason: str, weights: str
) -> None:
    with pytest.raises(BackboneError, match=reason) as caught:
        load_backbone(name, weights, "cpu")
    assert len(caught.value.message.splitlines()) == 1


@pytest.mark.parametrize(
    "config",
    [
        "{",
        {"model_type": "bert"},
        {"model_type": "vit", "hidden_act": "mish"},
        {"model_type": "vit", "num_hidden_layers": 10**9},
        {"model_type": "swin", "depths": []},
        {"model_type": "clip", "vision_config": 3},
        {"model_type": "timm_wrapper"},
        {"architecture": "no_such_model"},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"no_such_argument": 1}},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"features_only": True}},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": 50}},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"in_chans": 1}},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 0}},
        {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": [3, 32]}},
        {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"mean": "grey"}},
    ],
    ids=str,
)
def test_a_folder_that_describes_no_model_of_ours_is_one_line(tmp_path: Path, config: Any) -> None:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(BackboneError) as caught:
        load_backbone(str(tmp_path), "random:0", "cpu")
    assert len(caught.value.message.splitlines()) == 1


def test_a_forward_unlike_those_we_know_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def forward_features(_self: object, _images: object) -> None:
        raise KeyError("patch_coord\n and more")

    monkeypatch.setattr("timm.models.VisionTransformer.forward_features", forward_features)
    with pytest.raises(BackboneError, match="cannot be adapted .KeyError: 'patch_coord"):
        small_backbone(tmp_path)


def test_a_mistyped_name_gets_suggestions() -> None:
    with pytest.raises(BackboneError, match="close: .*vit_tiny_patch16_224"):
        load_backbone("vit_tiny_patch16", "random:0")
    with pytest.raises(BackboneError, match="random:SEED"):
        load_backbone("vit_tiny_patch16_224", "random:abc")


def test_local_weights_must_fill_the_whole_model(tmp_path: Path) -> None:
    backbone = small_backbone(tmp_path)
    state = dict(backbone.model.state_dict())
    save_file(state, tmp_path / "whole.safetensors")
    torch.save({"model": state}, tmp_path / "whole.pth")
    for name in ("whole.safetensors", "whole.pth"):
        again = load_backbone(str(tmp_path), str(tmp_path / name), "cpu")
        assert again.layout.fingerprint == fingerprint_of(backbone.model)
    del state["blocks.1.mlp.fc1.weight"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(BackboneError, match=r"lacks 1 tensors of the model, such as blocks\.1\.mlp\.fc1\.weight"):
        load_backbone(str(tmp_path), str(tmp_path / "part.safetensors"), "cpu")
    with pytest.raises(BackboneError, match="does not exist"):
        load_backbone(str(tmp_path), str(tmp_path / "none.safetensors"), "cpu")


def test_a_folders_own_file_is_held_to_the_same(tmp_path: Path) -> None:
    backbone = small_backbone(tmp_path)
    state = dict(backbone.model.state_dict())
    with pytest.raises(BackboneError, match="the folder has no checkpoint with a name such as model.safetensors"):
        load_backbone(str(tmp_path), "", "cpu")
    save_file(state, tmp_path / "mine.safetensors")
    assert load_backbone(str(tmp_path), "", "cpu").layout.fingerprint == fingerprint_of(backbone.model)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(BackboneError, match="2 checkpoints and none"):
        load_backbone(str(tmp_path), "", "cpu")
    save_file(state | {"blocks.0.ls1.gamma": torch.ones(48)}, tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match=r"holds 1 tensors that the model has no place for, such as blocks\.0\.ls1"):
        load_backbone(str(tmp_path), "", "cpu")


def test_a_refused_file_is_told_what_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.backbone.weights.GUESS_S", 60.0)
    made = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    save_file({name: tensor.half() for name, tensor in made.state_dict().items()}, tmp_path / "dino.safetensors")
    with pytest.raises(BackboneError) as caught:
        load_backbone("vit_small_patch16_224", str(tmp_path / "dino.safetensors"), "cpu")
    message = caught.value.message
    assert "holds 24 tensors that the model has no place for, such as blocks.0.ls1.gamma" in message
    assert "cuts patches of 14x14 pixels, the model those of 16x16" in message
    assert message.endswith("another architecture than vit_small_patch16_224 and fits vit_small_patch14_dinov2")


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "trapped",))

    backbone = small_backbone(tmp_path)
    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(BackboneError, match="cannot be read"):
        load_backbone(str(tmp_path), str(tmp_path / "trap.pth"), "cpu")
    assert not (tmp_path / "trapped").exists()
    assert backbone.layout.sites


def test_the_fingerprint_sees_values_names_and_nothing_of_dtype(tmp_path: Path) -> None:
    first = small_backbone(tmp_path)
    half = small_backbone(tmp_path, dtype="bfloat16")
    assert (
        load_backbone(str(tmp_path), "random:0").layout.fingerprint
        == load_backbone(str(tmp_path), "random:0", dtype="bfloat16").layout.fingerprint
    )
    assert half.dtype == torch.bfloat16
    before = fingerprint_of(first.model)
    with torch.no_grad():
        first.model.pos_embed[0, 0, 0] += 1
    assert fingerprint_of(first.model) != before
