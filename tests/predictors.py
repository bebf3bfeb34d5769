"""A predictor of five tasks of all kinds on a small backbone, and what it is asked."""

from __future__ import annotations

import pytest
import torch

from adapters import Adapter, Backbone, Predictor, Result
from adapters.config import SiteConfig
from tests import media_samples
from tests.houses import CLIP, IMAGE, Kit
from tests.models import Spec, close, random_adapter

SPECS = {
    "images": IMAGE,
    "clips": CLIP,
    "labels": Spec((SiteConfig(site="qkv", blocks=(1, 2), rank=6),), 40, "cls", "frozen", score="sigmoid"),
    "linear": Spec((), 3, "backbone", "frozen"),
    "late": Spec((SiteConfig(site="output", blocks=(2,), rank=3),), 7, "cls", "frozen"),
}


def made(backbone: Backbone, name: str, seed: int = 0) -> Adapter:
    return random_adapter(backbone, SPECS[name], seed + list(SPECS).index(name), size=0.5, task=name)


@pytest.fixture(scope="module")
def predictor(kit: Kit) -> Predictor:
    return Predictor(kit.backbone, *(made(kit.backbone, name) for name in SPECS))


@pytest.fixture(scope="module")
def clip() -> bytes:
    return media_samples.clip(picture=media_samples.scene(64, 48))


def same(found: Result, expected: Result) -> None:
    assert (found.task, found.labels, found.score) == (expected.task, expected.labels, expected.score)
    close(torch.tensor(found.logits), torch.tensor(expected.logits).double())
