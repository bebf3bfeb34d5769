"""Heads that see time, or two vectors, and adapters with them."""

from __future__ import annotations

import pytest

from adapters.backbone import Backbone
from adapters.config import SiteConfig
from adapters.file import Adapter
from tests.models import Spec, random_adapter, small_backbone

PARALLEL = SiteConfig(site="parallel", blocks=(0, 2), rank=4)
OVER_TIME = SiteConfig(site="parallel", blocks=(1,), rank=4, temporal=True)
SPECS = (
    Spec((PARALLEL,), 5),
    Spec((OVER_TIME,), 4, "avg", "trained", frames=4),
    Spec((OVER_TIME,), 3, "avg", "trained", frames=4, head="frames"),
    Spec((PARALLEL,), 60, "cls", "frozen", frames=3, head="frames", head_rank=20),
    Spec((), 40, "backbone", "frozen", frames=4, head="frames"),
    Spec((OVER_TIME,), 5, "avg", "trained", frames=4, head="attention", head_width=15),
    Spec((), 33, "cls", "trained", frames=2, head="attention", head_width=40),
    Spec((), 4, "avg", "frozen"),
    Spec((PARALLEL,), 60, "cls+avg"),
    Spec((OVER_TIME,), 20, "cls+avg", "none", frames=4),
)
TIMED = [number for number, spec in enumerate(SPECS) if spec.head != "mean"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(tmp_path_factory.mktemp("heads") / "vit")


@pytest.fixture(scope="module")
def adapters(backbone: Backbone) -> list[Adapter]:
    return [random_adapter(backbone, spec, number) for number, spec in enumerate(SPECS)]
