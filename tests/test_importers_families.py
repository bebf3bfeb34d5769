"""Every family's names mean the Linear that its own code computes there, and its classifier gets what it had there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adapters.backbone import load_backbone
from adapters.importers.families import place
from tests.imports import Base, Bed, served
from tests.models import close
from tests.references import normalised, pixels
from tests.test_importers_peft import random_lora, save_folder


@pytest.mark.parametrize(
    ("name", "family", "site", "where"),
    [
        ("vit.encoder.layer.11.attention.attention.query", "ViT", "q", (11,)),
        ("vit.layers.0.attention.o_proj", "ViT", "proj", (0,)),
        ("deit.layers.2.mlp.fc1", "DeiT", "fc1", (2,)),
        ("beit.encoder.layer.1.output.dense", "BEiT", "fc2", (1,)),
        ("ijepa.layers.1.attention.k_proj", "I-JEPA", "k", (1,)),
        ("dinov2.encoder.layer.3.mlp.fc2", "DINOv2", "fc2", (3,)),
        ("dinov2_with_registers.encoder.layer.3.attention.v_proj", "DINOv2", "v", (3,)),
        ("vision_model.encoder.layers.4.self_attn.out_proj", "CLIP", "proj", (4,)),
        ("swin.encoder.layers.2.blocks.5.attention.self.value", "Swin", "v", (2, 5)),
        ("swin.encoder.layers.2.blocks.5.attention.o_proj", "Swin", "proj", (2, 5)),
        ("blocks.7.attn.qkv", "timm", "qkv", (7,)),
        ("timm_model.layers.1.blocks.0.mlp.fc1", "timm", "fc1", (1, 0)),
    ],
)
def test_a_name_is_a_place(name: str, family: str, site: str, where: tuple[int, ...]) -> None:
    found = place(name)
    assert found is not None
    assert (found[0].name, *found[1:]) == (family, site, where)


@pytest.mark.parametrize(
    "name",
    ["vit.embeddings.patch_embeddings.projection", "swin.encoder.layers.0.downsample.reduction", "vit.pooler.dense",
     "timesformer.encoder.layer.0.attention.attention.qkv", "blocks.0.norm1", "vit.layers.x.mlp.fc1"],
)  # fmt: skip
def test_a_layer_without_a_site_is_none(name: str) -> None:
    assert place(name) is None


@torch.inference_mode()
@pytest.mark.parametrize("told", [True, False], ids=["class told", "seen from the base"])
def test_clips_classifier_takes_the_mean_before_the_last_norm(tmp_path: Path, told: bool) -> None:
    bed = Bed(tmp_path, Base(tmp_path / "clip", "clip"))
    generator = torch.Generator().manual_seed(1)
    down, up = (torch.randn(shape, generator=generator) * 0.2 for shape in ((4, 48), (48, 4)))
    weight, bias = torch.randn(5, 48, generator=generator), torch.randn(5, generator=generator)
    state = {
        "vision_model.encoder.layers.1.self_attn.v_proj.lora_A.weight": down,
        "vision_model.encoder.layers.1.self_attn.v_proj.lora_B.weight": up,
        "classifier.weight": weight, "classifier.bias": bias,
    }  # fmt: skip
    classes = {"auto_mapping": {"base_model_class": "CLIPForImageClassification"}} if told else {}
    folder = save_folder(tmp_path / "lora", {f"base_model.model.{n}": t for n, t in state.items()}, **classes)
    adapter = bed.made("peft", folder)
    assert (adapter.config.pool, adapter.config.norm) == ("avg", "none")
    model = load_backbone(str(bed.base), str(bed.weights), "cpu", "float32").model.double()
    model.blocks[1].attn.qkv.weight[96:] += 3.0 * (up @ down).double()
    tokens: list[torch.Tensor] = []
    model.norm.register_forward_pre_hook(lambda _, args: tokens.append(args[0]))
    images = pixels(bed.backbone, 3)
    model.forward_features(normalised(bed.backbone, images).double())
    expected = tokens[0][:, 1:].mean(1) @ weight.T.double() + bias
    close(served(bed.backbone, adapter, images), expected)


@torch.inference_mode()
def test_swins_blocks_are_counted_over_its_stages(tmp_path: Path) -> None:
    base = Base(tmp_path / "swin", "swin")
    bed, generator = Bed(tmp_path, base), torch.Generator().manual_seed(1)
    width = bed.backbone.layout.width
    state = {
        "swin.encoder.layers.1.blocks.1.intermediate.dense.lora_A.weight": torch.randn(4, width, generator=generator),
        "swin.encoder.layers.1.blocks.1.intermediate.dense.lora_B.weight": torch.randn(4 * width, 4) * 0.1,
        "classifier.weight": torch.randn(5, width), "classifier.bias": torch.zeros(5),
    }  # fmt: skip
    adapter = bed.made("peft", save_folder(tmp_path / "lora", {f"base_model.model.{n}": t for n, t in state.items()}))
    assert [(s.site, s.blocks) for s in adapter.config.sites] == [("fc1", (2,))]
    assert (adapter.config.pool, adapter.config.input.interpolation) == ("backbone", "bicubic")
    state = {n.replace("blocks.1", "blocks.2"): t for n, t in state.items()}
    beyond = save_folder(tmp_path / "lora", {f"base_model.model.{n}": t for n, t in state.items()})
    assert "names block 1.2, which" in bed.refused("peft", beyond)


def test_a_base_without_the_layer_is_told(tmp_path: Path) -> None:
    """EVA-02's MLP has two layers where others have fc1."""
    base = Base(tmp_path / "swiglu", "swiglu")
    bed = Bed(tmp_path, base)
    state = {"classifier.weight": torch.randn(5, 48), "classifier.bias": torch.zeros(5)}
    for module, width in {"intermediate.dense": 128, "attention.output.dense": 48}.items():
        for part, shape in {"A": (4, 48), "B": (width, 4)}.items():
            state[f"vit.encoder.layer.0.{module}.lora_{part}.weight"] = torch.randn(shape)
    folder = save_folder(tmp_path / "lora", {f"base_model.model.{n}": t for n, t in state.items()})
    assert "dense cannot be served on" in bed.refused("peft", folder)
    assert [s.site for s in bed.made("peft", folder, "--skip").config.sites] == ["proj"]


def test_pictures_are_what_the_image_processor_makes(tmp_path: Path) -> None:
    bed = Bed(tmp_path, Base(tmp_path / "vit"))
    folder = save_folder(bed.folder / "lora", random_lora(bed.backbone, "transformers 4"))
    seen = bed.made("peft", folder).config.input
    assert (seen.crop_mode, seen.crop_pct, seen.interpolation) == ("squash", 1.0, "bilinear")
    assert (seen.mean, seen.std) == (bed.backbone.input.mean, bed.backbone.input.std)
    assert "--processor reads" in bed.run("peft", folder).output
    bit = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    processor = folder / "preprocessor_config.json"
    processor.write_text(json.dumps(bit | {"resample": 3, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.2, 0.2, 0.4]}))
    seen = bed.made("peft", folder, "--interpolation", "box").config.input
    assert (seen.crop_mode, seen.crop_pct, seen.interpolation) == ("center", 0.8, "box")
    assert seen.mean == (0.1, 0.2, 0.3)
    processor.write_text(json.dumps(bit | {"crop_size": 40}))
    assert "--image-size 40" in bed.refused("peft", folder)
    processor.unlink()
    assert "no such file" in bed.refused("peft", folder, "--processor", str(processor))


def test_a_base_of_another_name_is_told(tmp_path: Path) -> None:
    bed = Bed(tmp_path, Base(tmp_path / "vit"))
    source = save_folder(bed.folder / "lora", random_lora(bed.backbone, "timm"), modules_to_save=["head"],
                         base_model_name_or_path="google/vit-base-patch16-224-in21k")  # fmt: skip
    assert "those of timm's vit_base_patch16_224.orig_in21k" in " ".join(bed.run("peft", source).output.split())
