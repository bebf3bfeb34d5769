"""A checkpoint is taken by its own architecture in every spelling, and by no other, down to its last tensor."""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters.backbone.checkpoint import compare, load
from adapters.backbone.reading import read
from adapters.errors import BackboneError
from tests.models import FAMILIES

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}
# What people mix up: the same family with other tokens, scales, patches, depths, widths or windows.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = FAMILIES | {
    "vit of depth 4": ("vit_tiny_patch16_224", FAMILIES["vit"][1] | {"depth": 4}),
    "vit of width 96": ("vit_tiny_patch16_224", FAMILIES["vit"][1] | {"embed_dim": 96}),
    "vit of patch 16": ("vit_tiny_patch16_224", FAMILIES["vit"][1] | {"patch_size": 16}),
    "distilled": ("deit_tiny_distilled_patch16_224", FAMILIES["vit"][1]),
    "deit3": ("deit3_small_patch16_224", {"img_size": 32, **SMALL}),
    "without registers": ("vit_small_patch14_dinov2", FAMILIES["dinov2"][1]),
    "siglip": ("vit_base_patch16_siglip_224", {"img_size": 32, **SMALL}),
    "clip": ("vit_base_patch16_clip_224", {"img_size": 32, **SMALL}),
    "biases": ("vit_small_patch16_dinov3_qkvb", {"img_size": 32, **SMALL}),
    "windows": ("swin_tiny_patch4_window7_224", FAMILIES["swin"][1] | {"window_size": 2}),
    "naflex": ("naflexvit_base_patch16_gap", {"embed_dim": 48, "depth": 2, "num_heads": 3}),
}


def make(name: str, classes: int = 0, **more: Any) -> nn.Module:
    architecture, args = ARCHITECTURES[name]
    return timm.create_model(architecture, num_classes=classes, **args | more)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return {name: make(name) for name in ARCHITECTURES}


@pytest.mark.parametrize("source", ARCHITECTURES)
def test_a_file_fits_its_own_architecture_and_no_other(source: str, models: dict[str, nn.Module]) -> None:
    state = make(source, classes=7).state_dict()
    assert [name for name, model in models.items() if compare(model, state).fits] == [source]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_spelling_that_timm_reads_gives_every_tensor(name: str, tmp_path: Path) -> None:
    made = make(name, classes=7)
    state = made.state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    spellings: dict[str, Any] = {
        "plain": state,
        "model": {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}},
        "state_dict": {"state_dict": state, "arch": name},
        "module": {f"module.{n}": t for n, t in state.items()},
        "compiled": {f"_orig_mod.{n}": t for n, t in state.items()},
        "average": {"state_dict": {"nothing": torch.zeros(1)}, "state_dict_ema": state},
        "half": {n: t.half() if t.is_floating_point() else t for n, t in state.items()},
    }
    for spelling, content in spellings.items():
        torch.save(content, tmp_path / f"{spelling}.pth")
    for path in tmp_path.iterdir():
        model = make(name)
        found = compare(model, read(path))
        assert found.fits, f"{path.name}: {found}"
        load(model, found, path.name)
        for key, tensor in model.state_dict().items():
            halved = path.stem == "half" and tensor.is_floating_point()
            expected = state[key].half().float() if halved else state[key]
            assert torch.equal(tensor, expected), f"{path.name}: {key}"


def test_what_is_not_needed_is_known_by_name_and_told(caplog: pytest.LogCaptureFixture) -> None:
    model = make("vit")
    state = make("vit", classes=7).state_dict()
    extra = {
        "mask_token": torch.zeros(1, 1, 48), "decoder_pos_embed": torch.zeros(1, 17, 48), "pooler.dense.bias": None,
        "decoder_blocks.0.norm1.weight": None, "head_dist.weight": None, "blocks.0.attn.relative_position_index": None,
    }  # fmt: skip
    state |= {name: torch.zeros(48) if tensor is None else tensor for name, tensor in extra.items()}
    found = compare(model, state)
    assert found.fits
    with caplog.at_level(logging.INFO):
        load(model, found, "mae.pth")
    assert "mae.pth: 7 tensors are not needed, such as" in caplog.text
    for name in ("blocks.0.ls1.gamma", "blocks.3.norm1.weight", "reg_token", "fc_norm.weight", "norm_pre.bias", "xyz"):
        assert compare(model, state | {name: torch.zeros(48)}).left == (name,)
    assert compare(model, state | {"student": {"blocks.0.norm1.weight": torch.zeros(48)}}).left == ("student",)


def test_a_training_checkpoint_without_a_model_entry_is_read_too() -> None:
    state = make("vit").state_dict() | {"optimizer": {"state": {0: torch.ones(3)}}, "epoch": 3, "arch": "vit"}
    assert compare(make("vit"), state).fits
    assert compare(make("vit"), state | {"student": [torch.ones(3)]}).left == ("student",)


def test_a_value_that_is_no_number_is_refused() -> None:
    model, state = make("vit"), make("vit").state_dict()
    state["blocks.1.mlp.fc1.bias"][3] = torch.nan
    with pytest.raises(BackboneError, match=r"holds NaN or infinite values in blocks\.1\.mlp\.fc1\.bias"):
        load(model, compare(model, state), "vit.pth")


def test_siglips_pooling_is_left_out_where_timm_leaves_it_out() -> None:
    state = make("siglip").state_dict()
    assert any(name.startswith("attn_pool.") for name in state)
    args: dict[str, Any] = {"img_size": 32, **SMALL}
    assert compare(timm.create_model("vit_base_patch16_siglip_gap_224", num_classes=0, **args), state).fits
    args |= {"global_pool": "avg", "fc_norm": False, "class_token": False}
    plain = timm.create_model("vit_base_patch16_224", num_classes=0, **args)
    assert all(name.startswith("attn_pool.") for name in compare(plain, state).left)
    assert not compare(plain, state).fits


def test_original_checkpoints_are_read_by_timms_converters() -> None:
    """DINOv2 with registers and DINOv3 as their authors spell them; a bias that would be lost is a refusal."""
    model = make("dinov2")
    state: dict[str, Tensor] = dict(model.state_dict())
    cls, pos = torch.randn(1, 1, 48), torch.randn(1, 1 + 4, 48)
    theirs = {n: t for n, t in state.items() if n not in ("reg_token", "cls_token", "pos_embed")}
    theirs |= {"register_tokens": state["reg_token"], "cls_token": cls, "pos_embed": pos, "mask_token": cls[0]}
    found = compare(model, theirs)
    assert (found.fits, found.stretched) == (True, "")
    assert torch.equal(found.tensors["cls_token"], cls + pos[:, :1])

    model = make("dinov3")
    names = {"reg_token": "storage_tokens"}
    theirs = {
        names.get(n, n.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")): t
        for n, t in model.state_dict().items()
    }
    theirs |= {"mask_token": torch.zeros(1, 48), "rope_embed.periods": torch.zeros(4)}
    assert compare(model, theirs).fits
    bias = torch.zeros(144)
    assert compare(model, theirs | {"blocks.0.attn.qkv.bias": bias}).fits
    bias[3] = 0.5
    assert "has biases in its attention" in str(compare(model, theirs | {"blocks.0.attn.qkv.bias": bias}))
    assert compare(make("biases"), theirs | {f"blocks.{b}.attn.qkv.bias": bias for b in range(2)}).fits


def test_clips_picture_tower_is_taken_from_the_whole() -> None:
    model = make("clip")
    swaps = {
        "patch_embed.proj": "conv1", "norm_pre": "ln_pre", "norm1": "ln_1", "norm2": "ln_2",
        "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
        "blocks.": "transformer.resblocks.",
    }  # fmt: skip
    theirs: dict[str, Tensor] = {"logit_scale": torch.zeros(()), "positional_embedding": torch.zeros(77, 32)}
    for name, tensor in model.state_dict().items():
        for ours, other in swaps.items():
            name = name.replace(ours, other)  # noqa: PLW2901
        theirs["visual." + re.sub(r"^norm\.", "ln_post.", name)] = tensor
    theirs["visual.class_embedding"] = theirs.pop("visual.cls_token")[0, 0]
    theirs["visual.positional_embedding"] = theirs.pop("visual.pos_embed")[0]
    theirs["visual.proj"] = torch.zeros(48, 7)
    found = compare(model, theirs)
    assert found.fits, str(found)
    assert all(torch.equal(tensor, found.tensors[name]) for name, tensor in model.state_dict().items())
    trunk = {f"visual.trunk.{n}": t for n, t in make("vit").state_dict().items()} | {"text.weight": torch.zeros(3)}
    assert compare(make("vit"), trunk).fits
    assert not compare(make("vit"), trunk | {"visual.trunk.blocks.0.ls1.gamma": torch.zeros(48)}).fits


def test_swins_own_names_are_a_stage_apart() -> None:
    state = make("swin", classes=7).state_dict()
    theirs = {n.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head"): t
              for n, t in state.items()}  # fmt: skip
    theirs |= {"layers.0.blocks.0.attn_mask": torch.zeros(4, 16, 16)}
    theirs |= {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long)}
    assert compare(make("swin"), {"model": theirs}).fits
    assert not compare(make("swin", depths=[2, 2]), theirs).fits


def test_pictures_of_another_size_stretch_the_grid_of_positions_alone() -> None:
    state = make("vit", img_size=64).state_dict()
    found = compare(make("vit"), state)
    assert found.fits
    assert "resampled from 8x8 to 4x4" in found.stretched
    expected = timm.layers.resample_abs_pos_embed(state["pos_embed"], (4, 4), num_prefix_tokens=1)
    assert torch.equal(found.tensors["pos_embed"], expected)
    found = compare(make("beit", img_size=64), make("beit").state_dict())  # tables that span the whole picture
    assert found.fits
    assert "tables of position biases were resampled" in found.stretched
    found = compare(make("vit of patch 16"), make("vit").state_dict())
    assert "cuts patches of 8x8 pixels, the model those of 16x16" in str(found)
    found = compare(make("windows"), make("swin").state_dict())
    assert "has other windows of attention" in str(found)
    found = compare(make("swin", window_size=[4, 2]), make("swin", window_size=2).state_dict())
    assert "has other windows of attention" in str(found)  # though its second window spans all there
    odd = state | {"pos_embed": torch.zeros(1, 25, 48)}  # 24 positions and the class token
    assert "no square grid" in str(compare(make("vit"), odd))


def test_deit3s_layer_scale_is_read_as_its_authors_spell_it() -> None:
    state = {n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t
             for n, t in make("deit3", classes=7).state_dict().items()}  # fmt: skip
    assert compare(make("deit3"), state).fits
    plain = timm.create_model("vit_small_patch16_224", num_classes=0, img_size=32, init_values=1.0, **SMALL)
    assert not compare(plain, state).fits


def test_a_tensor_of_whole_numbers_is_no_weight() -> None:
    state = {name: tensor.to(torch.int8) for name, tensor in make("vit").state_dict().items()}
    assert "another shape or type" in str(compare(make("vit"), state))
