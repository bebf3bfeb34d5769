"""Files and folders in transformers' names, made here from timm's models: the same tensors, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import QuickGELU
from torch import Tensor, nn

from adapters.backbone import Backbone, fingerprint_of, load_backbone
from adapters.backbone.reading import read
from adapters.errors import BackboneError
from tests.models import FAMILIES, OTHERS, small_backbone
from tests.references import normalised, pixels

V4 = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense", "attn.q": "attention.attention.query",
    "attn.k": "attention.attention.key", "attn.v": "attention.attention.value",
}  # fmt: skip
V5 = {
    **V4, "attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj", "attn.v": "attention.v_proj",
}  # fmt: skip
DINO = {**V4, "norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
        "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}  # fmt: skip
BEIT = {**V4, "gamma_1": "lambda_1", "gamma_2": "lambda_2", "attn.relative_position_bias_table":
        "attention.attention.relative_position_bias.relative_position_bias_table"}  # fmt: skip
SWIN = {name: value.replace("attention.attention", "attention.self") for name, value in V4.items()}
SWIN["attn.relative_position_bias_table"] = "attention.self.relative_position_bias_table"
CLIP = {
    "norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj", "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2", "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj",
}  # fmt: skip
OUTSIDE = {
    "cls_token": "embeddings.cls_token", "dist_token": "embeddings.distillation_token",
    "reg_token": "embeddings.register_tokens", "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection", "patch_embed.norm": "embeddings.norm",
    "norm": "layernorm", "fc_norm": "pooler.layernorm",
}  # fmt: skip
OUTSIDE_CLIP = {
    "cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding.weight",
    "patch_embed.proj": "embeddings.patch_embedding", "norm_pre": "pre_layrnorm", "norm": "post_layernorm",
    "attn_pool.latent": "head.probe", "attn_pool.proj": "head.attention.out_proj", "attn_pool.norm": "head.layernorm",
    "attn_pool.mlp.fc1": "head.mlp.fc1", "attn_pool.mlp.fc2": "head.mlp.fc2",
}  # fmt: skip
SIZES = {"hidden_size": 48, "num_attention_heads": 3, "image_size": 32, "intermediate_size": 192}
KINDS: dict[str, tuple[str, str, dict[str, str], dict[str, str], str, dict[str, Any]]] = {
    # family here, prefix, names in a block, other names, blocks, config.json
    "ViT": ("vit", "vit.", V4, OUTSIDE, "encoder.layer",
            {"model_type": "vit", **SIZES, "patch_size": 8, "num_hidden_layers": 3}),
    "ViT, bare": ("vit", "", V4, OUTSIDE, "encoder.layer",
                  {"model_type": "vit", **SIZES, "patch_size": 8, "num_hidden_layers": 3}),
    "ViT, transformers 5": ("vit", "vit.", V5, OUTSIDE, "layers",
                            {"model_type": "vit_mae", **SIZES, "patch_size": 8, "num_hidden_layers": 3}),
    "DeiT": ("deit", "deit.", V4, OUTSIDE, "encoder.layer",
             {"model_type": "deit", **SIZES, "num_hidden_layers": 2}),
    "DINOv2": ("dinov2_plain", "dinov2.", DINO, OUTSIDE, "encoder.layer",
               {"model_type": "dinov2", **SIZES, "num_hidden_layers": 2, "image_size": 28}),
    "DINOv2 with registers": ("dinov2", "dinov2_with_registers.", DINO, OUTSIDE, "encoder.layer",
                              {"model_type": "dinov2_with_registers", **SIZES, "num_hidden_layers": 2,
                               "image_size": 28}),
    "BEiT": ("beit", "beit.", BEIT, OUTSIDE, "encoder.layer",
             {"model_type": "beit", **SIZES, "num_hidden_layers": 2, "use_relative_position_bias": True}),
    "Swin": ("swin", "swin.", SWIN, OUTSIDE, "encoder.layers",
             {"model_type": "swin", "image_size": 32, "embed_dim": 24, "depths": [1, 2], "num_heads": [2, 2],
              "window_size": 4}),
    "CLIP": ("clip", "vision_model.", CLIP, OUTSIDE_CLIP, "encoder.layers",
             {"model_type": "clip", "vision_config": {**SIZES, "patch_size": 8, "num_hidden_layers": 3}}),
    "SigLIP": ("siglip", "vision_model.", CLIP, OUTSIDE_CLIP, "encoder.layers",
               {"model_type": "siglip_vision_model", **SIZES, "patch_size": 8, "num_hidden_layers": 2,
                "hidden_act": "gelu"}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.backbone.weights.GUESS_S", 0.0)


def in_their_names(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """A timm model's tensors as transformers names and shapes them, with a classifier beside them."""
    _, prefix, inside, outside, blocks, _ = KINDS[kind]
    made = {"classifier.weight": torch.ones(5, 48), "classifier.bias": torch.zeros(5)}
    for name, tensor in state.items():
        for new, value in _renamed(name, tensor, inside, outside, blocks).items():
            made[prefix + new] = value.clone().contiguous()
    if "reg_token" in state:  # theirs has a position of its own
        positions = f"{prefix}embeddings.position_embeddings"
        made[positions] = torch.cat([torch.zeros(1, 1, 48), made[positions]], 1)
    return made


def _renamed(
    name: str, tensor: Tensor, inside: dict[str, str], outside: dict[str, str], blocks: str
) -> dict[str, Tensor]:
    first, *rest = name.split(".")
    if first == "layers" and "downsample" in name:
        return {f"{blocks}.{int(rest[0]) - 1}.{'.'.join(rest[1:])}": tensor}
    if first in ("blocks", "layers"):
        depth = 1 if first == "blocks" else 3
        place, inner = ".".join([blocks, *rest[:depth]]), ".".join(rest[depth:])
        if inner.startswith("attn.qkv."):
            kind = inner.rpartition(".")[2]
            return {f"{place}.{inside['attn.' + x]}.{kind}": t for x, t in zip("qkv", tensor.chunk(3), strict=True)}
        if inner in ("attn.q_bias", "attn.v_bias"):
            return {f"{place}.{inside[inner[:6]]}.bias": tensor}
        module, _, kind = inner.rpartition(".")
        return {f"{place}.{inside[inner] if inner in inside else inside[module] + '.' + kind}": tensor}
    if name.startswith("attn_pool.q."):
        return {}  # one tensor with attn_pool.kv
    module, _, kind = name.rpartition(".")
    if name in outside:
        flat = {"embeddings.class_embedding": tensor.flatten(), "embeddings.position_embedding.weight": tensor[0]} if (
            tensor.ndim == 3) else {}  # fmt: skip
        return {outside[name]: flat.get(outside[name], tensor)}
    return {f"{outside[module]}.{kind}": tensor}


def state_of(backbone: Backbone, kind: str) -> dict[str, Tensor]:
    state = dict(backbone.model.state_dict())
    joint = {n: state.pop(f"attn_pool.kv.{n}") for n in ("weight", "bias") if f"attn_pool.kv.{n}" in state}
    queries = {n: state[f"attn_pool.q.{n}"] for n in joint}
    made = in_their_names(state, kind)
    for name, tensor in joint.items():
        made[f"vision_model.head.attention.in_proj_{name}"] = torch.cat([queries[name], tensor])
    return made


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_their_names_are_the_same_backbone(kind: str, tmp_path: Path) -> None:
    family, *_, config = KINDS[kind]
    ours = small_backbone(tmp_path / "timm", family)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    save_file(state_of(ours, kind), theirs / "model.safetensors")
    given = load_backbone(str(tmp_path / "timm"), str(theirs / "model.safetensors"), "cpu", "float32")
    right = fingerprint_of(ours.model)
    assert given.layout.fingerprint == right
    eps = next(m.eps for m in ours.model.modules() if isinstance(m, nn.LayerNorm))
    inner = {**config.get("vision_config", config), "layer_norm_eps": eps}
    config = {**config, "vision_config": inner} if "vision_config" in config else inner
    (theirs / "config.json").write_text(json.dumps(config))
    folder = load_backbone(str(theirs), "", "cpu", "float32")
    assert (folder.layout.fingerprint, folder.layout.model) == (right, "theirs")
    images = normalised(ours, pixels(ours, 2))
    assert torch.equal(folder.features(images).normed, ours.features(images).normed)
    assert folder.layout.pools == ours.layout.pools


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(tmp_path_factory.mktemp("vit"))


def folder_of(backbone: Backbone, folder: Path, kind: str = "ViT", **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(state_of(backbone, kind), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(KINDS[kind][-1] | config))
    return folder


def test_how_it_computes_is_read_from_its_config(vit: Backbone, tmp_path: Path) -> None:
    """Also where only its weights are given, with the config beside them; without it timm's architecture decides."""
    folder = folder_of(vit, tmp_path / "odd", hidden_act="quick_gelu", layer_norm_eps=1e-3)
    timm = tmp_path / "timm"
    small_backbone(timm)
    by_weights = load_backbone(str(timm), str(folder / "model.safetensors"), "cpu", "float32")
    for backbone in (load_backbone(str(folder), "", "cpu", "float32"), by_weights):
        assert backbone.norm_eps == backbone.model.blocks[1].norm2.eps == 1e-3
        assert isinstance(backbone.model.blocks[0].mlp.act, QuickGELU)
    (folder / "config.json").unlink()
    alone = load_backbone(str(timm), str(folder / "model.safetensors"), "cpu", "float32")
    assert alone.norm_eps == 1e-6


def test_pictures_are_what_its_processor_makes(vit: Backbone, tmp_path: Path) -> None:
    folder = folder_of(vit, tmp_path / "vit")
    usual = load_backbone(str(folder), "", "cpu").input
    assert (usual.crop_mode, usual.interpolation, usual.mean) == ("squash", "bilinear", (0.5, 0.5, 0.5))
    processor = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True,
                 "resample": 1, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.2, 0.2, 0.4]}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    seen = load_backbone(str(folder), "", "cpu").input
    assert (seen.crop_mode, seen.crop_pct, seen.interpolation) == ("center", 0.8, "lanczos")
    assert (seen.mean, seen.std, seen.size) == ((0.1, 0.2, 0.3), (0.2, 0.2, 0.4), (32, 32))
    (folder / "preprocessor_config.json").write_text("[]")
    with pytest.raises(BackboneError, match="is no JSON object"):
        load_backbone(str(folder), "", "cpu")


@pytest.mark.parametrize("kind", ["DINOv2", "DINOv2 with registers"])
def test_pictures_of_another_size_than_the_models_own(kind: str, tmp_path: Path) -> None:
    """DINOv2's processors make 224 pixels for models of 518; transformers resamples the positions in each forward."""
    ours = small_backbone(tmp_path / "timm", KINDS[kind][0])
    folder = folder_of(ours, tmp_path / "theirs", kind)
    processor = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}, "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    made = load_backbone(str(folder), "", "cpu", "float32")
    assert made.layout.input_size == (56, 56)
    assert made.layout.fingerprint == fingerprint_of(ours.model)
    registers = "registers" in kind
    grid = ours.model.pos_embed[:, 0 if registers else 1 :].view(1, 2, 2, 48).permute(0, 3, 1, 2)
    spread = F.interpolate(grid, (4, 4), mode="bicubic", antialias=registers).flatten(2).transpose(1, 2)
    assert torch.equal(made.model.pos_embed[:, -16:], spread)
    assert torch.equal(made.model.pos_embed[:, :-16], ours.model.pos_embed[:, :-4])
    assert load_backbone(str(folder), "", "cpu", "float32", 28).layout.input_size == (28, 28)


def test_shards_are_read_by_their_index(vit: Backbone, tmp_path: Path) -> None:
    folder = folder_of(vit, tmp_path / "parts")
    state = state_of(vit, "ViT")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": names[20:]}
    for file, own in parts.items():
        save_file({name: state[name] for name in own}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, own in parts.items() for name in own}}))
    whole = load_backbone(str(folder), "", "cpu")
    assert whole.layout.fingerprint == fingerprint_of(vit.model)
    assert load_backbone(str(folder), str(folder), "cpu").layout.fingerprint == fingerprint_of(vit.model)
    for told, reason in (
        ({"weight_map": {"a": "../model.safetensors"}}, "must name files beside it"),
        ({"weight_map": {"a": "gone.safetensors"}}, "names 1 files that are not beside it, such as gone"),
        ({"weight_map": {}}, "must name files"),
        ([], "cannot be read"),
    ):
        index.write_text(json.dumps(told))
        with pytest.raises(BackboneError, match=reason):
            load_backbone(str(folder), "", "cpu")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vit.encoder.layer.1.attention.attention.key.weight": None}, "blocks.1 has the weight of q, v, and needs"),
        ({"vit.encoder.layer.1.attention.attention.query.bias": None}, "blocks.1 has the bias of k, v, and needs"),
        ({"vit.encoder.layer.1.attention.attention.key.weight": torch.ones(48, 40)}, "of one width"),
        ({"vit.encoder.layer.0.crossattention.dense.weight": torch.ones(1)}, "such as vit.encoder.layer.0.crossatt"),
        ({"projector.weight": torch.ones(1)}, "no place for, such as projector.weight"),
        ({"vit.layers.0.layernorm_before.weight": torch.ones(48)}, "comes twice"),
        ({"vit.layernorm.weight": None}, "lacks 1 tensors of the model, such as norm.weight"),
        ({"vit.layernorm.weight": torch.ones(40)}, "norm.weight 40, expected 48"),
        ({"vit.layernorm.weight": torch.full((48,), torch.nan)}, "NaN"),
    ],
)
def test_what_has_no_place_is_named(
    vit: Backbone, tmp_path: Path, change: dict[str, Tensor | None], reason: str
) -> None:
    folder = folder_of(vit, tmp_path / "vit")
    state = {name: tensor for name, tensor in (state_of(vit, "ViT") | change).items() if tensor is not None}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(BackboneError, match=reason):
        load_backbone(str(folder), "", "cpu")


def test_what_is_no_part_of_a_backbone_is_set_aside(vit: Backbone, tmp_path: Path) -> None:
    """A text model beside it, decoders, and poolers that no feature needs."""
    folder = folder_of(vit, tmp_path / "vit")
    more = {"vit.embeddings.mask_token": torch.ones(1, 1, 48), "vit.pooler.dense.weight": torch.ones(48, 48),
            "decoder.mask_token": torch.ones(1), "logit_scale": torch.ones(()), "lm_head.weight": torch.ones(3, 3),
            "text_model.encoder.layers.0.layer_norm1.weight": torch.ones(9), "layernorm.weight": torch.ones(48),
            "visual_projection.weight": torch.ones(9, 48)}  # fmt: skip
    save_file(state_of(vit, "ViT") | more, folder / "model.safetensors")
    assert load_backbone(str(folder), "", "cpu").layout.fingerprint == fingerprint_of(vit.model)


def test_a_wrapped_timm_model(vit: Backbone, tmp_path: Path) -> None:
    architecture, args = (FAMILIES | OTHERS)["vit"]
    config = {"model_type": "timm_wrapper", "architecture": architecture, "model_args": args, "num_labels": 5,
              "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "tag": "x"}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    for prefix in ("", "timm_model."):
        state = {f"{prefix}{name}": tensor for name, tensor in vit.model.state_dict().items()}
        save_file(state | {f"{prefix}head.weight": torch.ones(5, 48)}, tmp_path / "model.safetensors")
        made = load_backbone(str(tmp_path), "", "cpu")
        assert (made.layout.fingerprint, made.input.mean) == (fingerprint_of(vit.model), (0.1, 0.2, 0.3))


def test_names_of_the_hub(vit: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's models by both names; another's repository comes from the cache where there is no network, or a line."""
    hub = huggingface_hub.constants
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    names = ("vit_tiny_patch16_224", "timm/vit_tiny_patch16_224", "hf-hub:timm/vit_tiny_patch16_224")
    first, *others = (load_backbone(name, "random:0", "cpu").layout for name in names)
    assert others == [first, first]
    with pytest.raises(BackboneError, match="it would be hf-hub:google/vit-tiny"):
        load_backbone("google/vit-tiny", "", "cpu")
    with pytest.raises(BackboneError, match="hf-hub:google/vit-tiny could not be loaded .*give a local folder"):
        load_backbone("hf-hub:google/vit-tiny", "", "cpu")
    repository = tmp_path / "hub" / "models--google--vit-tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    folder_of(vit, repository / "snapshots" / ("a" * 40))
    made = load_backbone("hf-hub:google/vit-tiny", "", "cpu")
    assert (made.layout.model, made.layout.fingerprint) == ("google/vit-tiny", fingerprint_of(vit.model))


def test_files_of_others_keep_their_names(vit: Backbone, tmp_path: Path) -> None:
    save_file(dict(vit.model.state_dict()), tmp_path / "timm.safetensors")
    assert read(tmp_path / "timm.safetensors").keys() == vit.model.state_dict().keys()
