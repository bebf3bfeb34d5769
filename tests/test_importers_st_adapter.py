"""Checkpoints of ST-Adapter's official code, imported, answer as that code would; others are refused with a reason."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor

from adapters.backbone import Backbone
from adapters.file import Adapter
from adapters.predictor import Predictor
from tests.imports import LABELS, Base, Bed
from tests.models import close
from tests.references import pixels
from tests.st_adapter import KINDS, State, official_logits, random_state, save_checkpoint, trained


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(tmp_path_factory.mktemp("models") / "clip", "clip")


@pytest.fixture
def bed(tmp_path: Path, base: Base) -> Bed:
    return Bed(tmp_path, base)


def saved(bed: Bed, state: State) -> Path:
    return save_checkpoint(bed.folder / "checkpoint-49.pth", state)


def check_served(backbone: Backbone, adapter: Adapter, state: State, frames: int) -> None:
    """Two clips as a server answers them, and as the official code does in float64."""
    images = pixels(backbone, 2 * frames)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    clips = ((images / 255 - mean) / std).view(2, frames, *images.shape[1:])
    found = Predictor(backbone, adapter).logits(images.view(*clips.shape).numpy())
    close(torch.from_numpy(np.stack(found)), official_logits({n: t.double() for n, t in state.items()}, clips))


@torch.inference_mode()
def test_an_official_checkpoint_answers_as_its_own_code(bed: Bed) -> None:
    state = random_state(bed.backbone, rank=7)
    source = saved(bed, trained(state))
    adapter = bed.made("st-adapter", source)
    check_served(bed.backbone, adapter, state, 8)
    config = adapter.config
    assert [(s.site, s.rank, s.act, s.scale, s.temporal, s.tokens) for s in config.sites] == [
        ("input", 7, "none", 1.0, True, "patches"), ("pre_mlp", 7, "none", 1.0, True, "patches"),
    ]  # fmt: skip
    assert (config.labels, config.frames, config.pool, config.norm) == (LABELS, 8, "cls", "trained")
    assert (config.input.mean, config.input.std) == (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    assert (config.input.crop_pct, config.input.interpolation) == (1.0, "bicubic")
    printed = " ".join(bed.run("st-adapter", source, "--frames", "4", "--crop-pct", "0.9").output.split())
    assert "cannot be seen from the file" in printed
    assert "4 frames from all over a clip" in printed


@torch.inference_mode()
def test_adapters_before_some_mlps_alone(bed: Bed) -> None:
    state = random_state(bed.backbone, blocks={KINDS[1]: (1, 2)})
    adapter = bed.made("st-adapter", saved(bed, trained(state)), "--frames", "3")
    check_served(bed.backbone, adapter, state, 3)
    assert [(s.site, s.blocks) for s in adapter.config.sites] == [("pre_mlp", (1, 2))]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["whole", "half precision"])
def test_a_backbone_in_the_file_is_compared(bed: Bed, dtype: torch.dtype) -> None:
    state = random_state(bed.backbone)
    own = trained(state)
    whole = {f"module.{n}": t if n in own or "ln_post" in n else t.to(dtype) for n, t in state.items()}
    adapter = bed.made("st-adapter", saved(bed, whole), "--frames", "3")
    check_served(bed.backbone, adapter, state, 3)
    assert "was seen from 41 tensors" in " ".join(bed.run("st-adapter", saved(bed, whole)).output.split())
    whole["module.transformer.resblocks.1.attn.in_proj_weight"][5, 6] += 0.01
    assert "blocks.1.attn.qkv.weight differs by 0.0" in bed.refused("st-adapter", saved(bed, whole))


@torch.inference_mode()
def test_a_last_norm_and_kernels_of_one_frame_are_served(bed: Bed) -> None:
    """A kernel of 1x1x1 mixes nothing; a last norm that the file holds takes the place of the base's."""
    state = random_state(bed.backbone)
    state["ln_post.weight"] += 0.5
    for name in [name for name in state if name.endswith("conv.weight")]:
        state[name] = state[name][:, :, 1:2].clone()
    own = trained(state) | {name: state[name] for name in ("ln_post.weight", "ln_post.bias")}
    check_served(bed.backbone, bed.made("st-adapter", saved(bed, own), "--frames", "3"), state, 3)


FIRST = f"transformer.resblocks.0.{KINDS[0]}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({f"{FIRST}.conv.weight": torch.ones(6, 1, 3, 3, 3)}, "6x1x3x3x3; only kernels of 3x1x1"),
        ({f"{FIRST}.conv.weight": torch.ones(6, 1, 5, 1, 1)}, "6x1x5x1x1; only kernels of 3x1x1"),
        ({f"{FIRST}.conv.weight": torch.ones(6)}, "only kernels of 3x1x1"),
        ({f"{FIRST}.conv.bias": torch.ones(3)}, "do not fit together; its rank is 6"),
        ({f"{FIRST}.fc2.weight": torch.ones(48)}, "do not fit together; its rank is 6"),
        ({f"{FIRST}.fc1.weight": torch.ones(5, 48)}, "do not fit together"),
        ({f"{FIRST}.fc1.weight": torch.ones(6, 40)}, "input.0.down.weight has shape 6x40"),
        ({f"{FIRST}.fc2.bias": torch.full((48,), torch.nan)}, "NaN"),
        ({f"{FIRST}.fc2.bias": torch.ones(3)}, "do not fit together; its rank is 6"),
        ({f"{FIRST}.fc2.bias": torch.ones(1)}, "do not fit together; its rank is 6"),
        ({f"{FIRST}.fc2.bias": torch.tensor(1.0)}, "do not fit together; its rank is 6"),
        ({f"{FIRST}.fc1.bias": torch.ones(6, 1)}, "do not fit together"),
        ({f"{FIRST}.fc1.bias": torch.tensor(1.0)}, "only kernels of 3x1x1"),
        ({"ln_post.weight": torch.ones(3), "ln_post.bias": torch.ones(48)}, "norm.weight has shape 3"),
        ({"fc.weight": torch.ones(5, 3)}, "head.weight has shape 5x3"),
        ({f"{FIRST}.fc2.bias": None}, f"lacks tensor {FIRST}.fc2.bias"),
        ({"fc.weight": None}, "lacks tensor fc.weight"),
        ({"fc.bias": torch.ones(4)}, "do not fit together"),
        ({"ln_post.weight": torch.ones(48)}, "lacks tensor ln_post.bias"),
        ({"temporal_embedding": torch.ones(8, 48)}, "temporal_embedding is none of ST-Adapter's code"),
        ({"conv1.weight": torch.ones(48, 3, 4, 4)}, "another architecture.*patch_embed.proj.weight"),
        ({"transformer.resblocks.3.ln_1.bias": torch.ones(48)}, "another architecture.*blocks.3.norm1.bias"),
    ],
)
def test_what_cannot_be_served_is_refused(bed: Bed, change: dict[str, Tensor | None], reason: str) -> None:
    state = trained(random_state(bed.backbone)) | change
    source = saved(bed, {name: tensor for name, tensor in state.items() if tensor is not None})
    assert re.search(reason, bed.refused("st-adapter", source))


def test_more_blocks_than_the_base_has_are_another_architecture(bed: Bed) -> None:
    state = random_state(bed.backbone, blocks={KINDS[0]: (0, 3)})
    assert "names block 3" in bed.refused("st-adapter", saved(bed, trained(state)))


def test_files_without_adapters_and_other_bases_are_refused(bed: Bed, tmp_path: Path) -> None:
    state = trained(random_state(bed.backbone))
    head = {name: tensor for name, tensor in state.items() if name.startswith("fc.")}
    assert "holds no adapter_pre_attn" in bed.refused("st-adapter", saved(bed, head))
    torch.save(state, bed.folder / "bare.pth")
    assert "no 'model' entry; expected what ST-Adapter's code saves" in bed.refused(
        "st-adapter", bed.folder / "bare.pth"
    )
    other = Bed(tmp_path, Base(tmp_path / "vit"))
    told = other.refused("st-adapter", saved(other, state))
    assert "lacks a norm before its blocks" in told
    assert "vit_base_patch16_clip_quickgelu_224.openai" in told
