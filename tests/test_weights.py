"""Where weights come from: names, local files, and what is refused; the fingerprint that tells them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapters.backbone import fingerprint_of, load_backbone
from adapters.errors import BackboneError
from tests.models import small_backbone


def test_an_unknown_family_is_an_error() -> None:
    with pytest.raises(BackboneError, match="no transformer blocks|no known sites"):
        load_backbone("resnet18", "random:0", "cpu")


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
