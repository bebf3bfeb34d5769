"""Every method begins with the best linear head, and what is kept is never worse than that."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from adapters.backbone import Backbone
from adapters.config import AdapterConfig
from adapters.layout import Layout
from adapters.training.baselines import model_of
from adapters.training.fit import FitConfig, fit
from adapters.training.model import AdaptedModel, images_of
from adapters.training.recipe import FRAMES, Recipe, config_of, fit_of, heads_of
from adapters.training.search import chosen_rate
from adapters.training.start import Frozen, best_start, frozen
from tests.models import small_backbone
from tests.test_training_fit import tinted

LABELS = ("dark", "light")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(tmp_path_factory.mktemp("tune") / "vit")


def begun(
    backbone: Backbone, recipe: Recipe, config: AdapterConfig, data: TensorDataset
) -> tuple[AdaptedModel, Tensor]:
    """The model at its start, and the logits of the best linear head."""
    vectors = frozen(backbone, config, (config.pool,), data)
    start, _ = best_start(vectors, [config], seed=0)
    torch.manual_seed(0)
    model = model_of(recipe, backbone, config)
    assert isinstance(model, AdaptedModel)
    model.start(vectors.seen(config), start.solved)
    return model.eval(), vectors.seen(config).flatten(1) @ start.solved.weight.T + start.solved.bias


@pytest.mark.parametrize("method", ["linear", "adaptformer", "lora"])
def test_a_model_starts_as_the_best_linear_head(backbone: Backbone, method: str) -> None:
    recipe = Recipe("t", method)  # type: ignore[arg-type]
    config, data = config_of(recipe, backbone, "image", LABELS), tinted(40)
    model, expected = begun(backbone, recipe, config, data)
    with torch.inference_mode():
        logits = model(images_of(model, data.tensors[0]))
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


def turning(count: int, frames: int, seed: int = 0) -> TensorDataset:
    """Clips that get lighter (1) or darker (0): the same frames, so that their mean says nothing."""
    random = torch.Generator().manual_seed(seed)
    steps = torch.linspace(40, 210, frames).view(1, frames, 1, 1, 1)
    noise = torch.randint(-20, 20, (count, frames, 3, 32, 32), generator=random)
    labels = torch.arange(count) % 2
    pixels = torch.where(labels.view(-1, 1, 1, 1, 1) > 0, steps, steps.flip(1)) + noise
    return TensorDataset(pixels.clamp(0, 255).to(torch.uint8), labels)


def test_the_order_of_frames_is_seen_where_it_matters(backbone: Backbone) -> None:
    data = turning(40, 4)
    configs = [config_of(Recipe("t", frames=4, head=head), backbone, "video", LABELS) for head in ("mean", "frames")]
    vectors = frozen(backbone, configs[0], (configs[0].pool,), data)
    chosen, tried = best_start(vectors, configs, seed=0)
    assert chosen.config.head == "frames"
    assert [one.config.head for one in tried] == ["mean", "frames"]
    assert chosen.solved.accuracy > 0.95 > 0.8 > tried[0].solved.accuracy


@pytest.mark.parametrize("head", ["mean", "frames"])
def test_a_clip_s_model_starts_as_the_best_linear_head(backbone: Backbone, head: str) -> None:
    recipe = Recipe("t", frames=4, head=head)  # type: ignore[arg-type]
    config = config_of(recipe, backbone, "video", LABELS)
    model, expected = begun(backbone, recipe, config, turning(24, 4))
    with torch.inference_mode():
        logits = model(images_of(model, turning(24, 4).tensors[0]))
    torch.testing.assert_close(logits, expected, atol=1e-2, rtol=1e-2)


def test_pooling_that_repeats_another_is_tried_once(backbone: Backbone) -> None:
    config, layout = config_of(Recipe("t"), backbone, "image", LABELS), backbone.layout
    found = frozen(backbone, config, ("backbone", "cls", "avg"), tinted(8))
    assert set(found.vectors) == {"cls", "avg"}, layout.pools
    assert found.vectors["cls"].shape == (8, 1, layout.width)


@pytest.mark.parametrize(
    ("examples", "frames", "batch", "steps"),
    [
        (5, 1, 8, 100),
        (60, 1, 8, 800),
        (250, 1, 16, 1000),
        (1650, 1, 32, 1000),
        (50_000, 1, 32, 6250),
        (480, 8, 16, 600),
    ],
)
def test_steps_fit_the_data(examples: int, frames: int, batch: int, steps: int) -> None:
    fitted = fit_of(Recipe("t"), FitConfig(), examples, frames)
    assert fitted.batch == batch
    assert fitted.epochs * math.ceil(examples / batch) == pytest.approx(steps, rel=0.05)
    assert math.ceil(fitted.epochs / fitted.every) <= 12
    given = fit_of(Recipe("t", epochs=7, batch=5, lr=0.5), FitConfig(), examples, frames)
    assert (given.epochs, given.batch, given.lr) == (7, 5, 0.5)


def test_heads_to_choose_from() -> None:
    layout = Layout("bench", "", 1, 8, (8, 8), 1, {"parallel": ((8, 8),)})
    assert heads_of(Recipe("t"), "image", layout) == (None,)
    assert heads_of(Recipe("t"), "video", layout) == ("mean", "frames")
    assert heads_of(Recipe("t"), "video", replace(layout, frames=8)) == ("mean",)
    assert heads_of(Recipe("t", frames=1), "video", layout) == ("mean",)
    assert heads_of(Recipe("t", head="attention"), "video", layout) == ("attention",)
    assert FRAMES > 1


def test_scores_are_told_every_so_many_epochs(backbone: Backbone) -> None:
    recipe = Recipe("t")
    model, _ = begun(backbone, recipe, config_of(recipe, backbone, "image", LABELS), tinted(16))
    result = fit(model, tinted(16), tinted(8, seed=1), FitConfig(epochs=7, batch=8, every=3))
    assert [line["epoch"] for line in result.history] == [3, 6, 7]
    assert result.epochs == 7
    assert result.epoch in (3, 6, 7)


class _Said:
    """A teller that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def at(self, *_: object) -> None:
        pass


def test_a_rate_is_chosen_on_a_part_of_the_training_data(backbone: Backbone) -> None:
    recipe, said = Recipe("t", lr="auto"), _Said()
    config, data = config_of(recipe, backbone, "image", LABELS), tinted(40)
    settings = FitConfig(epochs=4, batch=8, lr=1e-3)

    def made() -> AdaptedModel:
        return begun(backbone, recipe, config, data)[0]

    chosen = [chosen_rate(made, data, settings, said) for _ in range(2)]  # type: ignore[arg-type]
    assert chosen[0] == chosen[1]
    assert chosen[0].lr in (pytest.approx(1e-3 / 3), 1e-3, pytest.approx(3e-3))
    assert chosen[0].epochs == settings.epochs
    assert "on 8 training files" in said.notes[0]
    wild = chosen_rate(made, data, FitConfig(epochs=4, batch=8, lr=1e-3, clip=1.0), said)  # type: ignore[arg-type]
    assert wild.lr == chosen[0].lr


def test_vectors_are_in_the_order_of_the_items(backbone: Backbone) -> None:
    """Items stay in their order, whatever the batches."""
    config, data = config_of(Recipe("t"), backbone, "image", LABELS), tinted(70)
    found = frozen(backbone, config, ("cls",), data)
    assert isinstance(found, Frozen)
    assert torch.equal(found.labels, data.tensors[1])
    alone = frozen(backbone, config, ("cls",), TensorDataset(*(t[64:] for t in data.tensors)))
    torch.testing.assert_close(found.vectors["cls"][64:], alone.vectors["cls"], atol=1e-5, rtol=1e-5)
