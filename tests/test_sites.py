"""The operator: one module for training, one banked function for serving, and the same numbers from both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adapters.bank import Slabs, pack
from adapters.config import ACTIVATIONS, SiteConfig
from adapters.file import Adapter
from adapters.layout import Layout
from adapters.sites import ClipRows, LowRankResidual, SiteRows, SlotWeights, banked_residual
from tests.models import Spec, close, config_of, random_adapter, small_backbone

WIDTH, TOKENS = 24, 7


def site(act: str = "relu", rank: int = 6, temporal: bool = False) -> SiteConfig:
    return SiteConfig(site="parallel", blocks=(0,), rank=rank, act=act, scale=0.7, temporal=temporal)


def module(config: SiteConfig, seed: int) -> LowRankResidual:
    torch.manual_seed(seed)
    made = LowRankResidual(config, WIDTH, WIDTH).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=0.4)
    return made


def slots_of(modules: list[tuple[SiteConfig, LowRankResidual]], rank: int) -> SlotWeights:
    """Slot 0 empty, then one slot each, padded to ``rank``, as the bank does it."""
    n = len(modules) + 1
    weights = SlotWeights(
        torch.zeros(n, WIDTH, rank), torch.zeros(n, rank), torch.zeros(n, rank, WIDTH), torch.zeros(n, WIDTH),
        torch.zeros(n, 3, rank),
    )  # fmt: skip
    for i, (config, m) in enumerate(modules, 1):
        weights.down[i, :, : config.rank] = m.down.weight.T
        weights.down_bias[i, : config.rank] = m.down.bias
        weights.up[i, : config.rank] = m.up.weight.T * m.scale
        weights.up_bias[i] = m.up.bias * m.scale
        weights.time[i, 1] = 1.0
        if m.time is not None:
            weights.time[i, :, : config.rank] = m.time[:, 0].T
    return weights


def rows(slots: list[int], acts: list[str], clips: ClipRows | None = None) -> SiteRows:
    codes = torch.tensor([ACTIVATIONS.index(a) for a in acts])
    present = tuple(ACTIVATIONS[c] for c in codes[torch.tensor(slots) > 0].unique().tolist())
    return SiteRows(torch.tensor(slots), present, codes, clips)


@torch.inference_mode()
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_banked_equals_the_training_module(act: str) -> None:
    config = site(act)
    made = [(config, module(config, s)) for s in (1, 2, 3)]
    tap, out = torch.randn(4, TOKENS, WIDTH), torch.randn(4, TOKENS, WIDTH)
    order = [2, 1, 0, 3]
    expected = torch.stack([out[i] + (made[s - 1][1](tap[i : i + 1])[0] if s else 0) for i, s in enumerate(order)])
    found = banked_residual(tap, out.clone(), slots_of(made, rank=16), rows(order, [act] * 4))
    close(found, expected)


@torch.inference_mode()
def test_activations_and_ranks_mix_in_one_batch() -> None:
    configs = [site(act, rank) for act, rank in (("none", 4), ("relu", 8), ("gelu", 1))]
    made = [(c, module(c, i)) for i, c in enumerate(configs)]
    tap = torch.randn(3, TOKENS, WIDTH)
    found = banked_residual(tap, torch.zeros_like(tap), slots_of(made, 8), rows([1, 2, 3], ["none", "relu", "gelu"]))
    expected = torch.cat([m(tap[i : i + 1]) for i, (_, m) in enumerate(made)])
    close(found, expected)


@torch.inference_mode()
def test_time_mixing_stays_inside_its_clip_and_leaves_pictures_alone() -> None:
    timed, plain = site(temporal=True), site()
    made = [(timed, module(timed, 1)), (plain, module(plain, 2))]
    tap = torch.randn(9, TOKENS, WIDTH)  # a picture, a clip of 5, a clip of 3
    index = torch.arange(9)
    first = torch.tensor([True, True, False, False, False, False, True, False, False])
    last = torch.tensor([True, False, False, False, False, True, False, False, True])
    clips = ClipRows(
        torch.where(first, index, index - 1), torch.where(last, index, index + 1),
        (~first).float().view(-1, 1, 1), (~last).float().view(-1, 1, 1),
    )  # fmt: skip
    found = banked_residual(tap, torch.zeros_like(tap), slots_of(made, 8), rows([2] + [1] * 8, ["relu"] * 9, clips))
    expected = torch.cat([made[1][1](tap[:1]), made[0][1](tap[1:6], 5), made[0][1](tap[6:], 3)])
    close(found, expected)
    still = banked_residual(tap, torch.zeros_like(tap), slots_of(made, 8), rows([2] * 9, ["relu"] * 9))
    assert torch.equal(found[0], still[0])


def test_a_fresh_residual_adds_nothing() -> None:
    made = LowRankResidual(site(temporal=True), WIDTH, WIDTH)
    assert torch.equal(made(torch.randn(4, TOKENS, WIDTH), 4), torch.zeros(4, TOKENS, WIDTH))
    assert made.down.weight.abs().sum() > 0


def test_a_learnt_scale_has_a_gradient() -> None:
    made = LowRankResidual(site(), WIDTH, WIDTH, learn_scale=True)
    torch.nn.init.normal_(made.up.weight)
    made(torch.randn(2, TOKENS, WIDTH)).sum().backward()
    assert isinstance(made.scale, torch.nn.Parameter)
    assert made.scale.grad is not None


@torch.inference_mode()
def test_the_bits_of_a_row_do_not_depend_on_slot_or_neighbours() -> None:
    config = site()
    made = [(config, module(config, s)) for s in range(1, 6)]
    weights = slots_of([*made, made[0]], 8)  # slot 6 holds what slot 1 holds
    tap = torch.randn(8, TOKENS, WIDTH)
    zero = torch.zeros_like(tap)
    one = banked_residual(tap, zero.clone(), weights, rows([1] * 8, ["relu"] * 8))
    mixed = banked_residual(tap, zero.clone(), weights, rows([1, 2, 3, 6, 4, 5, 0, 1], ["relu"] * 8))
    assert torch.equal(one[[0, 3, 7]], mixed[[0, 3, 7]])
    turn = torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])
    turned = banked_residual(tap[turn], zero.clone(), weights, rows([1] * 8, ["relu"] * 8))
    assert torch.equal(turned[turn], one)


@torch.inference_mode()
def test_not_a_number_stays_in_its_row() -> None:
    config = site()
    made = [(config, module(config, 1)), (config, module(config, 2))]
    tap = torch.randn(3, TOKENS, WIDTH)
    tap[1] = float("nan")
    found: Tensor = banked_residual(tap, torch.zeros_like(tap), slots_of(made, 8), rows([1, 2, 1], ["relu"] * 3))
    assert found[[0, 2]].isfinite().all()
    assert found[1].isnan().any()


def test_packing_writes_what_the_file_says(tmp_path) -> None:  # type: ignore[no-untyped-def]
    backbone = small_backbone(tmp_path)
    spec = Spec((SiteConfig(site="parallel", blocks=(0, 2), rank=5, act="relu", scale=0.5),), classes=20)
    adapter: Adapter = random_adapter(backbone, spec, 1)
    layout: Layout = backbone.layout
    slabs = Slabs(layout, slots=2, rank=8, pages=4, dtype=torch.float32, device=torch.device("cpu"))
    slabs.write(2, [3, 1], pack(adapter, layout, 8, torch.float32))
    first, second, third = slabs.weights["parallel"]
    assert torch.equal(first.down[2, :, :5], adapter.tensors["parallel.0.down.weight"].T)
    assert torch.equal(third.up[2, :5], adapter.tensors["parallel.2.up.weight"].T * 0.5)
    assert not first.down[2, :, 5:].any()
    assert not second.up[2].any()
    assert not first.up[0].any()
    assert torch.equal(slabs.pages[[3, 1]].flatten(0, 1)[:20], adapter.tensors["head.weight"])
    assert config_of(backbone, spec).frames == 1
