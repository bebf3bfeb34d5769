"""AdapterHub's folders answer as the library's formulas say, flag by flag; what nothing here computes is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from adapters.backbone import load_backbone
from adapters.importers.bottleneck import BottleneckSettings, dense, site_of_flags
from tests.imports import LABELS, Base, Bed, served
from tests.models import close
from tests.references import normalised, pixels
from tests.test_importers import Trap

WIDTH, RANK = 48, 6
SEQ_BN = {
    "original_ln_before": True, "original_ln_after": True, "residual_before_ln": True, "non_linearity": "relu",
    "scaling": 1.0, "is_parallel": False, "use_gating": False, "ln_before": False, "reduction_factor": 8,
}  # fmt: skip
PLACES = {"output": "output.output_adapters", "attention": "attention_adapters"}
ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu, "gelu": F.gelu, "swish": F.silu, "linear": lambda v: v,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def bed(tmp_path: Path, base: Base) -> Bed:
    return Bed(tmp_path, base)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def bottlenecks(*places: str, blocks: tuple[int, ...] = (0, 1, 2)) -> dict[str, Tensor]:
    state = {}
    for number, (place, block) in enumerate(product(places, blocks)):
        prefix = f"vit.encoder.layer.{block}.{PLACES[place]}.adapters.pets"
        state |= {
            f"{prefix}.adapter_down.0.weight": noise(RANK, WIDTH, seed=4 * number),
            f"{prefix}.adapter_down.0.bias": noise(RANK, seed=4 * number + 1),
            f"{prefix}.adapter_up.weight": noise(WIDTH, RANK, seed=4 * number + 2),
            f"{prefix}.adapter_up.bias": noise(WIDTH, seed=4 * number + 3),
        }
    return state


def head() -> dict[str, Tensor]:
    return {"heads.pets.1.weight": noise(5, WIDTH, seed=98), "heads.pets.1.bias": noise(5, seed=99)}


def save_folder(
    folder: Path,
    config: dict[str, Any],
    state: dict[str, Tensor],
    *,
    of_head: dict[str, Any] | None = None,
    **told: Any,
) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "adapter.safetensors")
    save_file(head(), folder / "model_head.safetensors")
    whole = {"config": config, "name": "pets", "model_type": "vit", "model_name": "google/vit-base-patch16-224-in21k"}
    (folder / "adapter_config.json").write_text(json.dumps(whole | told))
    label2id = {label: number for number, label in reversed(list(enumerate(LABELS)))}
    flexible = {"head_type": "image_classification", "layers": 1, "use_pooler": False, "label2id": label2id}
    (folder / "head_config.json").write_text(json.dumps({"config": flexible | (of_head or {})}))
    return folder


def imported(bed: Bed, source: Path) -> Any:
    bed.labels.unlink(missing_ok=True)
    return bed.made("adapterhub", source, labels=False)


def library(config: dict[str, Any], state: dict[str, Tensor], place: str, block: int, z: Tensor, x: Tensor) -> Tensor:
    """The stream behind a layer by the library's own steps: ``z`` is the layer's output, ``x`` the stream before it."""
    prefix = f"vit.encoder.layer.{block}.{PLACES[place]}.adapters.pets"
    if f"{prefix}.adapter_up.weight" not in state:
        return z + x
    t = {name: state[f"{prefix}.{name}"].double() for name in
         ("adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias")}  # fmt: skip
    scaling = state[f"{prefix}.scaling"].double() if isinstance(config["scaling"], str) else config["scaling"]

    def bottleneck(v: Tensor) -> Tensor:
        hidden = ACTS[config["non_linearity"]](v @ t["adapter_down.0.weight"].T + t["adapter_down.0.bias"])
        return scaling * (hidden @ t["adapter_up.weight"].T + t["adapter_up.bias"])

    if config["is_parallel"]:
        out = bottleneck(x) + z
    else:
        residual = z
        if config["original_ln_before"]:
            z = z + x
            residual = residual if config["residual_before_ln"] else z
        out = bottleneck(z) + residual
    return out + x if config["original_ln_after"] else out


def expected_logits(bed: Bed, config: dict[str, Any], state: dict[str, Tensor], images: Tensor) -> Tensor:
    model = load_backbone(str(bed.base), str(bed.weights), "cpu", "float32").model.double()
    x = model._pos_embed(model.patch_embed(normalised(bed.backbone, images).double()))
    for index, block in enumerate(model.blocks):
        x = library(config, state, "attention", index, block.attn(block.norm1(x)), x)
        x = library(config, state, "output", index, block.mlp(block.norm2(x)), x)
    weight, bias = (tensor.double() for tensor in head().values())
    return model.norm(x)[:, 0] @ weight.T + bias


@torch.inference_mode()
@pytest.mark.parametrize(
    ("flags", "places", "sites"),
    [
        ({}, ("output",), {"output"}),
        ({"is_parallel": True, "scaling": 4.0}, ("output",), {"parallel"}),
        ({"is_parallel": True, "scaling": "learned", "original_ln_before": False}, ("output",), {"parallel"}),
        ({"residual_before_ln": False, "original_ln_after": False, "scaling": "channel", "non_linearity": "gelu"},
         ("output",), {"output"}),
        ({"original_ln_before": False, "non_linearity": "linear"}, ("output",), {"sequential"}),
        ({"original_ln_before": False, "non_linearity": "swish"}, ("output", "attention"), {"sequential", "attn"}),
        ({}, ("output", "attention"), {"output", "pre_mlp"}),
    ],
    ids=["seq_bn", "par_bn", "scaled_par_bn", "Adapter+", "after the MLP", "double_seq_bn", "in the stream twice"],
)  # fmt: skip
def test_flags_become_the_site_that_computes_the_same(
    bed: Bed, flags: dict[str, Any], places: tuple[str, ...], sites: set[str]
) -> None:
    config, state = SEQ_BN | flags, bottlenecks(*places, blocks=(0, 2))
    if isinstance(config["scaling"], str):
        for name in [name for name in state if name.endswith("adapter_up.bias")]:
            count = 1 if config["scaling"] == "learned" else WIDTH
            state[name.replace("adapter_up.bias", "scaling")] = noise(count, seed=len(state)) + 1
    adapter = imported(bed, save_folder(bed.folder / "hub", config, state))
    assert {site.site for site in adapter.config.sites} == sites
    assert (adapter.config.labels, adapter.config.score, adapter.config.input.crop_mode) == (
        LABELS,
        "softmax",
        "squash",
    )
    images = pixels(bed.backbone, 3)
    close(served(bed.backbone, adapter, images), expected_logits(bed, config, state, images))


@pytest.mark.parametrize("flags", list(product([False, True], repeat=4)))
@pytest.mark.parametrize("place", PLACES)
def test_every_other_flag_is_refused(flags: tuple[bool, ...], place: str) -> None:
    """With a bottleneck that adds nothing the block must be the bare one: then the stream was added once."""
    names = ("original_ln_before", "original_ln_after", "residual_before_ln", "is_parallel")
    config = SEQ_BN | dict(zip(names, flags, strict=True))
    z, x, nothing = torch.tensor([3.0], dtype=torch.float64), torch.tensor([5.0], dtype=torch.float64), {}
    prefix = f"vit.encoder.layer.0.{PLACES[place]}.adapters.pets"
    for part, shape in {"adapter_down.0": (1, 1), "adapter_up": (1, 1)}.items():
        nothing |= {f"{prefix}.{part}.weight": torch.zeros(shape), f"{prefix}.{part}.bias": torch.zeros(1)}
    bare = library(config, nothing, place, 0, z, x).item() == 8
    settings = BottleneckSettings.model_validate(config)
    if bare and not (place == "attention" and config["is_parallel"]):
        assert site_of_flags(settings, in_attention=place == "attention")
        return
    with pytest.raises(Exception, match="at all|twice|parallel to attention"):
        site_of_flags(settings, in_attention=place == "attention")


@torch.inference_mode()
@pytest.mark.parametrize("factors", list(product([False, True], repeat=3)))
def test_compacter_is_a_dense_layer(factors: tuple[bool, bool, bool]) -> None:
    """Shared or not, in two factors or whole: y = x H + b, with H written out element by element."""
    shared_rule, factored_rule, factored_block = factors
    n, into, out = 4, 8, 12
    rules = {"_left": noise(n, n, 1, seed=1), "_right": noise(n, 1, n, seed=2)}
    blocks = {"_left": noise(n, into // n, 2, seed=3), "_right": noise(n, 2, out // n, seed=4)}
    rule, block = rules["_left"] @ rules["_right"], blocks["_left"] @ blocks["_right"]
    rule_named = {f"phm_rule{side}": t for side, t in (rules if factored_rule else {"": rule}).items()}
    own = {f"adapter_up.W{side}": t for side, t in (blocks if factored_block else {"": block}).items()}
    own["adapter_up.b"] = noise(out, seed=5)
    if not shared_rule:
        own |= {f"adapter_up.{name}": tensor for name, tensor in rule_named.items()}
    weight, bias = dense("here", own, "adapter_up", "up", rule_named if shared_rule else {})
    wanted = torch.zeros(into, out)
    for i, a, b in product(range(n), range(into), range(out)):
        wanted[a, b] += rule[i, a // (into // n), b // (out // n)] * block[i, a % (into // n), b % (out // n)]
    torch.testing.assert_close(weight, wanted.T)
    assert torch.equal(bias, own["adapter_up.b"])


@torch.inference_mode()
def test_lora_and_a_compacter_with_shared_blocks_are_imported(bed: Bed) -> None:
    lora = {}
    for layer, rows in {"attention.attention.query": WIDTH, "intermediate.dense": 4 * WIDTH}.items():
        prefix = f"vit.encoder.layer.1.{layer}.loras.pets"
        lora |= {f"{prefix}.lora_A": noise(4, WIDTH, seed=rows), f"{prefix}.lora_B": noise(rows, 4, seed=rows + 1)}
    folder = save_folder(bed.folder / "hub", {"architecture": "lora", "r": 4, "alpha": 6}, lora)
    adapter = imported(bed, folder)
    assert [(s.site, s.blocks, s.act) for s in adapter.config.sites] == [("fc1", (1,), "none"), ("q", (1,), "none")]
    up = lora["vit.encoder.layer.1.attention.attention.query.loras.pets.lora_B"]
    assert torch.equal(adapter.tensors["q.1.up.weight"], up * 1.5)
    shared = {f"vit.shared_parameters.pets.{n}": t for n, t in {
        "phm_rule": noise(4, 4, 4), "W_down": noise(4, WIDTH // 4, 2, seed=1), "W_up": noise(4, 2, WIDTH // 4, seed=2),
    }.items()}  # fmt: skip
    biases = {"adapter_down.0.b": noise(8, seed=3), "adapter_up.b": noise(WIDTH, seed=4)}
    own = {f"vit.encoder.layer.0.{PLACES['output']}.adapters.pets.{n}": t for n, t in biases.items()}
    adapter = imported(bed, save_folder(folder, SEQ_BN | {"phm_layer": True}, shared | own))
    assert [(s.site, s.rank) for s in adapter.config.sites] == [("output", 8)]


def test_heads_of_many_labels_pickles_and_labels_of_ones_own(bed: Bed) -> None:
    folder = save_folder(bed.folder / "hub", SEQ_BN, bottlenecks("output"), of_head={"multilabel": True})
    assert imported(bed, folder).config.score == "sigmoid"
    torch.save(bottlenecks("output"), folder / "pytorch_adapter.bin")
    (folder / "adapter.safetensors").unlink()
    adapter = imported(bed, folder)
    bed.labels.write_text("one\ntwo\nthree\nfour\nfive")
    assert bed.made("adapterhub", folder).config.labels[0] == "one"
    assert adapter.config.labels == LABELS
    torch.save({"a": Trap(bed.folder / "trapped")}, folder / "pytorch_adapter.bin")
    assert "cannot be read" in bed.refused("adapterhub", folder)
    assert not (bed.folder / "trapped").exists()
    static = {"config": None, "label2id": {label: number for number, label in enumerate(LABELS)}, "num_labels": 5}
    folder = save_folder(folder, SEQ_BN, bottlenecks("output"))
    (folder / "head_config.json").write_text(json.dumps(static))
    save_file({"classifier.weight": noise(5, WIDTH), "classifier.bias": noise(5)}, folder / "model_head.safetensors")
    assert imported(bed, folder).config.labels == LABELS


FIRST = f"vit.encoder.layer.0.{PLACES['output']}.adapters.pets"


@pytest.mark.parametrize(
    ("config", "change", "of_head", "reason"),
    [
        ({"use_gating": True}, {}, {}, "a gate"),
        ({"ln_after": True}, {}, {}, "LayerNorm of its own"),
        ({"residual_before_ln": "post_add"}, {}, {}, "'post_add', for which ViT has no LayerNorm"),
        ({"original_ln_after": False}, {}, {}, "not at all"),
        ({"architecture": "prefix_tuning"}, {}, {}, "'prefix_tuning'; bottleneck adapters and LoRA"),
        ({"architecture": "lora", "composition_mode": "scale"}, {}, {}, "it multiplies"),
        ({"non_linearity": "gelu_new"}, {}, {}, "'gelu_new' is none"),
        ({"scaling": "much"}, {}, {}, "field 'scaling"),
        ({"scaling": "learned"}, {}, {}, "lacks tensor scaling"),
        ({"phm_layer": True}, {}, {}, "lacks its rules"),
        ({}, {f"{FIRST}.gate.weight": noise(1, WIDTH)}, {}, "gate.weight, which nothing here computes"),
        ({}, {f"{FIRST}.adapter_up.bias": noise(3)}, {}, "do not fit together"),
        ({}, {FIRST.replace("pets", "cars") + ".adapter_up.bias": noise(3)}, {}, "holds 2 adapters"),
        ({}, {"vit.prefix": noise(3)}, {}, "none of a bottleneck"),
        ({}, {}, {"layers": 2}, "of one layer"),
        ({}, {}, {"use_pooler": True}, "pooler's tanh"),
        ({}, {}, {"label2id": None}, "--labels FILE"),
        ({}, {}, {"label2id": {"a": 0, "b": 2}}, "leaves out numbers"),
        ({}, {}, {"label2id": {"a": 0}}, "has 1 labels, the head has 5"),
    ],
)
def test_what_nothing_here_computes_is_refused(
    bed: Bed, config: dict[str, Any], change: dict[str, Tensor], of_head: dict[str, Any], reason: str
) -> None:
    folder = save_folder(bed.folder / "hub", SEQ_BN | config, bottlenecks("output") | change, of_head=of_head)
    assert reason in bed.refused("adapterhub", folder, labels=False)
    save_folder(folder, SEQ_BN, bottlenecks("output"), model_type="bert")
    assert "only ViT" in bed.refused("adapterhub", folder)
    (folder / "head_config.json").unlink()
    save_folder(folder, SEQ_BN, bottlenecks("output"))
    (folder / "head_config.json").unlink()
    assert "with_head=True" in bed.refused("adapterhub", folder)
