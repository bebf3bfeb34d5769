"""PEFT folders: each naming scheme equals B @ A added to the Linears, and everything but plain LoRA is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.backbone import Backbone, load_backbone
from adapters.file import read_adapter
from adapters.limits import FileLimits
from tests.imports import Base, Bed, served
from tests.models import close
from tests.references import normalised, pixels

BASE_CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, "bias": "none", "modules_to_save": ["classifier"]}
# Module in one block -> the Linear of timm's block, and which third of its output.
V4 = {
    "attention.attention.query": ("attn.qkv", 0), "attention.attention.key": ("attn.qkv", 1),
    "attention.attention.value": ("attn.qkv", 2), "attention.output.dense": ("attn.proj", None),
    "intermediate.dense": ("mlp.fc1", None), "output.dense": ("mlp.fc2", None),
}  # fmt: skip
V5 = {
    "attention.q_proj": ("attn.qkv", 0), "attention.k_proj": ("attn.qkv", 1), "attention.v_proj": ("attn.qkv", 2),
    "attention.o_proj": ("attn.proj", None), "mlp.fc1": ("mlp.fc1", None), "mlp.fc2": ("mlp.fc2", None),
}  # fmt: skip
TIMM = {name: (name, None) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
SCHEMES = {
    "transformers 4": ("vit.encoder.layer", V4, "classifier"),
    "transformers 5": ("vit.layers", V5, "classifier"),
    "timm": ("blocks", TIMM, "head"),
    "timm wrapped": ("timm_model.blocks", TIMM, "timm_model.head"),
    "DeiT": ("deit.encoder.layer", V4, "classifier"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def bed(tmp_path: Path, base: Base) -> Bed:
    return Bed(tmp_path, base)


def random_lora(
    backbone: Backbone, scheme: str, rank: Callable[[str], int] = lambda _: 4, blocks: tuple[int, ...] = (0, 1, 2)
) -> dict[str, Tensor]:
    """A state dict in PEFT's names: LoRA on every module of the scheme, and a head of five classes."""
    generator = torch.Generator().manual_seed(3)
    root, modules, head = SCHEMES[scheme]
    state = {}
    for block in blocks:
        for module, (linear, third) in modules.items():
            weight = backbone.model.get_submodule(f"blocks.{block}.{linear}").weight
            rows, name = len(weight) // (1 if third is None else 3), f"{root}.{block}.{module}"
            r = rank(name)
            state[f"{name}.lora_A.weight"] = torch.randn(r, weight.shape[1], generator=generator) * 0.2
            state[f"{name}.lora_B.weight"] = torch.randn(rows, r, generator=generator) * 0.2
    state[f"{head}.weight"] = torch.randn(5, backbone.layout.width, generator=generator)
    state[f"{head}.bias"] = torch.randn(5, generator=generator)
    return {f"base_model.model.{name}": tensor for name, tensor in state.items()}


def save_folder(folder: Path, state: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(BASE_CONFIG | config))
    return folder


def merged_logits(bed: Bed, scheme: str, state: dict[str, Tensor], scale: Callable[[str], float]) -> Tensor:
    """timm's own forward in float64 with ``scale * B @ A`` added to its weights, then the head."""
    model = load_backbone(str(bed.base), str(bed.weights), "cpu", "float32").model.double()
    root, modules, head = SCHEMES[scheme]
    state = {name.removeprefix("base_model.model."): tensor.double() for name, tensor in state.items()}
    for name in [n.removesuffix(".lora_A.weight") for n in state if n.endswith(".lora_A.weight")]:
        block, module = name.removeprefix(f"{root}.").split(".", 1)
        linear, third = modules[module]
        weight = model.get_submodule(f"blocks.{block}.{linear}").weight
        part = weight if third is None else weight.chunk(3)[third]
        part += scale(name) * state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
    images = normalised(bed.backbone, pixels(bed.backbone, 3)).double()
    vector = model.forward_head(model.forward_features(images), pre_logits=True)
    return vector @ state[f"{head}.weight"].T + state[f"{head}.bias"]


@torch.inference_mode()
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_folder_answers_as_the_merged_weights(bed: Bed, scheme: str) -> None:
    state = random_lora(bed.backbone, scheme)
    source = save_folder(bed.folder / "lora", state, modules_to_save=[SCHEMES[scheme][2], "score"])
    adapter = bed.made("peft", source)
    close(served(bed.backbone, adapter, pixels(bed.backbone, 3)), merged_logits(bed, scheme, state, lambda _: 3.0))
    assert {s.site for s in adapter.config.sites} == ({"qkv"} if "timm" in scheme else {"q", "k", "v"}) | {
        "proj", "fc1", "fc2",
    }  # fmt: skip
    assert adapter.config.pool == ("backbone" if "timm" in scheme else "cls")
    assert all((s.act, s.scale, s.rank) == ("none", 1.0, 4) for s in adapter.config.sites)
    assert not any(t.any() for n, t in adapter.tensors.items() if n.endswith(("down.bias", "up.bias")))


def test_a_size_for_the_server_that_it_is_for(bed: Bed) -> None:
    source = save_folder(bed.folder / "lora", random_lora(bed.backbone, "timm"), modules_to_save=["head"])
    done = bed.run("peft", source, "--image-size", "40")
    assert done.exit_code == 0, done.output
    sized = load_backbone(str(bed.base), str(bed.weights), "cpu", "float32", 40)
    adapter = read_adapter(bed.out, sized.layout, FileLimits())
    assert (adapter.config.input.size, adapter.config.base.fingerprint) == ((40, 40), bed.backbone.layout.fingerprint)


@torch.inference_mode()
@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_alphas_by_pattern(bed: Bed, rslora: bool) -> None:
    """The first pattern that ends the module's name counts; ranks are padded to the largest of the site."""

    def rank(name: str) -> int:
        return 2 if name.endswith("layers.1.attention.q_proj") else 9 if name.endswith("fc1") else 4

    def scale(name: str) -> float:
        alpha = 5.0 if re.fullmatch(r"vit\.layers\.[02]\.mlp\.fc2", name) else 12.0
        return alpha / (math.sqrt(rank(name)) if rslora else rank(name))

    state = random_lora(bed.backbone, "transformers 5", rank)
    patterns = {
        "rank_pattern": {"layers.1.attention.q_proj": 2, "fc1": 9, "mlp.fc1": 100, "ttention.v_proj": 50},
        "alpha_pattern": {r"layers\.[02]\.mlp\.fc2": 5, "layers": 77},
    }
    source = save_folder(bed.folder / "lora", state, use_rslora=rslora, **patterns)
    adapter = bed.made("peft", source)
    found = served(bed.backbone, adapter, pixels(bed.backbone, 3))
    close(found, merged_logits(bed, "transformers 5", state, scale))
    assert {s.site: s.rank for s in adapter.config.sites} == {"q": 4, "k": 4, "v": 4, "proj": 4, "fc1": 9, "fc2": 4}


@torch.inference_mode()
def test_some_blocks_and_sites_only(bed: Bed) -> None:
    state = random_lora(bed.backbone, "transformers 4", blocks=(1,))
    state = {name: tensor for name, tensor in state.items() if "query" in name or "value" in name or "classif" in name}
    state = {name.replace("classifier.", "classifier.modules_to_save."): tensor for name, tensor in state.items()}
    adapter = bed.made("peft", save_folder(bed.folder / "lora", state))
    state = {name.replace("modules_to_save.", ""): tensor for name, tensor in state.items()}
    expected = merged_logits(bed, "transformers 4", state, lambda _: 3.0)
    close(served(bed.backbone, adapter, pixels(bed.backbone, 3)), expected)
    assert [(s.site, s.blocks) for s in adapter.config.sites] == [("q", (1,)), ("v", (1,))]


@torch.inference_mode()
def test_adalora_is_lora_once_trained(bed: Bed) -> None:
    """Its third factor is folded in; what was pruned is gone, and what is left has the scale that it had before."""
    state = random_lora(bed.backbone, "transformers 4", lambda name: 6 if "query" in name else 3)
    generator = torch.Generator().manual_seed(5)
    source, merged = {}, {}
    for name, given in state.items():
        tensor = given
        module, _, part = name.removesuffix(".weight").rpartition(".lora_")
        source[f"{module}.lora_{part}" if module else name] = tensor
        if part == "A":
            source[f"{module}.lora_E"] = torch.randn(len(tensor), 1, generator=generator)
            tensor = tensor * source[f"{module}.lora_E"]
        merged[name] = tensor
    gone = "base_model.model.vit.encoder.layer.1.attention.attention.key"
    for part in "AE":
        source[f"{gone}.lora_{part}"] = source[f"{gone}.lora_{part}"][:0]
    source[f"{gone}.lora_B"] = source[f"{gone}.lora_B"][:, :0].contiguous()
    merged = {name: tensor for name, tensor in merged.items() if not name.startswith(gone)}
    pruned = {"vit.encoder.layer.0.attention.attention.key.lora_E": [True, False, True]}
    folder = save_folder(bed.folder / "ada", source, peft_type="ADALORA", init_r=6, r=8, rank_pattern=pruned)
    adapter = bed.made("peft", folder)
    expected = merged_logits(bed, "transformers 4", merged, lambda _: 12 / (6 + 1e-5))
    close(served(bed.backbone, adapter, pixels(bed.backbone, 3)), expected)
    assert {s.site: (s.rank, s.blocks) for s in adapter.config.sites}["k"] == (3, (0, 2))


@torch.inference_mode()
@pytest.mark.parametrize(("scheme", "name"), [("transformers 5", "vit.layernorm"), ("timm", "norm")])
def test_a_trained_last_norm_comes_along(bed: Bed, scheme: str, name: str) -> None:
    state = random_lora(bed.backbone, scheme)
    norm = {part: torch.randn(48, generator=torch.Generator().manual_seed(6)) for part in ("weight", "bias")}
    whole = state | {f"base_model.model.{name}.{part}": tensor for part, tensor in norm.items()}
    saved = [SCHEMES[scheme][2], name.rpartition(".")[2]]
    adapter = bed.made("peft", save_folder(bed.folder / "lora", whole, modules_to_save=saved))
    assert (adapter.config.pool, adapter.config.norm) == ("cls", "trained")
    assert torch.equal(adapter.tensors["norm.weight"], norm["weight"])
    ones = whole | {f"base_model.model.{name}.{part}": t for part, t in bed.backbone.model.norm.state_dict().items()}
    adapter = bed.made("peft", save_folder(bed.folder / "lora", ones, modules_to_save=saved))
    expected = merged_logits(bed, scheme, state, lambda _: 3.0)
    close(served(bed.backbone, adapter, pixels(bed.backbone, 3)), expected)


@torch.inference_mode()
def test_layers_that_cannot_be_adapted_are_left_out_if_asked(bed: Bed) -> None:
    state = random_lora(bed.backbone, "timm")
    extra = {f"base_model.model.patch_embed.proj.lora_{x}.weight": A if x == "A" else A.T.contiguous() for x in "AB"}
    folder = save_folder(bed.folder / "lora", state | extra, modules_to_save=["head"])
    assert "--skip goes on without the 1 such layers" in bed.refused("peft", folder)
    told = bed.run("peft", folder, "--skip")
    assert told.exit_code == 0, told.output
    assert "without LoRA on patch_embed.proj" in told.output
    adapter = bed.made("peft", folder, "--skip")
    expected = merged_logits(bed, "timm", state, lambda _: 3.0)
    close(served(bed.backbone, adapter, pixels(bed.backbone, 3)), expected)
    only = {name: tensor for name, tensor in (state | extra).items() if "blocks" not in name}
    assert "patch_embed.proj cannot be served" in bed.refused("peft", save_folder(folder, only), "--skip")


def test_what_a_server_would_refuse_is_warned_of(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_folder(bed.folder / "lora", random_lora(bed.backbone, "timm"))
    assert bed.run("peft", folder).stderr == ""
    monkeypatch.setenv("ADAPTSERVE_MAX_RANK", "3")
    made = bed.run("peft", folder)
    assert made.exit_code == 0, made.output
    assert made.stderr.startswith("warning: ")
    assert "ADAPTSERVE_MAX_RANK=4" in made.stderr


A, QUERY = torch.ones(4, 48), "base_model.model.vit.layers.0.attention.q_proj"


@pytest.mark.parametrize(
    ("config", "change", "reason"),
    [
        ({"use_dora": True}, {}, "DoRA"),
        ({"bias": "lora_only"}, {}, "biases of the backbone"),
        ({"modules_to_save": ["classifier", "embeddings"]}, {}, "trained 'embeddings' whole"),
        ({"peft_type": "IA3", "r": None}, {}, "only LORA"),
        ({"peft_type": "OFT", "r": 0}, {}, "rotations; of PEFT's methods only LORA and ADALORA"),
        ({"peft_type": "ADALORA", "init_r": 0}, {}, "field 'init_r'"),
        ({"peft_type": "ADALORA"}, {}, "not all of lora_A and lora_B and lora_E"),
        ({}, {"base_model.model.vit.layers.0.layernorm_before.weight": torch.ones(48)}, "layernorm_before' whole"),
        (
            {},
            {
                f"base_model.model.dinov2.encoder.layer.9.attention.q_proj.lora_{x}.weight": A if x == "A" else A.T
                for x in "AB"
            },
            "several families: DINOv2, ViT",
        ),
        ({"lora_bias": True}, {}, "a bias in LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "changes the backbone's own weights"),
        ({"r": 0}, {}, "field 'r'"),
        ({"r": 5}, {}, "says rank 5"),
        ({"lora_alpha": math.inf}, {}, "field 'lora_alpha'"),
        ({"rank_pattern": {"(": 3}}, {}, "no regular expression"),
        ({}, {"base_model.model.classifier.weight": None, "base_model.model.classifier.bias": None}, "one classifier"),
        ({}, {"base_model.model.classifier.bias": None}, "one classifier"),
        ({}, {"base_model.model.head.bias": torch.ones(5)}, "one classifier"),
        ({}, {"base_model.model.classifier.bias": torch.ones(4)}, "do not fit together"),
        ({}, {f"{QUERY}.lora_B.weight": None}, "only one of lora_A and lora_B"),
        ({}, {f"{QUERY}.lora_B.weight": torch.ones(48, 3)}, "do not fit together"),
        ({}, {f"{QUERY}.lora_B.weight": torch.ones(20, 4)}, "q.0.up.bias has shape 20, base needs 48"),
        ({}, {f"{QUERY}.lora_B.weight": torch.full((48, 4), torch.inf)}, "NaN or infinite"),
        ({}, {f"{QUERY}.lora_magnitude_vector": torch.ones(48)}, "neither LoRA on a layer"),
        ({}, {"base_model.model.patch_embed.proj.lora_A.weight": A}, "patch_embed.proj cannot be served"),
        ({}, {f"{QUERY.replace('.0.', '.7.')}.lora_{x}.weight": A if x == "A" else A.T for x in "AB"}, "block 7"),
        (
            {},
            {f"base_model.model.blocks.0.attn.q_proj.lora_{x}.weight": A if x == "A" else A.T for x in "AB"},
            "comes twice",
        ),
    ],
)
def test_all_but_plain_lora_is_refused(
    bed: Bed, config: dict[str, Any], change: dict[str, Tensor | None], reason: str
) -> None:
    state = random_lora(bed.backbone, "transformers 5") | change
    kept = {name: tensor.contiguous() for name, tensor in state.items() if tensor is not None}
    assert reason in bed.refused("peft", save_folder(bed.folder / "lora", kept, **config))


def test_broken_folders_are_one_line(bed: Bed) -> None:
    folder = save_folder(bed.folder / "lora", random_lora(bed.backbone, "timm"), modules_to_save=["head"])
    tensors, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-8])
    assert "not a whole safetensors file" in bed.refused("peft", folder)
    tensors.rename(folder / "adapter_model.bin")
    assert "is a pickle" in bed.refused("peft", folder)
    tensors.write_bytes(whole)
    for text, reason in (("{", "not JSON"), ("[]", "no field 'peft_type'"), ('{"r": 4}', "field 'peft_type'")):
        config.write_text(text)
        assert reason in bed.refused("peft", folder)
    config.unlink()
    assert "no such file" in bed.refused("peft", folder)
