"""The equalities of test_backbone.py at full size, on the models that people use; weights are random."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from adapters.backbone import load_backbone
from tests.models import Spec, random_adapter
from tests.references import NORMS, Bench, all_sites, normalised, pixels, reference

NAMES = (
    "vit_tiny_patch16_224", "vit_base_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224",
    "eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "beit_base_patch16_224", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256", "cait_xxs24_224", "xcit_tiny_12_p16_224", "hiera_tiny_224", "sam2_hiera_tiny",
    "samvit_base_patch16_224", "qwen3_vit_88m", "deepseek_vit_412m",
)  # fmt: skip


@pytest.mark.torture
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_full_size(name: str) -> None:
    """Bare features bit for bit; 16 tasks in one batch as each alone; each alone as in plain PyTorch."""
    backbone = load_backbone(name, "random:0", "cpu", "float32")
    torch.manual_seed(0)
    bare = timm.create_model(name, pretrained=False, num_classes=0).eval().requires_grad_(False)
    images = normalised(backbone, pixels(backbone, 2))
    assert torch.equal(backbone.features(images).normed, bare.forward_features(images))
    names = [s for s in backbone.layout.sites if s not in ("qkv", "q", "k", "v", "proj")]
    adapters = []
    for i in range(16):
        frames = (1, 1, 1, 2)[i % 4]
        pool = backbone.layout.pools[i % len(backbone.layout.pools)]
        norm = "trained" if pool not in NORMS and i % 2 else "frozen"
        site = all_sites(backbone, names[i % len(names)], temporal=frames > 1, rank=8)
        adapters.append(random_adapter(backbone, Spec((site,), 3 + i, pool, norm, frames), i, size=0.05))
    bench = Bench(backbone, adapters)
    jobs = [bench.job(i, pixels(backbone, a.config.frames, seed=i)) for i, a in enumerate(adapters)]
    for job, adapter, logits in zip(jobs, adapters, bench.forward(jobs), strict=True):
        alone = bench.forward([job])[0]
        scale = np.abs(alone).max()
        np.testing.assert_allclose(logits / scale, alone / scale, atol=1e-4)
        expected = reference(backbone, adapter, torch.from_numpy(job.pixels))[0].numpy()
        np.testing.assert_allclose(alone / scale, expected / scale, atol=1e-4)
