"""Padding of a batch to its graph's size, and (with a GPU) graphs against the eager forward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adapters.bank import Slabs, pack
from adapters.config import SiteConfig
from adapters.forward.banked import BankedForward, Job
from adapters.forward.graphs import pad, padded_rows
from adapters.forward.plan import AFTER, BEFORE, SLOTS, plan_of
from tests.models import Spec, random_adapter, small_backbone


def site(temporal: bool = False) -> SiteConfig:
    return SiteConfig(site="parallel", blocks=(0, 1, 2), rank=4, temporal=temporal)


def test_sizes_of_graphs() -> None:
    assert [padded_rows(n) for n in (1, 2, 3, 5, 8, 9, 17, 32)] == [1, 2, 4, 8, 8, 16, 24, 32]


@torch.inference_mode()
def test_padding_changes_no_answer(tmp_path: Path) -> None:
    backbone = small_backbone(tmp_path / "vit")
    adapters = [random_adapter(backbone, Spec((site(f > 1),), 3, frames=f), f) for f in (1, 3)]
    slabs = Slabs(backbone.layout, slots=2, rank=8, pages=2, dtype=torch.float32, device=torch.device("cpu"))
    jobs = []
    for slot, adapter in enumerate(adapters, 1):
        packed = pack(adapter, backbone.layout, 8, torch.float32)
        slabs.write(slot, [slot], packed)
        pixels = torch.randint(0, 256, (adapter.config.frames, 3, 32, 32), dtype=torch.uint8).numpy()
        jobs.append(Job(pixels, slot, (slot,), packed.meta))
    forward, plan = BankedForward(backbone, slabs), plan_of([jobs[0], jobs[1], jobs[0]])
    assert plan.key.rows == 5
    table, pixels = torch.from_numpy(plan.table), torch.from_numpy(np.concatenate([jobs[i].pixels for i in (0, 1, 0)]))
    key, wide, frames = pad(plan.key, table, pixels)
    assert key.rows == 8
    assert wide[SLOTS, 5:].tolist() == [0, 0, 0]
    assert wide[BEFORE, 5:].tolist() == wide[AFTER, 5:].tolist() == [5, 6, 7]
    for bare, padded in zip(
        forward._compute(plan.key, table, pixels), forward._compute(key, wide, frames), strict=True
    ):
        torch.testing.assert_close(padded[:5], bare, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_answers_as_the_eager_forward_does(tmp_path: Path, dtype: torch.dtype) -> None:
    cuda, name = torch.device("cuda"), str(dtype).removeprefix("torch.")
    backbone = small_backbone(tmp_path / "vit", device="cuda", dtype=name)
    slabs = Slabs(backbone.layout, slots=6, rank=8, pages=6, dtype=dtype, device=cuda)
    packs = []
    for slot in range(1, 7):
        frames = 1 + (slot % 2) * 2
        adapter = random_adapter(backbone, Spec((site(frames > 1),), 3 + slot, frames=frames), slot)
        packed = pack(adapter, backbone.layout, 8, dtype, pinned=True)
        slabs.write(slot, [slot], packed)
        packs.append((slot, (slot,), packed.meta))
    graphed, eager = BankedForward(backbone, slabs), BankedForward(backbone, slabs, cuda_graphs=False)
    for turn in range(12):
        chosen = [packs[(turn + i * 5) % 6] for i in range(1 + turn % 5)]
        jobs = [Job(torch.randint(0, 256, (p[2].frames, 3, 32, 32), dtype=torch.uint8).numpy(), *p) for p in chosen]
        for a, b in zip(graphed(jobs), eager(jobs), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-2)
    assert any(graphed._graphs._kept.values())
