"""Pretrain the small demo backbone from a folder of labelled thumbnails (CIFAR-10 or alike).

Supervised classification from scratch; the classifier is thrown away and the rest is written in
timm's own hub layout (``config.json`` and ``model.safetensors``), which ``--backbone FOLDER`` reads.
No adapter is in it. Patches are dropped at random for most of the schedule (Hou et al.,
"Token Dropping"; He et al., MAE, sec. 3), which halves the cost of a step on a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters.backbone.inputs import normalise
from adapters.training.fit import learning_rate
from adapters.training.progress import Teller, telling

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class PretrainConfig:
    """How long and how hard to train; ``minutes`` shortens the schedule when time runs out first."""

    epochs: int = 40
    minutes: float = math.inf
    batch: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    label_smoothing: float = 0.1
    patch_drop: float = 0.5
    full_after: float = 0.8
    seed: int = 0


def load_folder(root: Path, teller: Teller) -> tuple[Tensor, Tensor, list[str]]:
    """Read ``root/<class>/*`` into images (N, 3, H, W) uint8, labels (N,) int64 and class names."""
    classes = sorted(p.name for p in root.iterdir() if p.is_dir())
    paths = [(p, i) for i, name in enumerate(classes) for p in sorted((root / name).iterdir())]
    pixels = []
    for path, _ in paths:
        pixels.append(np.asarray(Image.open(path).convert("RGB")))
        teller.at(f"reading {root.name}", len(pixels) / len(paths))
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([i for _, i in paths]), classes


def augment(images: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Random crop (each its own offset, reflected border) and horizontal flip of (B, 3, H, W) uint8."""
    batch, _, height, width = images.shape
    padded = F.pad(images.float(), (pad,) * 4, mode="reflect")
    top = torch.randint(0, 2 * pad + 1, (batch, 1), generator=generator)
    left = torch.randint(0, 2 * pad + 1, (batch, 1), generator=generator)
    rows = (top + torch.arange(height))[:, None, :, None]
    cols = torch.arange(width).expand(batch, width)
    flip = torch.rand(batch, 1, generator=generator) < 0.5
    cols = (left + torch.where(flip, width - 1 - cols, cols))[:, None, None, :]
    return padded[torch.arange(batch)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, cols]


def _normalised(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) uint8, as the backbone will get it."""
    mean, std = (torch.tensor(each).expand(len(pixels), 3) for each in (MEAN, STD))
    return normalise(pixels, mean, std)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy on (N, 3, H, W) uint8 images."""
    model.eval()
    hits = 0.0
    for start in range(0, len(labels), 500):
        part = slice(start, start + 500)
        hits += (model(_normalised(images[part])).argmax(1) == labels[part]).sum().item()
    return hits / len(labels)


def pretrain(data: Path, out: Path, config: PretrainConfig, teller: Teller) -> dict[str, object]:
    """Train on ``data/train``, score on ``data/test``, write the backbone folder ``out``."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    images, labels, classes = load_folder(data / "train", teller)
    held_out = load_folder(data / "test", teller)[:2]
    model = timm.create_model(
        ARCHITECTURE, num_classes=len(classes), patch_drop_rate=config.patch_drop, drop_path_rate=0.05, **MODEL_ARGS
    )
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        betas=(0.9, 0.99),
    )
    steps = len(images) // config.batch
    start = time.monotonic()
    log: list[dict[str, object]] = []
    epoch, done = 0, False
    while not done:
        model.train()
        total = 0.0
        order = torch.randperm(len(images), generator=generator)
        for step, index in enumerate(order[: steps * config.batch].view(steps, config.batch)):
            elapsed = (time.monotonic() - start) / 60
            progress = max((epoch * steps + step) / (config.epochs * steps), elapsed / config.minutes)
            done = progress >= 1.0
            if done:
                break
            if progress > config.full_after:
                model.patch_drop = nn.Identity()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress, config.lr, config.warmup)
            loss = F.cross_entropy(
                model(_normalised(augment(images[index], generator))),
                labels[index],
                label_smoothing=config.label_smoothing,
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
            teller.at("pretraining", progress, f"epoch {epoch}, loss {loss.item():.3f}")
        epoch += 1
        done = done or epoch >= config.epochs
        if epoch % 2 == 0 or done:
            log.append({"epoch": epoch, "loss": total / steps, "accuracy": accuracy(model, *held_out)})
            teller.note(f"{log[-1]}, {(time.monotonic() - start) / 60:.1f} min")
            save(model, out, {"data": "CIFAR-10, 50,000 labelled training pictures", **asdict(config), "log": log})
    return log[-1] if log else {}


def save(model: nn.Module, out: Path, training: dict[str, object]) -> None:
    """Write timm's hub layout; tensors in float16, which float32 holds exactly."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().half().contiguous() for k, v in model.state_dict().items() if not k.startswith("head.")}
    save_file(tensors, out / "model.safetensors")
    cfg = {
        "tag": "demo", "input_size": [3, 32, 32], "fixed_input_size": True, "interpolation": "bicubic",
        "crop_pct": 1.0, "mean": MEAN, "std": STD, "num_classes": 0, "pool_size": None,
        "first_conv": "patch_embed.proj", "classifier": "head",
    }  # fmt: skip
    if training.get("minutes") == math.inf:
        training["minutes"] = None
    config = {
        "architecture": ARCHITECTURE, "num_classes": 0, "model_args": MODEL_ARGS, "pretrained_cfg": cfg,
        "training": training,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m adapters.training.pretrain", description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/<class>/* and test/<class>/*, 32 x 32 pictures")
    parser.add_argument("--out", type=Path, required=True, help="backbone folder to write")
    parser.add_argument("--epochs", type=int, default=PretrainConfig.epochs)
    parser.add_argument("--minutes", type=float, default=PretrainConfig.minutes, help="end the schedule by then")
    parser.add_argument("--batch", type=int, default=PretrainConfig.batch)
    parser.add_argument("--patch-drop", type=float, default=PretrainConfig.patch_drop)
    parser.add_argument("--full-after", type=float, default=PretrainConfig.full_after)
    args = parser.parse_args()
    config = PretrainConfig(
        epochs=args.epochs,
        minutes=args.minutes,
        batch=args.batch,
        patch_drop=args.patch_drop,
        full_after=args.full_after,
    )
    with telling() as teller:
        pretrain(args.data, args.out, config, teller)


if __name__ == "__main__":
    main()
