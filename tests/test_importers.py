"""Imported files answer as their own code would, and what cannot be served is refused with its reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN
from torch import Tensor

from adapters.backbone import load_backbone
from adapters.config import InputConfig
from adapters.file import read_adapter
from adapters.limits import FileLimits
from tests.imports import LABELS, Base, Bed, served
from tests.models import close, small_backbone
from tests.official import official_logits, random_state
from tests.references import normalised, pixels


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def bed(tmp_path: Path, base: Base) -> Bed:
    return Bed(tmp_path, base)


@torch.inference_mode()
@pytest.mark.parametrize("option", ["parallel", "sequential"])
@pytest.mark.parametrize("global_pool", [False, True], ids=["class token", "global pool"])
def test_an_official_checkpoint_answers_as_its_own_code(bed: Bed, global_pool: bool, option: str) -> None:
    state = random_state(bed.backbone, global_pool=global_pool)
    source = bed.checkpoint(state, **({} if option == "parallel" else {"ffn_option": option}))
    adapter = bed.made("adaptformer", source)
    images = pixels(bed.backbone, 4)
    expected = official_logits(state, normalised(bed.backbone, images), option=option)
    close(served(bed.backbone, adapter, images), expected)
    config = adapter.config
    assert config.labels == LABELS
    assert (config.task, config.pool) == ("made-here", "avg" if global_pool else "cls")
    assert [(s.site, s.rank, s.scale) for s in config.sites] == [(option, 7, 0.1)]


@torch.inference_mode()
def test_what_no_checkpoint_tells_is_asked_and_told(bed: Bed) -> None:
    """Official scripts store neither option nor scale: both are the caller's to say, and their defaults are printed."""
    state, images = random_state(bed.backbone), pixels(bed.backbone, 2)
    source = bed.checkpoint(state)
    adapter = bed.made("adaptformer", source, "--option", "sequential")
    expected = official_logits(state, normalised(bed.backbone, images), option="sequential")
    close(served(bed.backbone, adapter, images), expected)
    told = bed.run("adaptformer", source).output
    assert "taken for granted: scale 0.1" in told
    assert "taken for granted: adapters parallel to the MLP" in told
    told = bed.run("adaptformer", source, "--option", "sequential", "--scale", "0.1").output
    assert "--scale" not in told
    assert "--option" not in told
    says = bed.checkpoint(state, ffn_option="sequential")
    assert "--option says parallel" in bed.refused("adaptformer", says, "--option", "parallel")
    assert bed.run("adaptformer", source, "--option", "both").exit_code == 2


@pytest.mark.parametrize(
    ("finetune", "mean"),
    [
        ("/weights/jx_vit_base_p16_224-80ecf9dd.pth", (0.5, 0.5, 0.5)),
        ("C:\\w\\mae_pretrain_vit_b.pth", IMAGENET_DEFAULT_MEAN),
        ("other.pth", None),
    ],
)
def test_preprocessing_is_what_the_arguments_say(bed: Bed, finetune: str, mean: tuple[float, ...] | None) -> None:
    source = bed.checkpoint(random_state(bed.backbone), finetune=finetune)
    seen = bed.made("adaptformer", source).config.input
    assert (seen.crop_pct, seen.crop_mode, seen.interpolation) == (0.875, "center", "bicubic")
    assert seen.mean == (mean or bed.backbone.input.mean)
    assert ("'other.pth' is none" in bed.run("adaptformer", source).output) is (mean is None)


@torch.inference_mode()
def test_scales_told_learnt_and_some_blocks_only(bed: Bed) -> None:
    images = pixels(bed.backbone, 2)
    state = random_state(bed.backbone, blocks=(0, 2))
    adapter = bed.made("adaptformer", bed.checkpoint(state), "--scale", "0.7", "--task", "told")
    close(served(bed.backbone, adapter, images), official_logits(state, normalised(bed.backbone, images), scale=0.7))
    assert (adapter.config.task, adapter.config.sites[0].blocks) == ("told", (0, 2))
    state |= {f"blocks.{b}.adaptmlp.scale": torch.tensor([0.2 + b]) for b in (0, 2)}
    adapter = bed.made("adaptformer", bed.checkpoint(state), "--scale", "9")
    close(served(bed.backbone, adapter, images), official_logits(state, normalised(bed.backbone, images)))
    assert adapter.config.sites[0].scale == 1.0


@torch.inference_mode()
def test_a_linear_probe_is_an_adapter_without_sites(bed: Bed) -> None:
    images, state = pixels(bed.backbone, 2), random_state(bed.backbone, blocks=())
    adapter = bed.made("adaptformer", bed.checkpoint(state))
    assert adapter.config.sites == ()
    close(served(bed.backbone, adapter, images), official_logits(state, normalised(bed.backbone, images)))


@torch.inference_mode()
@pytest.mark.parametrize("global_pool", [False, True], ids=["class token", "global pool"])
def test_another_backbone_is_refused_unless_it_is_exported(bed: Bed, global_pool: bool) -> None:
    other = small_backbone(bed.folder / "other")
    for parameter in other.model.parameters():
        parameter.mul_(1.01)
    state = random_state(other, global_pool=global_pool)
    source = bed.checkpoint(state)
    refusal = bed.refused("adaptformer", source)
    assert "cls_token differs by" in refusal
    assert "--export-base" in refusal
    exported = bed.folder / "theirs.safetensors"
    done = bed.run("adaptformer", source, "--export-base", str(exported), weights=False)
    assert done.exit_code == 0, done.output
    theirs = load_backbone(str(bed.base), str(exported), "cpu", "float32")
    images = pixels(theirs, 3)
    expected = official_logits(state, normalised(theirs, images))
    close(served(theirs, read_adapter(bed.out, theirs.layout, FileLimits()), images), expected)


def test_one_changed_number_in_the_backbone_is_found(bed: Bed) -> None:
    state = random_state(bed.backbone)
    state["blocks.1.attn.k_proj.weight"][3, 4] += 2e-6
    assert "blocks.1.attn.qkv.weight differs by 2e-06" in bed.refused("adaptformer", bed.checkpoint(state))
    state["blocks.1.attn.k_proj.weight"][3, 4] -= 1.2e-6
    bed.made("adaptformer", bed.checkpoint(state))


def _with(**more: Tensor) -> dict[str, Tensor]:
    return {name.replace("__", "."): tensor for name, tensor in more.items()}


@pytest.mark.parametrize(
    ("change", "args", "reason"),
    [
        ({}, {"fulltune": True}, "fully tuned"),
        (_with(embeddings__0=torch.ones(1, 2, 48)), {}, "visual prompts"),
        ({"patch_embed.proj.weight": None}, {}, "lacks tensor patch_embed.proj.weight"),
        ({"pos_embed": None}, {}, "another architecture.*pos_embed has shape none"),
        (_with(blocks__0__adaptmlp__adapter_layer_norm_before__bias=torch.ones(48)), {}, "LayerNorm of their own"),
        ({}, {"ffn_option": "both"}, "neither parallel nor sequential"),
        (_with(blocks__9__norm1__bias=torch.ones(48)), {}, "another architecture.*blocks.9.norm1.bias"),
        (_with(blocks__1__fc1__bias=torch.ones(3)), {}, "blocks.1.mlp.fc1.bias has shape 3, expected 192"),
        ({"blocks.1.adaptmlp.up_proj.bias": None}, {}, "lacks tensor blocks.1.adaptmlp.up_proj.bias"),
        ({"blocks.1.attn.k_proj.bias": None}, {}, "lacks one of q_proj"),
        (_with(blocks__1__adaptmlp__up_proj__weight=torch.ones(48, 3)), {}, "do not fit together"),
        (_with(blocks__1__adaptmlp__up_proj__bias=torch.ones(3)), {}, "parallel.1.up.bias has shape 3"),
        (_with(blocks__1__adaptmlp__up_proj__bias=torch.full((48,), torch.nan)), {}, "NaN"),
        (_with(blocks__1__fc1__bias=torch.full((192,), torch.nan)), {}, "blocks.1.mlp.fc1.bias differs by nan"),
        (_with(head__0__running_mean=torch.ones(3)), {}, "differ in width"),
        (_with(head__1__bias=torch.ones(())), {}, "do not fit together"),
        ({"head.1.weight": None}, {}, "lacks tensor head.1.weight"),
        (_with(head__2__weight=torch.ones(3)), {}, "tensor head.2.weight has shape 3, expected none"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused(
    bed: Bed, change: dict[str, Tensor | None], args: dict[str, Any], reason: str
) -> None:
    state = random_state(bed.backbone) | change
    source = bed.checkpoint({name: tensor for name, tensor in state.items() if tensor is not None}, **args)
    assert re.search(reason, bed.refused("adaptformer", source))


class Trap:
    """Unpickling it without care makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04 and no more", "cannot be read"),
        ({"epoch": 3}, "no 'model' entry"),
        ([1, 2], "no 'model' entry"),
        ({"model": {"a": 1}}, "more than named tensors"),
        ("trap", "cannot be read"),
    ],
)
def test_what_is_no_checkpoint_is_one_line(bed: Bed, content: Any, reason: str) -> None:
    source = bed.folder / "ckpt.pth"
    if isinstance(content, bytes):
        source.write_bytes(content)
    else:
        torch.save({"model": Trap(bed.folder / "trapped")} if content == "trap" else content, source)
    assert reason in bed.refused("adaptformer", source)
    assert not (bed.folder / "trapped").exists()
    assert "no such file" in bed.refused("adaptformer", bed.folder / "none.pth")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "no id2label"),
        ('{"id2label": {"0": "a", "2": "b"}}', "leaves out numbers"),
        ('{"id2label": {"0": "a", "1": "b"}}', "has 2 labels, the head has 5 classes"),
        ("a\nb\n", "has 2 labels, the head has 5 classes"),
        ("a\nb\n\nc\nd\n", "no empty one"),
        ("[1, 2, 3, 4, 5]", "no empty one"),
        ("[1, 2", "neither lines of UTF-8 nor a JSON list"),
        ("a\na\nb\nc\nd", "labels must be unique"),
        (b"\xff\xfe", "neither lines of UTF-8 nor a JSON list"),
    ],
)
def test_labels_must_fit_the_head(bed: Bed, content: str | bytes, reason: str) -> None:
    bed.labels.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert reason in bed.refused("adaptformer", bed.checkpoint(random_state(bed.backbone)))


def test_labels_as_json_and_preprocessing_of_its_own(bed: Bed) -> None:
    bed.labels.write_text(json.dumps(LABELS))
    source = bed.checkpoint(random_state(bed.backbone))
    base = bed.backbone.input
    adapter = bed.made("adaptformer", source)
    assert adapter.config.labels == LABELS
    official = base.model_dump() | {"interpolation": "bicubic", "crop_pct": 0.875}
    assert adapter.config.input == InputConfig(**official)
    options = ["--mean", "0.1", "0.2", "0.3", "--interpolation", "bilinear", "--crop-mode", "squash"]
    adapter = bed.made("adaptformer", source, *options)
    given = {"mean": (0.1, 0.2, 0.3), "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
    assert adapter.config.input == InputConfig(**official | given)
    bed.labels.write_text(json.dumps({"id2label": {str(4 - n): label for n, label in enumerate(LABELS[::-1])}}))
    assert bed.made("adaptformer", source, "--crop-pct", "0.5").config.labels == LABELS
    assert "'interpolation' cannot be 'cubist'" in bed.refused("adaptformer", source, "--interpolation", "cubist")
    assert "'task' cannot be" in bed.refused("adaptformer", source, "--task", "../up")


@torch.inference_mode()
@pytest.mark.parametrize("export", [False, True], ids=["same backbone", "exported"])
def test_a_size_for_the_server_that_it_is_for(bed: Bed, export: bool) -> None:
    """The checkpoint's backbone is compared at its own size; what is written is for the one asked for."""
    state = random_state(bed.backbone)
    exported = bed.folder / "sized.safetensors"
    more = ["--export-base", str(exported)] if export else []
    result = bed.run("adaptformer", bed.checkpoint(state), "--image-size", "48x80", *more)
    assert result.exit_code == 0, result.output
    assert (f"--weights {exported} --image-size 48x80" in result.output.replace("\n", "")) is export
    wide = load_backbone(str(bed.base), str(exported if export else bed.weights), "cpu", "float32", "48x80")
    adapter = read_adapter(bed.out, wide.layout, FileLimits())
    assert adapter.config.input.size == (48, 80)
    assert served(wide, adapter, pixels(wide, 2)).isfinite().all()
    own = bed.made("adaptformer", bed.checkpoint(state))
    assert own.config.base == adapter.config.base
    assert "cannot run at 30 pixels" in bed.refused("adaptformer", bed.checkpoint(state), "--image-size", "30")
