"""The tasks as anybody would have them without AdaptServe: plain timm with AdaptFormer's few lines around each block.

The peers serve these modules, and what every server answers is held against them. It knows a folder with a backbone's
weights and a file for each task; it imports nothing of this project, as a peer's code would not.
"""

from __future__ import annotations

import copy
import io
import json
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

METADATA_KEY = "adaptserve"


class Adapted(nn.Module):
    """A transformer block and AdaptFormer beside its MLP: scale * up(relu(down(x))) of the input to norm2."""

    def __init__(self, block: Any, down: nn.Linear, up: nn.Linear, scale: float) -> None:
        super().__init__()
        self.block, self.down, self.up, self.scale = block, down, up, scale

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.block.attn(self.block.norm1(x))
        return cast(Tensor, x + self.block.mlp(self.block.norm2(x)) + self.scale * self.up(F.relu(self.down(x))))


class Folder:
    """Where the benchmark keeps the backbone's weights, ``setup.json`` and the tasks' files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def weights(self) -> Path:
        return self.path / "backbone.safetensors"

    @property
    def setup(self) -> dict[str, Any]:
        """``backbone``: timm's name. ``classes``: of every task."""
        return cast(dict[str, Any], json.loads((self.path / "setup.json").read_text()))

    def adapter(self, task: str) -> Path:
        """AdaptFormer, in AdaptServe's format."""
        return self.path / "adaptformer" / f"{task}.safetensors"

    def lora(self, task: str) -> Path:
        """The folder that PEFT saves."""
        return self.path / "lora" / task

    def backbone(self) -> nn.Module:
        """A copy of timm's model with these weights; its head has the classes of the tasks and is as timm starts it."""
        return copy.deepcopy(self._backbone)  # initialising each anew would take most of a peer's start

    def task(self, task: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A whole model for one task."""
        path = self.adapter(task)
        with safe_open(path, "pt") as file:
            config = json.loads(file.metadata()[METADATA_KEY])
        tensors = load_file(path)
        model = cast(Any, self.backbone())
        for site in config["sites"]:
            assert site["site"] == "parallel"
            for block in site["blocks"]:
                down, up = (_linear(tensors, f"parallel.{block}.{name}") for name in ("down", "up"))
                model.blocks[block] = Adapted(model.blocks[block], down, up, site["scale"])
        model.head = _linear(tensors, "head")
        return cast(nn.Module, model.eval().requires_grad_(False).to(dtype))

    def merged(self, task: str) -> nn.Module:
        """A whole model for one of PEFT's tasks, its LoRA added into timm's weights by hand."""
        config = json.loads((self.lora(task) / "adapter_config.json").read_text())
        tensors = load_file(self.lora(task) / "adapter_model.safetensors")
        model = cast(Any, self.backbone())
        for number, block in enumerate(model.blocks):
            place = f"base_model.model.blocks.{number}.attn.qkv"
            added = tensors[f"{place}.lora_B.weight"] @ tensors[f"{place}.lora_A.weight"]
            block.attn.qkv.weight.data += config["lora_alpha"] / config["r"] * added
        model.head = _linear(tensors, "base_model.model.head")
        return cast(nn.Module, model.eval().requires_grad_(False))

    @cached_property
    def _backbone(self) -> nn.Module:
        model: nn.Module = timm.create_model(self.setup["backbone"], num_classes=self.setup["classes"])
        lacking = model.load_state_dict(load_file(self.weights), strict=False)
        assert not lacking.unexpected_keys
        assert all(name.startswith("head.") for name in lacking.missing_keys), lacking.missing_keys
        return model.eval().requires_grad_(False)


class Reader:
    """Bytes of a picture -> normalised pixels (3, size, size), with timm's eval transform of that model."""

    def __init__(self, model: nn.Module) -> None:
        self._transform = create_transform(**resolve_model_data_config(model), is_training=False)

    def __call__(self, body: bytes) -> Tensor:
        return cast(Tensor, self._transform(Image.open(io.BytesIO(body)).convert("RGB")))


class Models(dict[str, nn.Module]):
    """A whole model for each task; one that is not there is loaded when it is asked for."""

    def __init__(self, folder: Folder, dtype: torch.dtype, tasks: int) -> None:
        super().__init__()
        self._folder, self._dtype = folder, dtype
        for number in range(tasks):
            self[name_of(number)]

    def __missing__(self, task: str) -> nn.Module:
        self[task] = self._folder.task(task, self._dtype)
        return self[task]


def name_of(number: int) -> str:
    """A task's name, from the most popular one on."""
    return f"task-{number}"


@torch.inference_mode()
def scores(model: nn.Module, pixels: Tensor) -> list[list[float]]:
    """Probabilities of normalised pixels (rows, 3, size, size), a list for each row."""
    dtype = next(model.parameters()).dtype
    return cast(list[list[float]], model(pixels.to(dtype)).float().softmax(-1).tolist())


def _linear(tensors: dict[str, Tensor], name: str) -> nn.Linear:
    weight = tensors[f"{name}.weight"].float()
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.load_state_dict({"weight": weight, "bias": tensors[f"{name}.bias"].float()})
    return made
