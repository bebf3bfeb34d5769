"""Photographs of animals and of vehicles: CIFAR-10's thumbnails, by which of the two they show.

It knows no model. The pictures are not shipped; the folder is given (``FOLDER/{train,test}/<class>/*``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE = 32
KINDS = ("animal", "vehicle")
VEHICLES = {"airplane", "automobile", "ship", "truck"}


def kinds(folder: Path, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """About ``count`` pictures (N, 1, 3, 32, 32) uint8, as many of each class, and their index (N,) in ``KINDS``."""
    random = np.random.default_rng(seed)
    classes = sorted(p for p in folder.iterdir() if p.is_dir())
    found, labels = [], []
    for place in classes:
        paths = sorted(place.iterdir())
        for index in random.permutation(len(paths))[: count // len(classes)]:
            with Image.open(paths[index]) as picture:
                found.append(np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
            labels.append(KINDS.index("vehicle" if place.name in VEHICLES else "animal"))
    order = random.permutation(len(found))
    pixels = torch.from_numpy(np.stack(found)[order]).permute(0, 3, 1, 2)
    return pixels[:, None].contiguous(), torch.tensor(labels)[order]
