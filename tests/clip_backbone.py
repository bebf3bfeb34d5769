"""A small video ViT whose weights came from a file in VideoMAE's names, and clips for it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.backbone import Backbone, load_backbone
from tests.models import small_backbone

FRAMES = 4


class ClipBase:
    """A folder with its config, and weights as VideoMAE's fine-tuning saves them, beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.weights = folder, folder / "videomae.safetensors"
        save_file(videomae_names(small_backbone(folder, "videomae")), self.weights)
        self.backbone = load_backbone(str(folder), str(self.weights), "cpu", "float32")


def videomae_names(backbone: Backbone) -> dict[str, Tensor]:
    """A backbone's tensors as VideoMAE's code names them: queries and values have biases, keys have none."""
    state: dict[str, Tensor] = {}
    for name, tensor in backbone.model.state_dict().items():
        if name.endswith(".attn.qkv.bias"):
            for letter, part in (("q", 0), ("v", 2)):
                state[name.replace("qkv.bias", f"{letter}_bias")] = tensor.chunk(3)[part].clone()
        else:
            state[name] = tensor.clone()
    return state


def clips_of(backbone: Backbone, count: int, seed: int = 0) -> Tensor:
    """uint8 (count, frames, 3, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    shape = count, backbone.layout.frames, 3, *backbone.layout.input_size
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def normalised(backbone: Backbone, clips: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.input.mean, backbone.input.std))
    return clips.float().div(255).sub(mean).div(std)
