"""The peer LitServe with PEFT's mixed batch. Its arguments: FOLDER PORT TASKS DTYPE.

One timm model, a LoRA and a head for each task, and `adapter_names=` says whose row is whose in one forward.
"""

from pathlib import Path
from typing import Any

import litserve
import torch
from fastapi import Request
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from benchmarks.peers.litserve_models import arguments, serve
from benchmarks.peers.model import Folder, Reader, name_of

Read = tuple[str, Tensor]


def save(folder: Folder, tasks: range, rank: int) -> None:
    """Random LoRAs on every qkv and random heads, as PEFT saves them."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["qkv"], modules_to_save=["head"])
    model = get_peft_model(folder.backbone(), config)
    own = [tensor for name, tensor in model.named_parameters() if ".lora_" in name or ".modules_to_save." in name]
    for number in tasks:
        generator = torch.Generator().manual_seed(number)
        for tensor in own:
            tensor.data = torch.randn(tensor.shape, generator=generator) * 0.02
        model.save_pretrained(folder.lora(name_of(number)), save_embedding_layers=False)


class Api(litserve.LitAPI):  # type: ignore[misc]
    """A form with ``task`` and ``picture`` -> the task's scores."""

    def __init__(self, folder: Path, tasks: int, dtype: str, **more: Any) -> None:
        super().__init__(**more)
        self._given = folder, tasks, dtype

    def setup(self, device: str) -> None:  # noqa: ARG002
        path, tasks, dtype = self._given
        self._folder, self._dtype = Folder(path), getattr(torch, dtype)
        backbone = self._folder.backbone()
        self._read = Reader(backbone)
        first = name_of(0)
        self._model = PeftModel.from_pretrained(backbone, self._folder.lora(first), adapter_name=first)
        for number in range(1, tasks):
            self._load(name_of(number))
        self._model.eval().to(self._dtype)

    def decode_request(self, request: Request) -> Read:
        return request["task"], self._read(request["picture"].file.read())

    def batch(self, inputs: list[Read]) -> tuple[list[str], Tensor]:
        return [task for task, _ in inputs], torch.stack([pixels for _, pixels in inputs])

    @torch.inference_mode()
    def predict(self, inputs: tuple[list[str], Tensor]) -> list[list[float]]:
        names, pixels = inputs
        for task in set(names) - set(self._model.peft_config):
            self._load(task)
        found: list[list[float]] = self._model(pixels.to(self._dtype), adapter_names=names).float().softmax(-1).tolist()
        return found

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        return {"scores": output}

    def _load(self, task: str) -> None:
        self._model.load_adapter(self._folder.lora(task), adapter_name=task)
        self._model.eval().to(self._dtype)


if __name__ == "__main__":
    given = arguments(__doc__)
    serve(Api(given.folder, given.tasks, given.dtype, max_batch_size=given.batch, batch_timeout=given.wait), given.port)
