"""Augmentation: crops stay inside, clips move as one, the same generator gives the same batch."""

from __future__ import annotations

import pytest
import torch

from adapters.training.augment import Crop, mixing_weight


def batch(items: int = 6, frames: int = 2, size: tuple[int, int] = (20, 20)) -> torch.Tensor:
    across, down = torch.linspace(20, 220, size[1]).expand(size), torch.linspace(20, 220, size[0])[:, None].expand(size)
    picture = torch.stack([across, down, torch.full_like(across, 90)])
    return picture.round().to(torch.uint8).expand(items, frames, 3, *size).contiguous()


@pytest.mark.parametrize("size", [(20, 20), (12, 30)])
def test_a_crop_shows_a_part_enlarged(size: tuple[int, int]) -> None:
    pixels, generator = batch(size=size), torch.Generator().manual_seed(0)
    cut = Crop(0.5)(pixels, generator)
    assert cut.shape == pixels.shape
    assert cut.dtype == torch.uint8
    assert (cut[:, 0] == cut[:, 1]).all()  # frames alike
    assert (cut[:, :, 2] == 90).all()
    width = cut[:, 0, 0, 0, -1].int() - cut[:, 0, 0, 0, 0].int()
    assert ((width < 200) & (width > 0.6 * 200)).all()  # between the root of a half and the whole
    assert len(set(width.tolist())) > 2
    height = cut[:, 0, 1, -1, 0].int() - cut[:, 0, 1, 0, 0].int()
    assert ((height - width).abs() < 200 / min(size)).all()  # the same share of either side


def test_the_whole_picture_is_itself() -> None:
    assert torch.equal(Crop(1.0)(batch(), torch.Generator()), batch())
    assert torch.equal(Crop(1.0)(batch(size=(12, 30)), torch.Generator()), batch(size=(12, 30)))


def test_half_are_mirrored_and_only_if_wanted() -> None:
    pixels = batch(items=64)
    flipped = Crop(1.0, flip=True)(pixels, torch.Generator().manual_seed(0))
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, pixels, strict=True)]
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, flipped, pixels, strict=True))
    assert 16 < sum(mirrored) < 48


def test_the_same_generator_gives_the_same_batch() -> None:
    first, again = (Crop(0.3, flip=True)(batch(), torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)


def test_mixing_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    assert mixing_weight(0.0, generator) == 1.0
    weights = [mixing_weight(0.2, generator) for _ in range(400)]
    assert all(0 <= w <= 1 for w in weights)
    assert sum(weights) / 400 == pytest.approx(0.5, abs=0.06)
    assert sum(0.1 < w < 0.9 for w in weights) < 240  # alpha below 1 is mostly near the ends
