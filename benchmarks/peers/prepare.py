"""What all systems serve: one backbone's weights, a random adapter and a random LoRA for each task, and pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from adapters.backbone import load_backbone
from adapters.file import write_adapter
from benchmarks.common import random_adapter
from benchmarks.peers.model import Folder, name_of

CLASSES = 10
PICTURES, SIZE = 48, (335, 500)


def pictures() -> list[bytes]:
    """JPEGs of smooth noise, about as large as photographs; no two are the same, so that no cache can help."""
    made = []
    for seed in range(PICTURES):
        noise = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=75)
        made.append(file.getvalue())
    return made


def prepare(path: Path, backbone: str, weights: str, tasks: int, lora: bool) -> tuple[Folder, dict[str, float]]:
    """The folder that every server reads; and what share of the backbone's parameters each kind of adapter has."""
    folder = Folder(path)
    ours = load_backbone(backbone, weights, "cpu", "float32")
    save_file({name: tensor.contiguous() for name, tensor in ours.model.state_dict().items()}, folder.weights)
    (path / "setup.json").write_text(json.dumps({"backbone": backbone, "classes": CLASSES}))
    folder.adapter("").parent.mkdir()
    size = 0
    for number in range(tasks):
        adapter = random_adapter(ours, number, classes=CLASSES, task=name_of(number))
        size = adapter.parameters
        write_adapter(folder.adapter(name_of(number)), adapter.config, adapter.tensors)
    parameters = sum(p.numel() for p in ours.model.parameters())
    shares = {"adaptformer": size / parameters}
    if lora:
        from benchmarks.peers.litserve_peft import save

        width, depth = ours.layout.width, ours.layout.blocks
        head = CLASSES * (width + 1)
        each = depth * (width + 3 * width)  # of rank 1, on qkv
        rank = max(1, round((size - head) / each))
        save(folder, range(tasks), rank)
        shares["lora"] = (rank * each + head) / parameters
    return folder, shares
