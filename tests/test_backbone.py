"""Every family: timm's own answer without an adapter, the written-out formula with one, and honest sites."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from adapters.backbone import Backbone, resolve_dtype
from adapters.backbone.families import blocks_of
from adapters.config import ACTIVATIONS, SiteConfig
from adapters.file import Adapter
from adapters.forward.plan import plan_of
from adapters.training.model import AdaptedModel
from tests.models import FAMILIES, OTHERS, Spec, close, head_of, random_adapter, residual, small_backbone
from tests.references import NORMS, Bench, all_sites, normalised, pixels, reference


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(tmp_path_factory.mktemp("models") / request.param, request.param)


@torch.inference_mode()
def test_hooks_without_an_adapter_change_nothing(backbone: Backbone) -> None:
    images = normalised(backbone, pixels(backbone, 3))
    bare = timms_own(backbone)
    features = backbone.features(images)
    assert torch.equal(features.normed, bare.forward_features(images))
    vector = backbone.pool(features, "backbone", "frozen")
    assert torch.equal(vector, bare.forward_head(bare.forward_features(images), pre_logits=True))


@torch.inference_mode()
def test_an_adapter_with_zero_up_weights_is_timms_own_model(backbone: Backbone) -> None:
    spec = Spec((all_sites(backbone, "parallel"), all_sites(backbone, "output", act="gelu")), classes=4)
    adapter = random_adapter(backbone, spec, 3)
    for name, tensor in adapter.tensors.items():
        if ".up." in name:
            tensor.zero_()
    images = pixels(backbone, 3)
    bench = Bench(backbone, [adapter])
    found = bench.forward([bench.job(0, images[i : i + 1]) for i in range(3)])
    vector = backbone.model.forward_head(backbone.model.forward_features(normalised(backbone, images)), pre_logits=True)
    expected = head_of(backbone, adapter, vector)
    close(torch.from_numpy(np.stack(found)), expected)
    features = backbone.features(normalised(backbone, images))
    assert torch.equal(backbone.pool(features, "backbone", "frozen"), vector)


@torch.inference_mode()
def test_every_site_and_pool_equals_the_reference(backbone: Backbone) -> None:
    images = pixels(backbone, 2)
    for i, name in enumerate(backbone.layout.sites):
        for pool in backbone.layout.pools:
            for norm in NORMS.get(pool, ("frozen", "trained", "none")):
                if name in ("qkv", "q", "k", "v", "proj"):
                    continue  # inside attention: `test_lora_on_attention` adds them to the weights
                act = ACTIVATIONS[i % len(ACTIVATIONS)]
                adapter = random_adapter(backbone, Spec((all_sites(backbone, name, act=act),), 5, pool, norm), i)
                bench = Bench(backbone, [adapter])
                found = bench.forward([bench.job(0, images[:1]), bench.job(0, images[1:])])
                expected = reference(backbone, adapter, images)
                torch.testing.assert_close(
                    torch.from_numpy(np.stack(found)),
                    expected,
                    rtol=1e-3,
                    atol=2e-4,
                    msg=lambda m, n=name, p=pool: f"{n} {p}: {m}",
                )


def timms_own(backbone: Backbone) -> Any:
    """timm's model with the backbone's weights, and nothing of ours on it."""
    architecture, args = (FAMILIES | OTHERS)[backbone.layout.model.split("+")[0]]
    bare = timm.create_model(architecture, pretrained=False, num_classes=0, **args).eval()
    bare.load_state_dict(backbone.model.state_dict())
    return bare.requires_grad_(False)  # torch sums in another order for what may need a gradient


def add_lora(attn: Any, name: str, weight: Tensor, bias: Tensor) -> None:
    """Add to the Linear of a site, or to its third of the fused one, whose biases may stand apart."""
    linear = getattr(attn, f"{name}_proj", None) or (attn.proj if name == "proj" else attn.qkv)
    thirds = ("q", "k", "v")
    start = thirds.index(name) * (linear.out_features // 3) if name in thirds and linear is attn.qkv else 0
    linear.weight[start : start + len(weight)] += weight
    if linear is attn.qkv and getattr(attn, "q_bias", None) is not None:
        apart = [getattr(attn, f"{third}_bias") for third in (thirds if name == "qkv" else name)]
        for own, added in zip(apart, bias.chunk(len(apart)), strict=True):
            own.add_(added)
        return
    if linear.bias is None:
        linear.bias = nn.Parameter(torch.zeros(linear.out_features), requires_grad=False)
    linear.bias[start : start + len(bias)] += bias


@torch.inference_mode()
def test_lora_on_attention_equals_changed_weights(backbone: Backbone) -> None:
    """LoRA without an activation is a change of the Linear's weight and bias: make it in timm's own, compare."""
    images = pixels(backbone, 2)
    names = [name for name in backbone.layout.sites if name in ("qkv", "q", "k", "v", "proj")]
    assert {"q", "k", "v", "proj"} <= set(names)
    for i, name in enumerate(names):
        adapter = random_adapter(backbone, Spec((all_sites(backbone, name, act="none"),)), i, size=0.2)
        bench = Bench(backbone, [adapter])
        found = torch.from_numpy(np.stack(bench.forward([bench.job(0, images[:1]), bench.job(0, images[1:])])))
        bare, t = timms_own(backbone), adapter.tensors
        for b, block in enumerate(blocks_of(bare, "timm's own")):
            up = 0.6 * t[f"{name}.{b}.up.weight"]
            bias = up @ t[f"{name}.{b}.down.bias"] + 0.6 * t[f"{name}.{b}.up.bias"]
            add_lora(block.module.attn, name, up @ t[f"{name}.{b}.down.weight"], bias)
        vector = bare.forward_head(bare.forward_features(normalised(backbone, images)), pre_logits=True)
        close(found, head_of(backbone, adapter, vector))


def test_a_training_step_has_gradients_at_every_site(backbone: Backbone) -> None:
    """At all of them together, in every block; nothing of the backbone's own changes."""
    sites = tuple(all_sites(backbone, name, act="none") for name in backbone.layout.sites if name != "qkv")
    model = AdaptedModel(backbone, random_adapter(backbone, Spec(sites), 0).config)
    with torch.no_grad():
        for parameter in model.residuals.parameters():
            parameter.normal_(0, 0.1)
    images = normalised(backbone, pixels(backbone, 2))
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    optimizer = torch.optim.SGD(model.residuals.parameters(), 0.01)
    torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1])).backward()
    for name, residual_of in model.residuals.items():
        for parameter in (residual_of.down.weight, residual_of.up.weight):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.model.state_dict().items())


@pytest.mark.parametrize("name", OTHERS)
@torch.inference_mode()
def test_others_of_a_family(tmp_path: Path, name: str) -> None:
    """timm's own without an adapter; with one, what hooks on timm's own modules make of it."""
    backbone = small_backbone(tmp_path / name, name)
    images, bare = normalised(backbone, pixels(backbone, 2)), timms_own(backbone)
    features = backbone.features(images)
    assert torch.equal(features.normed, bare.forward_features(images))
    vector = backbone.pool(features, "backbone", "frozen")
    assert torch.equal(vector, bare.forward_head(features.normed, pre_logits=True))
    if name in ("samnorm", "abswin"):  # whose own way is the mean
        close(backbone.pool(features, "avg", "frozen"), vector)
        assert backbone.pool(features, "avg", "none").shape == vector.shape
    adapter = random_adapter(backbone, Spec((all_sites(backbone, "parallel"),)), 1)
    bench, taps = Bench(backbone, [adapter]), dict[int, Tensor]()
    for index, block in enumerate(blocks_of(bare, name)):
        block.module.norm2.register_forward_pre_hook(lambda _m, args, i=index: taps.update({i: args[0]}))
        block.module.register_forward_hook(
            lambda _m, _a, out, i=index: out + residual(adapter, "parallel", i, taps[i]).reshape(out.shape)
        )
    expected = head_of(backbone, adapter, bare.forward_head(bare.forward_features(images), pre_logits=True))
    found = bench.forward([bench.job(0, image[None]) for image in pixels(backbone, 2)])
    close(torch.from_numpy(np.stack(found)), expected)


@torch.inference_mode()
def test_sixteen_tasks_in_one_batch_answer_as_each_alone(backbone: Backbone) -> None:
    names = list(backbone.layout.sites)
    adapters = []
    for i in range(16):
        frames = (1, 1, 2, 3)[i % 4]
        site = all_sites(backbone, names[i % len(names)], temporal=frames > 1, act=("relu", "none", "gelu")[i % 3])
        pool = backbone.layout.pools[i % len(backbone.layout.pools)]
        norm = "trained" if pool not in NORMS and i % 2 else "frozen"
        adapters.append(random_adapter(backbone, Spec((site,), 3 + 5 * (i % 7), pool, norm, frames), i))
    bench = Bench(backbone, adapters)
    jobs = [bench.job(i, pixels(backbone, a.config.frames, seed=i)) for i, a in enumerate(adapters)]
    together = bench.forward(jobs)
    for job, adapter, logits in zip(jobs, adapters, together, strict=True):
        alone = torch.tensor(bench.forward([job])[0])
        torch.testing.assert_close(torch.tensor(logits), alone, rtol=1e-3, atol=2e-4)
        if adapter.config.sites[0].site in ("parallel", "sequential", "output"):
            expected = reference(backbone, adapter, torch.from_numpy(job.pixels))[0]
            torch.testing.assert_close(alone, expected, rtol=1e-3, atol=2e-4)


@torch.inference_mode()
def test_same_shape_of_batch_same_bits(tmp_path: Path) -> None:
    backbone = small_backbone(tmp_path)
    adapters = [random_adapter(backbone, Spec((all_sites(backbone, "parallel"),), 3 + i), i) for i in range(4)]
    bench = Bench(backbone, adapters)
    mine = pixels(backbone, 1, seed=99)
    others = [pixels(backbone, 1, seed=i) for i in range(7)]
    first = bench.forward([bench.job(1, mine)] + [bench.job(1, o) for o in others])[0]
    mixed = bench.forward([bench.job(1, mine)] + [bench.job(i % 4, o) for i, o in enumerate(others)])[0]
    last = bench.forward([bench.job(i % 4, o) for i, o in enumerate(others)] + [bench.job(1, mine)])[-1]
    assert (first == mixed).all()
    assert (first == last).all()


@torch.inference_mode()
def test_neighbours_with_larger_heads_change_no_bit(tmp_path: Path) -> None:
    backbone = small_backbone(tmp_path)
    counts = (5, 16, 40, 300)
    bench = Bench(backbone, [random_adapter(backbone, Spec((all_sites(backbone, "parallel"),), n), n) for n in counts])
    mine, others = pixels(backbone, 1, seed=99), [pixels(backbone, 1, seed=i) for i in range(6)]
    for place, task in ((0, 0), (3, 2), (6, 3)):
        found = []
        for mix in ((0,), (1, 2), (3,), (0, 1, 2, 3)):
            jobs = [bench.job(mix[i % len(mix)], other) for i, other in enumerate(others)]
            found.append(bench.forward([*jobs[:place], bench.job(task, mine), *jobs[place:]])[place])
        assert len({values.tobytes() for values in found}) == 1
        assert len(found[0]) == counts[task]


@torch.inference_mode()
def test_many_rows_of_one_large_head_are_each_their_own(tmp_path: Path) -> None:
    backbone = small_backbone(tmp_path)
    adapter = random_adapter(backbone, Spec((), 4500), 0)
    bench = Bench(backbone, [adapter])
    images = pixels(backbone, 5)
    found = bench.forward([bench.job(0, images[i : i + 1]) for i in range(5)])
    vector = backbone.pool(backbone.features(normalised(backbone, images)), "backbone", "frozen")
    close(torch.from_numpy(np.stack(found)), head_of(backbone, adapter, vector))


def test_two_threads_in_one_backbone_is_an_error(tmp_path: Path) -> None:
    backbone = small_backbone(tmp_path)
    with backbone._busy, pytest.raises(RuntimeError, match="two threads"):
        backbone.features(torch.zeros(1, 3, 32, 32))


@torch.inference_mode()
def test_jobs_that_share_a_picture_answer_as_alone(backbone: Backbone) -> None:
    """Fewer rows are computed, and each answer is the one that the job gets alone: adapted from the first block, from
    the last one on, in no block, in time, twice, and beside pictures of their own.
    """
    last = (backbone.layout.blocks - 1,)
    whole = all_sites(backbone, "parallel")
    late = SiteConfig(site="parallel", blocks=last, rank=4)
    clip = SiteConfig(site="parallel", blocks=last, rank=4, temporal=True)
    specs = [Spec((whole,)), Spec((late,)), Spec(()), Spec((), 3, norm="trained", pool="avg"), Spec((late,), 4)]
    clips = [Spec((clip,), frames=3), Spec((), frames=3)]
    if "avg" not in backbone.layout.pools:
        specs[3] = Spec((), 3)
    bench = Bench(backbone, [random_adapter(backbone, spec, i) for i, spec in enumerate([*specs, *clips])])
    picture, moving, other = pixels(backbone, 1), pixels(backbone, 3, 1), pixels(backbone, 1, 2)
    jobs = [replace(bench.job(i, picture), picture="one") for i in (0, 1, 2, 3, 4, 1)]
    jobs += [replace(bench.job(i, moving), picture="clip") for i in (5, 6)] + [bench.job(1, other)]
    plan = plan_of(jobs)
    assert plan.key.rows == 4 + 2 * 3 + 1
    assert plan.key.input_rows == 1 + 3 + 1
    rows_seen: list[int] = []
    hook = backbone._blocks[0].module.register_forward_hook(lambda _m, _a, out: rows_seen.append(out.shape[0]))
    together = bench.forward(jobs)
    hook.remove()
    assert rows_seen == [6]  # five pictures, and the one that is adapted from the first block on
    for one, logits in zip(jobs, together, strict=True):
        np.testing.assert_allclose(logits, bench.forward([one])[0], rtol=1e-4, atol=2e-4)
    assert all(np.array_equal(a, b) for a, b in zip(together, bench.forward(jobs), strict=True))


@torch.inference_mode()
def test_the_same_picture_under_another_normalisation_is_another(tmp_path: Path) -> None:
    backbone = small_backbone(tmp_path / "vit")
    one, other = (random_adapter(backbone, Spec(()), 0) for _ in range(2))
    bright = other.config.model_copy(update={"input": other.config.input.model_copy(update={"mean": (0.1, 0.1, 0.1)})})
    bench = Bench(backbone, [one, Adapter(bright, other.tensors, "1" * 64)])
    images = pixels(backbone, 1)
    jobs = [replace(bench.job(i, images), picture="one") for i in range(2)]
    assert plan_of(jobs).key.input_rows == 2
    for job, logits in zip(jobs, bench.forward(jobs), strict=True):
        np.testing.assert_allclose(logits, bench.forward([job])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("told", "chosen"),
    [
        ({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32), ({}, torch.float32),
    ],
)  # fmt: skip
def test_the_dtype_follows_what_the_processor_multiplies(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, bool], chosen: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told)
    assert resolve_dtype("auto", torch.device("cpu")) is chosen
    assert resolve_dtype("float32", torch.device("cpu")) is torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) is torch.bfloat16
