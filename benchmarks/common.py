"""What the benchmarks share: random adapters, slots filled with them, the machine's name."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from adapters.backbone import Backbone
from adapters.bank import SimpleBank, Slabs
from adapters.config import AdapterConfig, BaseModelConfig, SiteConfig
from adapters.file import Adapter
from adapters.meta import AdapterMeta


def random_adapter(backbone: Backbone, seed: int, classes: int = 10, task: str = "bench", first: int = 0) -> Adapter:
    """AdaptFormer in every block from ``first`` on, at about 1.4 % of the backbone if in all; every tensor random."""
    layout = backbone.layout
    blocks = tuple(range(first, layout.blocks))
    sites = (SiteConfig(site="parallel", blocks=blocks, rank=layout.default_rank()),) if blocks else ()
    config = AdapterConfig(
        task=task,
        labels=tuple(f"class {i}" for i in range(classes)),
        base=BaseModelConfig(model=layout.model, fingerprint=layout.fingerprint),
        sites=sites,
        input=backbone.input,
    )
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in layout.tensors(config).items()}
    return Adapter(config, tensors, f"{seed:064x}")


def fill(
    backbone: Backbone, count: int, first: int = 0
) -> tuple[Slabs, list[tuple[int, tuple[int, ...], AdapterMeta]]]:
    """``count`` slots, as wide as a server's, each with its own random adapter from block ``first`` on.

    What a job needs of each: (slot, head pages, meta).
    """
    layout = backbone.layout
    adapters = {str(seed): random_adapter(backbone, seed, first=first) for seed in range(1, count + 1)}
    bank = SimpleBank(layout, adapters, dtype=backbone.dtype, device=backbone.device, rank=layout.slot_rank())
    return bank.slabs, [(held.slot, held.pages, held.meta) for held in map(bank.__getitem__, adapters)]


def machine(device: torch.device) -> dict[str, str | int]:
    """Where and when a number was taken."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or "cpu"
