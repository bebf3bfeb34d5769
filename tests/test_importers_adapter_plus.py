"""adapter_plus's checkpoints answer as its blocks do, and its settings are read without OmegaConf."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.backbone import load_backbone
from tests.imports import Base, Bed, served
from tests.models import close
from tests.references import normalised, pixels
from tests.test_importers import Trap

WIDTH, RANK, CONFIGS = 48, 6, ("post", "pfeiffer", "parallel", "pre", "intermediate", "houlsby")
CHOSEN = {"config": "post", "act_layer": True, "norm_layer": False, "scaling": "channel", "bias": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def bed(tmp_path: Path, base: Base) -> Bed:
    return Bed(tmp_path, base)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Settings as OmegaConf pickles them: its classes by their names, what they hold in their ``__dict__``."""
    made: dict[str, type] = {}
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    for name in ("dictconfig.DictConfig", "nodes.AnyNode", "base.ContainerMetadata"):
        place, _, kind = name.partition(".")
        module = types.ModuleType(f"omegaconf.{place}")
        made[kind] = type(kind, (), {"__module__": module.__name__})
        setattr(module, kind, made[kind])
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def of(value: object, parent: object = None) -> object:
        found = made["DictConfig" if isinstance(value, dict) else "AnyNode"]()
        vars(found).update(_metadata=made["ContainerMetadata"](), _parent=parent)
        if isinstance(value, dict):
            vars(found)["_content"] = {key: of(held, found) for key, held in value.items()}
        else:
            vars(found)["_val"] = value
        return found

    return of


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def state_of(*kinds: str, scaled: bool = True, bias: bool = True) -> dict[str, Tensor]:
    state = {"vit.head.weight": noise(5, WIDTH, seed=98), "vit.head.bias": noise(5, seed=99)}
    for number, prefix in enumerate(f"vit.blocks.{block}.{kind}" for block in (0, 2) for kind in kinds):
        parts: dict[str, tuple[int, ...]] = {"bottleneck.1.weight": (RANK, WIDTH), "bottleneck.4.weight": (WIDTH, RANK)}
        parts |= {"bottleneck.1.bias": (RANK,), "bottleneck.4.bias": (WIDTH,)} if bias else {}
        parts |= {"scaling": (WIDTH,)} if scaled else {}
        state |= {
            f"{prefix}.{part}": noise(*shape, seed=9 * number + at) for at, (part, shape) in enumerate(parts.items())
        }
    return state


def saved(bed: Bed, state: dict[str, Tensor], cfg: object) -> Path:
    path = bed.folder / "last.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": {"cfg": cfg}, "epoch": 9}, path)
    return path


def added(state: dict[str, Tensor], prefix: str, z: Tensor, scale: float | None, act: bool) -> Tensor | float:
    """f(z) of one adapter; nothing where there is none."""
    if f"{prefix}.bottleneck.1.weight" not in state:
        return 0.0
    down, up = (state[f"{prefix}.bottleneck.{n}.weight"].double() for n in (1, 4))
    biases = [state.get(f"{prefix}.bottleneck.{n}.bias", torch.zeros(1)).double() for n in (1, 4)]
    hidden = z @ down.T + biases[0]
    factor = state[f"{prefix}.scaling"].double() if scale is None else scale
    return factor * ((F.gelu(hidden) if act else hidden) @ up.T + biases[1])


def expected_logits(bed: Bed, state: dict[str, Tensor], config: str, scale: float | None) -> Tensor:
    """Each forward of the official blocks, as it is written there."""
    model = load_backbone(str(bed.base), str(bed.weights), "cpu", "float32").model.double()
    x = model._pos_embed(model.patch_embed(normalised(bed.backbone, pixels(bed.backbone, 3)).double()))
    for index, block in enumerate(model.blocks):

        def f(z: Tensor, kind: str = "adapter", index: int = index) -> Tensor | float:
            return added(state, f"vit.blocks.{index}.{kind}", z, scale, act=True)

        attended = block.attn(block.norm1(x))
        x = x + attended + (f(attended, "adapter_attn") if config == "houlsby" else 0.0)
        x = x + f(x) if config == "pre" else x
        m = block.mlp(block.norm2(x))
        tap = {"parallel": x, "intermediate": m, "houlsby": m}.get(config, x + m)
        x = x + m + (0.0 if config == "pre" else f(tap))
    return model.norm(x)[:, 0] @ state["vit.head.weight"].T.double() + state["vit.head.bias"].double()


@torch.inference_mode()
@pytest.mark.parametrize("config", CONFIGS)
def test_a_checkpoint_answers_as_the_official_blocks(bed: Bed, node: Any, config: str) -> None:
    number = config in ("pre", "parallel")
    kinds = ("adapter", "adapter_attn") if config == "houlsby" else ("adapter",)
    state = state_of(*kinds, scaled=not number, bias=config != "intermediate")
    chosen = CHOSEN | {"config": config} | ({"scaling": 0.7} if number else {})
    source = saved(bed, state, node({"adapter": chosen, "lora": None, "vit": {"model": "vit_x"}}))
    adapter = bed.made("adapter-plus", source)
    assert adapter.config.training["trained_on"] == "vit_x"
    assert (adapter.config.input.crop_mode, adapter.config.sites[0].act) == ("squash", "gelu")
    expected = expected_logits(bed, state, config, 0.7 if number else None)
    close(served(bed.backbone, adapter, pixels(bed.backbone, 3)), expected)


@torch.inference_mode()
def test_lora_on_attentions_layers(bed: Bed, node: Any) -> None:
    """On ``o`` it taps what the layer puts out."""
    state = state_of("attn.adapters.v", "attn.adapters.o", scaled=False, bias=False)
    lora = CHOSEN | {"config": "attention", "act_layer": False, "scaling": 2}
    adapter = bed.made("adapter-plus", saved(bed, state, node({"adapter": None, "lora": lora})))
    assert {site.site for site in adapter.config.sites} == {"v", "attn"}
    model = load_backbone(str(bed.base), str(bed.weights), "cpu", "float32").model.double()
    for index in (0, 2):
        v, o = (
            2 * state[f"vit.blocks.{index}.attn.adapters.{kind}.bottleneck.4.weight"].double()
            @ state[f"vit.blocks.{index}.attn.adapters.{kind}.bottleneck.1.weight"].double()
            for kind in "vo"
        )  # fmt: skip
        attn = model.blocks[index].attn
        attn.qkv.weight[2 * WIDTH :] += v
        attn.proj.bias += o @ attn.proj.bias
        attn.proj.weight += o @ attn.proj.weight
    vectors = model.forward_head(model.forward_features(normalised(bed.backbone, pixels(bed.backbone, 3)).double()))
    expected = vectors @ state["vit.head.weight"].T.double() + state["vit.head.bias"].double()
    close(served(bed.backbone, adapter, pixels(bed.backbone, 3)), expected)


@pytest.mark.parametrize(
    ("cfg", "change", "reason"),
    [
        ({"adapter": CHOSEN | {"config": "sideways"}}, {}, "'sideways' is none of post"),
        ({"adapter": None}, {}, "no adapter and no LoRA"),
        ({"adapter": CHOSEN, "prompt": {"num_tokens": 4}}, {}, "add tokens"),
        ({"adapter": CHOSEN, "train": {"train_ln": True}}, {}, "every LayerNorm"),
        ({"adapter": CHOSEN}, {"vit.blocks.0.adapter.norm_a.weight": noise(WIDTH)}, "norm_layer"),
        ({"adapter": CHOSEN}, {"vit.blocks.0.adapter_attn.scaling": noise(WIDTH)}, "does not use"),
        ({"adapter": CHOSEN}, {"vit.blocks.0.adapter.scaling": noise(3)}, "do not fit together"),
        ({"adapter": CHOSEN}, {"vit.cls_token": noise(3)}, "none of an adapter"),
    ],
)
def test_what_cannot_be_served_is_refused(
    bed: Bed, node: Any, cfg: dict[str, Any], change: dict[str, Tensor], reason: str
) -> None:
    assert reason in bed.refused("adapter-plus", saved(bed, state_of("adapter") | change, node(cfg)))


def test_a_checkpoint_runs_no_code(bed: Bed, node: Any) -> None:
    state = state_of("adapter", scaled=False)
    assert "lacks its scaling" in bed.refused("adapter-plus", saved(bed, state, node({"adapter": CHOSEN})))
    trapped = saved(bed, state, Trap(bed.folder / "trapped"))
    assert "cannot be read" in bed.refused("adapter-plus", trapped)
    assert not (bed.folder / "trapped").exists()
    assert "lacks 'state_dict'" in bed.refused("adapter-plus", saved(bed, state, None))
