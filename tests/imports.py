"""A bench for importers: a small base, a labels file, the `import` command, and logits as a server computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner, Result

from adapters.backbone import Backbone, load_backbone
from adapters.file import Adapter, read_adapter
from adapters.limits import FileLimits
from adapters.predictor import Predictor
from service.cli.main import app
from tests.models import small_backbone
from tests.official import save_checkpoint

LABELS = ("cat", "dog", "a/b", "été", "[x")


class Base:
    """A small ViT in a folder, its weights beside its config."""

    def __init__(self, folder: Path, family: str = "vit") -> None:
        self.folder, self.weights = folder, folder / "weights.safetensors"
        save_file(small_backbone(folder, family).model.state_dict(), self.weights)
        self.backbone = load_backbone(str(folder), str(self.weights), "cpu", "float32")


class Bed:
    """A folder with labels and the command in it, and a base with its weights elsewhere."""

    def __init__(self, folder: Path, base: Base) -> None:
        self.folder, self.base, self.weights, self.backbone = folder, base.folder, base.weights, base.backbone
        self.labels = folder / "labels.txt"
        self.labels.write_text("\n".join(LABELS) + "\n", encoding="utf-8")
        self.out = folder / "Made here.safetensors"

    def run(self, command: str, source: Path, *options: str, weights: bool = True, labels: bool = True) -> Result:
        given = ["--base", str(self.base), "--out", str(self.out)]
        given += ["--weights", str(self.weights)] if weights else []
        given += ["--labels", str(self.labels)] if labels else []
        self.out.unlink(missing_ok=True)
        return CliRunner().invoke(app, ["import", command, str(source), *given, *options])

    def made(self, command: str, source: Path, *options: str, labels: bool = True) -> Adapter:
        done = self.run(command, source, *options, labels=labels)
        assert done.exit_code == 0, done.output
        return read_adapter(self.out, self.backbone.layout, FileLimits())

    def refused(self, command: str, source: Path, *options: str, weights: bool = True, labels: bool = True) -> str:
        done = self.run(command, source, *options, weights=weights, labels=labels)
        assert done.exit_code == 1, done.output
        assert len(done.stderr.splitlines()) == 1
        assert not self.out.exists()
        return done.stderr

    def checkpoint(self, state: dict[str, Tensor], **args: Any) -> Path:
        return save_checkpoint(self.folder / "ckpt.pth", state, **args)


def served(backbone: Backbone, adapter: Adapter, images: Tensor) -> Tensor:
    """Logits as a server computes them: packed, in a slot, through the banked forward."""
    return torch.from_numpy(np.stack(Predictor(backbone, adapter).logits(images[:, None].numpy())))
