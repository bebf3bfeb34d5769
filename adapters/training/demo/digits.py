"""Pictures and clips of real handwriting: scikit-learn's 1,797 scanned digits, as a user would send them.

It knows no model. Every set is split by the digit scans, so nothing held out was seen in any form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

SIDE = 32
FRAMES = 8
STEP = 4
DIRECTIONS = ("left", "right", "up", "down")
_MOVES = {"left": (0, -STEP), "right": (0, STEP), "up": (-STEP, 0), "down": (STEP, 0)}


@dataclass(frozen=True)
class Digits:
    """Scans (N, 8, 8) with values 0 to 255, and which digit (N,) each is."""

    scans: NDArray[np.uint8]
    digit: NDArray[np.int64]


def split(seed: int = 0, share: float = 0.2) -> tuple[Digits, Digits]:
    """Training and held-out scans, the same share of every digit held out."""
    bunch = load_digits()
    scans = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    digit = bunch.target.astype(np.int64)
    random = np.random.default_rng(seed)
    held = np.zeros(len(digit), dtype=bool)
    for value in range(10):
        index = random.permutation(np.flatnonzero(digit == value))
        held[index[: round(share * len(index))]] = True
    return Digits(scans[~held], digit[~held]), Digits(scans[held], digit[held])


def picture(scan: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.uint8]:
    """One scan enlarged to (side, side)."""
    return np.asarray(Image.fromarray(scan).resize((side, side), Image.Resampling.BICUBIC))


def rgb(grey: NDArray[np.uint8]) -> Tensor:
    """(..., H, W) grey -> (..., 3, H, W) uint8."""
    return torch.from_numpy(np.repeat(grey[..., None, :, :], 3, axis=-3).copy())


def pictures(digits: Digits) -> tuple[Tensor, Tensor]:
    """(N, 1, 3, 32, 32) uint8 and the digit (N,)."""
    return rgb(np.stack([picture(s) for s in digits.scans])[:, None]), torch.from_numpy(digits.digit)


def moving(digits: Digits, clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clips (N, 8, 3, 32, 32) of a digit moving around a ring, and the direction (N,).

    The start is uniform and the path closes on itself after 8 frames. Left and right show exactly the same
    frames in opposite order, as do up and down, so no average over frames can tell them apart.
    """
    random = np.random.default_rng(seed)
    found, labels = [], []
    for n in range(clips):
        small = picture(digits.scans[random.integers(len(digits.scans))], 16)
        canvas = np.zeros((SIDE, SIDE), dtype=np.uint8)
        canvas[:16, :16] = small
        start = random.integers(0, SIDE, 2)
        label = n % len(DIRECTIONS)
        down, across = _MOVES[DIRECTIONS[label]]
        found.append(
            np.stack([np.roll(canvas, (start[0] + t * down, start[1] + t * across), (0, 1)) for t in range(FRAMES)])
        )
        labels.append(label)
    return rgb(np.stack(found)), torch.tensor(labels)


def collages(digits: Digits, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(N, 1, 3, 32, 32) of one to four digits in a 2 x 2 grid, and which digits are there (N, 10) float32."""
    random = np.random.default_rng(seed)
    found, labels = [], torch.zeros(count, 10)
    for n in range(count):
        canvas = np.zeros((SIDE, SIDE), dtype=np.uint8)
        for cell in random.permutation(4)[: random.integers(1, 5)]:
            index = random.integers(len(digits.scans))
            top, left = 16 * (cell // 2), 16 * (cell % 2)
            canvas[top : top + 16, left : left + 16] = picture(digits.scans[index], 16)
            labels[n, digits.digit[index]] = 1.0
        found.append(canvas)
    return rgb(np.stack(found)[:, None]), labels
