"""Training: the file answers as the model did, the same seed gives the same tensors, nothing frozen moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from adapters.backbone import Backbone, fingerprint_of
from adapters.config import AdapterConfig, SiteConfig
from adapters.errors import TrainingError
from adapters.file import read_adapter, write_adapter
from adapters.limits import FileLimits
from adapters.predictor import Predictor
from adapters.training.augment import mixing_weight
from adapters.training.checkpoint import CheckpointFile, FitResult
from adapters.training.fit import FitConfig, _mixed_loss, accuracy_of, fit, images_of, predict, trainable
from adapters.training.model import MOST_WRITTEN_OUT, AdaptedModel, written_out_attention
from tests.models import Spec, config_of, small_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(tmp_path_factory.mktemp("training") / "vit")


def sites(*names: str, temporal: bool = False, tokens: str = "all") -> tuple[SiteConfig, ...]:
    return tuple(
        SiteConfig(site=n, blocks=(0, 1, 2), rank=4, scale=0.5, temporal=temporal, tokens=tokens) for n in names
    )


def tinted(count: int, frames: int = 1, seed: int = 0) -> TensorDataset:
    """Noise that is reddish or bluish: two classes that a few steps can learn."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 100, (count, frames, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 2
    for item, label in zip(pixels, labels, strict=True):
        item[:, 0] += 150 * (label == 0)
        item[:, 2] += 150 * (label == 1)
    return TensorDataset(pixels, labels)


SPECS = [
    Spec(sites("parallel"), 2, "avg", "trained"),
    Spec(sites("q", "v", "output"), 2, "backbone", "frozen"),
    Spec(sites("parallel", temporal=True), 2, "cls", "trained", frames=3),
    Spec((), 2, "cls", "frozen"),
    Spec(sites("parallel", temporal=True), 2, "avg", "trained", frames=3, head="frames"),
    Spec((), 2, "avg", "trained", frames=2, head="frames", head_rank=1),
    Spec(sites("parallel"), 2, "avg", "trained", frames=2, head="attention", head_width=20),
    Spec(sites("input", "pre_mlp", temporal=True, tokens="patches"), 2, "cls", "trained", frames=3),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("learn_scale", [False, True])
def test_the_written_file_answers_as_the_trained_model(
    backbone: Backbone, tmp_path: Path, spec: Spec, learn_scale: bool
) -> None:
    torch.manual_seed(0)
    model = AdaptedModel(backbone, config_of(backbone, spec), learn_scale=learn_scale)
    data = tinted(24, spec.frames)
    fit(model, data, data, FitConfig(epochs=2, batch=8, lr=5e-3))
    expected, _ = predict(model, data, FitConfig())
    write_adapter(tmp_path / "a.safetensors", model.exported_config(), model.tensors())
    adapter = read_adapter(tmp_path / "a.safetensors", backbone.layout, FileLimits())
    found = Predictor(backbone, adapter).logits(data.tensors[0].numpy())
    torch.testing.assert_close(torch.from_numpy(np.stack(found)), expected, rtol=1e-4, atol=1e-4)


def test_it_learns_and_the_backbone_stays_as_it_was(backbone: Backbone) -> None:
    before = fingerprint_of(backbone.model)
    torch.manual_seed(0)
    model = AdaptedModel(backbone, config_of(backbone, SPECS[0]))
    result = fit(model, tinted(64), tinted(32, seed=1), FitConfig(epochs=20, batch=8, lr=1e-2))
    assert result.accuracy >= 0.95
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 2
    assert fingerprint_of(backbone.model) == before
    assert all(p.grad is None for p in backbone.model.parameters())
    assert all(name.startswith(("residuals.", "norm.", "head.")) for name in trainable(model))


def test_the_same_seed_gives_the_same_tensors(backbone: Backbone) -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        model = AdaptedModel(backbone, config_of(backbone, SPECS[0]), dropout=0.1)
        fit(model, tinted(16), tinted(8), FitConfig(epochs=2, batch=8, dropout=0.1))
        made.append(model.tensors())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_bfloat16_learns_as_float32_does(tmp_path: Path) -> None:
    found = {}
    for dtype in ("float32", "bfloat16"):
        held = small_backbone(tmp_path / dtype, dtype=dtype)
        fused = [module for module in held.model.modules() if getattr(module, "fused_attn", False)]
        torch.manual_seed(0)
        model = AdaptedModel(held, config_of(held, SPECS[0]))
        result = fit(model, tinted(64), tinted(32, seed=1), FitConfig(epochs=10, batch=8, lr=1e-2))
        assert result.accuracy >= 0.95
        assert all(tensor.dtype == torch.float32 for tensor in model.tensors().values())
        assert fused
        assert all(module.fused_attn for module in fused)
        found[dtype] = torch.tensor([line["loss"] for line in result.history])
    torch.testing.assert_close(found["bfloat16"], found["float32"], rtol=0.1, atol=0.02)


def test_attention_is_written_out_only_while_bfloat16_trains_on_few_tokens(tmp_path: Path) -> None:
    for dtype, written in (("float32", False), ("bfloat16", True)):
        held = small_backbone(tmp_path / dtype, dtype=dtype)
        attention = held.model.blocks[0].attn
        with written_out_attention(held):
            assert attention.fused_attn is not written
        held.model.patch_embed.num_patches = MOST_WRITTEN_OUT + 1
        with written_out_attention(held):
            assert attention.fused_attn


def test_a_fresh_adapter_is_the_bare_backbone(backbone: Backbone) -> None:
    model = AdaptedModel(
        backbone,
        config_of(backbone, Spec(sites("parallel", "sequential", "output", "input", "pre_mlp", "attn", "qkv"), 2)),
    ).eval()
    images = images_of(model, tinted(4).tensors[0])
    with torch.inference_mode():
        bare = backbone.pool(backbone.features(images), "backbone", "frozen")
        assert torch.equal(model.vectors(images), bare)


def test_nothing_before_the_first_adapted_block_is_kept_for_gradients(backbone: Backbone) -> None:
    last = (SiteConfig(site="parallel", blocks=(2,), rank=4),)
    config: AdapterConfig = config_of(backbone, Spec(last, 2))
    model, kept = AdaptedModel(backbone, config), []
    hooks = [
        block.register_forward_hook(lambda m, a, out: kept.append(out.requires_grad)) for block in backbone.model.blocks
    ]
    model(images_of(model, tinted(4).tensors[0]))
    for hook in hooks:
        hook.remove()
    assert kept == [False, False, True]


@pytest.mark.parametrize("family", ["vit", "swin"])
@pytest.mark.parametrize("frames", [1, 2])
def test_frozen_blocks_below_the_adapter_see_every_item_once(tmp_path: Path, family: str, frames: int) -> None:
    held = small_backbone(tmp_path / family, family)
    last = (SiteConfig(site="parallel", blocks=(held.layout.blocks - 1,), rank=4),)
    config = config_of(held, Spec(last, 2, "backbone", frames=frames))
    train, held_out = tinted(20, frames), tinted(6, frames, seed=1)

    def counted(**options: Any) -> tuple[AdaptedModel, int, int]:
        torch.manual_seed(0)
        model, counts = AdaptedModel(held, config), ([], [])
        modules = [module for name, module in held.model.named_modules() if name.endswith("mlp")]
        ends = ((modules[0], counts[0]), (modules[-1], counts[1]))
        hooks = [m.register_forward_hook(lambda m, a, out, rows=rows: rows.append(len(out))) for m, rows in ends]
        fit(model, train, held_out, FitConfig(epochs=4, batch=8, lr=1e-2), **options)
        for hook in hooks:
            hook.remove()
        return model, sum(counts[0]), sum(counts[1])

    once, first, last_rows = counted()
    again, more, as_many = counted(augment=lambda pixels, _: pixels)
    assert (first, more) == (26 * frames, (4 * 20 + 6) * frames)  # the held-out part is never changed
    assert last_rows == as_many == 4 * 26 * frames
    for name, tensor in once.tensors().items():
        torch.testing.assert_close(tensor, again.tensors()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("frames", "head"), [(1, "mean"), (2, "mean"), (2, "frames")])
def test_a_frozen_backbone_sees_every_item_once(backbone: Backbone, frames: int, head: str) -> None:
    train, held_out = tinted(20, frames), tinted(6, frames, seed=1)
    config = config_of(backbone, Spec((), 2, frames=frames, head=head))

    def counted(**options: Any) -> tuple[AdaptedModel, int]:
        torch.manual_seed(0)
        model, rows = AdaptedModel(backbone, config), []
        hook = backbone.model.blocks[0].register_forward_hook(lambda m, a, out: rows.append(len(out)))
        fit(model, train, held_out, FitConfig(epochs=4, batch=8, lr=1e-2), **options)
        hook.remove()
        return model, sum(rows)

    once, rows = counted()
    again, more = counted(augment=lambda pixels, _: pixels)
    assert (rows, more) == (26 * frames, (4 * 20 + 6) * frames)  # the held-out part is never changed
    for name, tensor in once.tensors().items():
        torch.testing.assert_close(tensor, again.tensors()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", [{"head": "mean"}, {"head": "frames"}, {"head": "attention", "head_width": 15}])
def test_only_a_head_that_sees_time_learns_the_order_of_frames(backbone: Backbone, head: dict[str, Any]) -> None:
    """Clips of two frames, reddish and bluish: which comes first is the class."""

    def ordered(count: int, seed: int) -> TensorDataset:
        tint = tinted(2 * count, seed=seed).tensors[0].view(count, 2, 3, 32, 32)
        labels = torch.arange(count) // 2 % 2
        return TensorDataset(torch.where(labels.bool().view(-1, 1, 1, 1, 1), tint.flip(1), tint), labels)

    torch.manual_seed(0)
    model = AdaptedModel(backbone, config_of(backbone, Spec((), 2, "avg", "trained", frames=2, **head)))
    result = fit(model, ordered(64, 0), ordered(32, 1), FitConfig(epochs=20, batch=16, lr=1e-2))
    assert result.accuracy >= 0.95 if head["head"] != "mean" else result.accuracy <= 0.8


def test_mixup_is_the_loss_of_the_blend_by_both_labels(backbone: Backbone) -> None:
    model = AdaptedModel(backbone, config_of(backbone, SPECS[0])).eval()
    pixels, labels = tinted(8).tensors
    images, config = images_of(model, pixels), FitConfig(mixup=0.4)
    keep = mixing_weight(0.4, torch.Generator().manual_seed(3))
    found = _mixed_loss(model, images, labels, config, torch.Generator().manual_seed(3))
    logits = model(keep * images + (1 - keep) * images.flip(0)).log_softmax(1)
    expected = [
        -(keep * row[a] + (1 - keep) * row[b]) for row, a, b in zip(logits, labels, labels.flip(0), strict=True)
    ]
    assert 0.001 < keep < 0.999
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_accuracy_counts() -> None:
    assert accuracy_of(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1])) == 0.5
    assert accuracy_of(torch.tensor([[1.0, -2.0], [3.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])) == 0.75


class Stop(Exception):
    """Ends a training as Ctrl-C does."""


@pytest.mark.parametrize("patience", [0, 2])
def test_an_interrupted_training_resumes_to_the_same_tensors(backbone: Backbone, tmp_path: Path, patience: int) -> None:
    """Through the file, with all that draws at random, stopped in the middle of the third epoch."""
    config = FitConfig(
        epochs=5, batch=8, dropout=0.2, lr=5e-3, patience=patience, crop=0.5, flip=True, mixup=0.4, label_smoothing=0.1
    )

    def train(seed: int, **options: Any) -> tuple[AdaptedModel, FitResult]:
        torch.manual_seed(seed)
        model = AdaptedModel(backbone, config_of(backbone, SPECS[0]), dropout=0.2)
        return model, fit(model, tinted(30), tinted(9, seed=1), config, **options)

    whole, expected = train(1)
    steps, file = [], CheckpointFile(tmp_path / "a.resume", "same data")

    def stop(progress: float, loss: float) -> None:
        steps.append(progress)
        if len(steps) == 14:  # four steps an epoch, and two of its score
            raise Stop

    with pytest.raises(Stop):
        train(1, on_step=stop, on_epoch=file.save)
    found = file.load()
    assert len(found.result.history) == 2
    resumed, result = train(99, start=found, on_epoch=file.save)
    assert all(torch.equal(whole.tensors()[n], t) for n, t in resumed.tensors().items())
    drop = [{k: v for k, v in line.items() if k != "seconds"} for line in result.history]
    assert drop == [{k: v for k, v in line.items() if k != "seconds"} for line in expected.history]
    again, _ = train(7, start=file.load())
    assert all(torch.equal(whole.tensors()[n], t) for n, t in again.tensors().items())
    assert [p.name for p in tmp_path.iterdir()] == ["a.resume"]


def test_a_checkpoint_of_another_training_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    model = AdaptedModel(backbone, config_of(backbone, SPECS[3]))
    fit(model, tinted(8), tinted(4), FitConfig(epochs=1), on_epoch=CheckpointFile(tmp_path / "a", "these").save)
    with pytest.raises(TrainingError, match="other data or options"):
        CheckpointFile(tmp_path / "a", "those").load()
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:100])
    with pytest.raises(TrainingError, match="no training that can be resumed"):
        CheckpointFile(tmp_path / "a", "these").load()


def test_a_loss_that_explodes_says_so(backbone: Backbone) -> None:
    model = AdaptedModel(backbone, config_of(backbone, SPECS[0]))
    with pytest.raises(TrainingError, match="lower learning rate"):
        fit(model, tinted(16), tinted(4), FitConfig(epochs=9, batch=8, lr=1e30, warmup=0.01))
