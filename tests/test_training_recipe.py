"""Options become the config of a file: defaults of about 1.4 % of the backbone, and one line for what cannot be."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.backbone import Backbone, load_backbone
from adapters.config import HeadKind
from adapters.errors import AdaptError, TrainingError
from adapters.training.model import AdaptedModel
from adapters.training.recipe import Recipe, config_of, parse_blocks
from tests.models import small_backbone

LABELS = ("a", "b")


@pytest.fixture(scope="module")
def demo() -> Backbone:
    return load_backbone("demo", device="cpu", dtype="float32")


@pytest.mark.parametrize(
    "recipe",
    [Recipe("t"), Recipe("t", "lora"), Recipe("t", "lora", site="qkv"), Recipe("t", site="output", blocks="2-5")],
    ids=["adaptformer", "lora", "qkv", "some blocks"],
)
def test_the_default_rank_is_about_one_and_a_half_percent(demo: Backbone, recipe: Recipe) -> None:
    model = AdaptedModel(demo, config_of(recipe, demo, "image", LABELS))
    residuals = sum(p.numel() for p in model.residuals.parameters())
    assert 0.012 < residuals / demo.layout.parameters < 0.017


def test_methods_have_their_own_defaults(demo: Backbone) -> None:
    parallel = config_of(Recipe("t"), demo, "image", LABELS)
    assert [(s.site, s.act, s.temporal) for s in parallel.sites] == [("parallel", "relu", False)]
    assert (parallel.sites[0].scale, parallel.norm) == (1.0, "frozen")
    lora = config_of(Recipe("t", "lora"), demo, "image", LABELS)
    assert [(s.site, s.act, s.scale) for s in lora.sites] == [("q", "none", 1.0), ("v", "none", 1.0)]
    linear = config_of(Recipe("t", "linear"), demo, "image", LABELS)
    assert (linear.sites, linear.norm) == ((), "frozen")
    clip = config_of(Recipe("t"), demo, "video", LABELS)
    assert clip.frames == 8
    assert clip.sites[0].temporal
    assert not config_of(Recipe("t", "lora"), demo, "video", LABELS).sites[0].temporal
    st_adapter = config_of(Recipe("t", "st-adapter"), demo, "video", LABELS).sites
    assert [(s.site, s.act, s.scale, s.temporal, s.tokens) for s in st_adapter] == [
        ("input", "none", 1.0, True, "patches"), ("pre_mlp", "none", 1.0, True, "patches"),
    ]  # fmt: skip
    spared = config_of(Recipe("t", site="input,parallel", tokens="patches"), demo, "image", LABELS).sites
    assert [(s.site, s.act, s.tokens) for s in spared] == [
        ("input", "relu", "patches"), ("parallel", "relu", "patches"),
    ]  # fmt: skip
    assert config_of(Recipe("t", scale=0.0), demo, "image", LABELS).sites[0].scale == 0.0


@pytest.mark.parametrize("head", ["frames", "attention"])
@pytest.mark.parametrize("classes", [2, 7, 100, 400])
def test_a_clip_s_head_and_adapter_are_below_two_percent(demo: Backbone, head: HeadKind, classes: int) -> None:
    """Where a plain head of so many classes leaves room for that."""
    config = config_of(Recipe("t", head=head), demo, "video", tuple(map(str, range(classes))))
    shapes = demo.layout.tensors(config)
    assert config.head == head
    assert "time" in " ".join(shapes)
    size = sum(math.prod(shape) for shape in shapes.values())
    assert size < 0.02 * demo.layout.parameters or classes == 400
    assert config_of(Recipe("t"), demo, "video", LABELS).head == "mean"


@pytest.mark.parametrize("family", ["eva02", "swin", "beit", "gap", "dinov3", "hiera", "sam", "cait", "qwen3"])
def test_every_family_has_something_to_train(tmp_path: Path, family: str) -> None:
    backbone = small_backbone(tmp_path / family, family)
    for method in ("adaptformer", "linear", "lora"):
        AdaptedModel(backbone, config_of(Recipe("t", method), backbone, "image", LABELS))


def test_lora_where_its_usual_sites_are_not(tmp_path: Path) -> None:
    backbone = small_backbone(tmp_path / "vit")
    sites = {site: widths for site, widths in backbone.layout.sites.items() if site not in ("qkv", "q", "v")}
    backbone.layout = replace(backbone.layout, sites=sites)
    with pytest.raises(TrainingError, match="no q, v or qkv for LoRA; give --site"):
        config_of(Recipe("t", "lora"), backbone, "image", LABELS)


def test_blocks() -> None:
    assert parse_blocks("all", 3) == (0, 1, 2)
    assert parse_blocks("4, 0-2,1", 5) == (0, 1, 2, 4)
    for text in ("", "5", "2-1", "-1", "a", "1,,2", "0-99999", "1e0"):
        with pytest.raises(TrainingError, match="no block or range"):
            parse_blocks(text, 5)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("Not a name"),
        Recipe("t", rank=5000),
        Recipe("t", site="parallel,parallel"),
        Recipe("t", site="fc9"),
        Recipe("t", scale=float("nan")),
        Recipe("t", "linear", blocks="1"),
        Recipe("t", temporal=True),
        Recipe("t", head="frames"),
        Recipe("t", "linear", tokens="patches"),
        Recipe("t", "st-adapter"),
    ],
)
def test_what_cannot_be_is_one_line(demo: Backbone, recipe: Recipe) -> None:
    with pytest.raises(AdaptError) as caught:
        config_of(recipe, demo, "image", LABELS)
    assert "\n" not in caught.value.message
