"""ST-Adapter by the operator: training and serving are its own forward; its sites in every family and beside others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adapters.backbone import Backbone
from adapters.config import AdapterConfig, SiteConfig
from adapters.errors import BrokenAdapter
from adapters.file import Adapter
from adapters.forward.plan import PATCHES_AT, SITES, plan_of
from adapters.predictor import Predictor
from adapters.training.model import AdaptedModel
from tests.models import FAMILIES, Spec, close, config_of, head_of, random_adapter, residual, small_backbone
from tests.references import Bench, all_sites, normalised, pixels, reference
from tests.st_adapter import KINDS, State, official_logits, random_state

FRAMES = 5
NAMES = dict(zip(KINDS, ("input", "pre_mlp"), strict=True))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(tmp_path_factory.mktemp("models") / "clip", "clip")


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(tmp_path_factory.mktemp("models") / request.param, request.param)


def both(backbone: Backbone, rank: int = 6, **more: object) -> tuple[SiteConfig, ...]:
    fields = {"rank": rank, "act": "none", "scale": 1.0, "temporal": True, "tokens": "patches", **more}
    blocks = fields.pop("blocks", tuple(range(backbone.layout.blocks)))
    return tuple(SiteConfig(site=name, blocks=blocks, **fields) for name in NAMES.values())


def by_hand(backbone: Backbone, state: State) -> Adapter:
    """The adapter that a state of the official code is."""
    spec = Spec(both(backbone), 5, "cls", "trained", FRAMES)
    tensors = {"norm.weight": state["ln_post.weight"], "norm.bias": state["ln_post.bias"]}
    tensors |= {"head.weight": state["fc.weight"], "head.bias": state["fc.bias"]}
    for kind, site in NAMES.items():
        for block in range(backbone.layout.blocks):
            theirs, ours = f"transformer.resblocks.{block}.{kind}", f"{site}.{block}"
            tensors[f"{ours}.down.weight"] = state[f"{theirs}.fc1.weight"]
            tensors[f"{ours}.down.bias"] = state[f"{theirs}.fc1.bias"]
            tensors[f"{ours}.time.weight"] = state[f"{theirs}.conv.weight"].flatten(2)
            tensors[f"{ours}.up.weight"] = state[f"{theirs}.fc2.weight"]
            shift = state[f"{theirs}.fc2.weight"] @ state[f"{theirs}.conv.bias"]
            tensors[f"{ours}.up.bias"] = state[f"{theirs}.fc2.bias"] + shift
    return Adapter(config_of(backbone, spec), tensors, "0" * 64)


def module_of(backbone: Backbone, adapter: Adapter) -> AdaptedModel:
    """The model that training would hold."""
    model = AdaptedModel(backbone, adapter.config).eval()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in adapter.tensors.items():
            site, block, part = name.split(".", 2) if name.count(".") > 1 else (name, "", "")
            inside = f"residuals.{site}_{block}.{'time' if part == 'time.weight' else part}"
            own[inside if part else name].copy_(tensor)
    return model


def test_training_and_serving_are_the_official_forward(clip: Backbone) -> None:
    state = random_state(clip)
    images = pixels(clip, 3 * FRAMES)
    clips = normalised(clip, images).view(3, FRAMES, *images.shape[1:])
    expected = official_logits({name: tensor.double() for name, tensor in state.items()}, clips)
    adapter = by_hand(clip, state)
    model = module_of(clip, adapter)
    with torch.inference_mode():
        found = model(clips.flatten(0, 1))
    served = torch.from_numpy(np.stack(Predictor(clip, adapter).logits(images.view(*clips.shape).numpy())))
    close(found, expected)
    close(served, expected)
    assert float((found - expected).abs().max()) <= 1e-5
    assert float((served - expected).abs().max()) <= 1e-5
    assert {name: tensor.shape for name, tensor in model.tensors().items()} == clip.layout.tensors(adapter.config)


def test_gradients_are_those_of_the_official_forward(clip: Backbone) -> None:
    """Also of the first block, through the sums that later sites write into.

    After the last attention the class token, which is all that the head sees, hears of no patch.
    """
    state = {name: tensor.requires_grad_("adapter" in name) for name, tensor in random_state(clip, seed=2).items()}
    clips = normalised(clip, pixels(clip, 2 * FRAMES)).view(2, FRAMES, 3, *clip.layout.input_size)
    (1e3 * official_logits(state, clips)[:, 0].sum()).backward()
    model = module_of(clip, by_hand(clip, {name: tensor.detach() for name, tensor in state.items()}))
    (1e3 * model(clips.flatten(0, 1))[:, 0].sum()).backward()
    for kind, site in NAMES.items():
        for block in range(clip.layout.blocks):
            theirs, ours = f"transformer.resblocks.{block}.{kind}", model.residuals[f"{site}_{block}"]
            if (site, block) == ("pre_mlp", clip.layout.blocks - 1):
                assert not ours.down.weight.grad.any()
                continue
            for found, name in ((ours.down.weight, "fc1.weight"), (ours.up.bias, "fc2.bias")):
                assert found.grad is not None
                close(found.grad, state[f"{theirs}.{name}"].grad)
            close(ours.time.grad, state[f"{theirs}.conv.weight"].grad.flatten(2))


@torch.inference_mode()
def test_every_family_has_the_sites(backbone: Backbone) -> None:
    """A zero adapter is the bare backbone; a random one is the written-out forward, over time, patches only."""
    assert {"input", "pre_mlp"} <= set(backbone.layout.sites)
    spec = Spec((*both(backbone), all_sites(backbone, "parallel", tokens="patches")), 5, frames=3)
    zero, mixing = random_adapter(backbone, spec, 1), random_adapter(backbone, spec, 2)
    for name, tensor in zero.tensors.items():
        if ".up." in name:
            tensor.zero_()
    bare = random_adapter(backbone, Spec((), 5, frames=3), 1)
    bare.tensors.update({name: zero.tensors[name] for name in ("head.weight", "head.bias")})  # type: ignore[attr-defined]
    bench, images = Bench(backbone, [zero, mixing, bare]), pixels(backbone, 3)
    silent, loud, plain = (torch.from_numpy(bench.forward([bench.job(i, images)])[0]) for i in range(3))
    assert torch.equal(silent, plain)
    torch.testing.assert_close(loud, reference(backbone, mixing, images)[0], rtol=1e-3, atol=2e-4)
    everywhere = replace(mixing, config=_everywhere(mixing.config))
    beside = reference(backbone, everywhere, images)[0]
    spares = bool(backbone.layout.prefix_tokens)
    assert torch.allclose(loud, beside, atol=1e-3) != spares


def _everywhere(config: AdapterConfig) -> AdapterConfig:
    return config.model_copy(update={"sites": tuple(s.model_copy(update={"tokens": "all"}) for s in config.sites)})


@torch.inference_mode()
def test_beside_other_tasks_each_answers_as_alone(clip: Backbone) -> None:
    adapters = [
        random_adapter(clip, Spec(both(clip), 5, "cls", "trained", 3), 0),
        random_adapter(clip, Spec((all_sites(clip, "input"),), 4), 1),
        random_adapter(clip, Spec((all_sites(clip, "pre_mlp", tokens="patches"), all_sites(clip, "parallel"))), 2),
        random_adapter(clip, Spec((all_sites(clip, "qkv", act="none", tokens="patches"),)), 3),
        random_adapter(clip, Spec((all_sites(clip, "parallel", act="gelu"),), 3, "avg", "trained", 2), 4),
        random_adapter(clip, Spec((), 3), 5),
    ]
    bench = Bench(clip, adapters)
    jobs = [bench.job(i, pixels(clip, a.config.frames, seed=i)) for i, a in enumerate(adapters)]
    for job, adapter, logits in zip(jobs, adapters, bench.forward(jobs), strict=True):
        np.testing.assert_allclose(logits, bench.forward([job])[0], rtol=1e-4, atol=2e-4)
        if "qkv" not in (site.site for site in adapter.config.sites):  # not written out in the reference
            expected = reference(clip, adapter, torch.from_numpy(job.pixels))[0]
            torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=2e-4)


@torch.inference_mode()
def test_a_linear_layer_spares_tokens_too(clip: Backbone) -> None:
    adapter, images = random_adapter(clip, Spec((all_sites(clip, "qkv", tokens="patches"),)), 7), pixels(clip, 2)
    bench = Bench(clip, [adapter])
    found = torch.from_numpy(np.stack(bench.forward([bench.job(0, images[i : i + 1]) for i in range(2)])))
    hooks = [
        block.attn.qkv.register_forward_hook(
            lambda _m, args, out, index=index: out + residual(adapter, "qkv", index, args[0], prefix=1)
        )
        for index, block in enumerate(clip.model.blocks)
    ]
    vector = clip.model.forward_head(clip.model.forward_features(normalised(clip, images)), pre_logits=True)
    for hook in hooks:
        hook.remove()
    close(found, head_of(clip, adapter, vector))


@torch.inference_mode()
def test_who_spares_tokens_changes_no_bit_of_who_does_not(clip: Backbone) -> None:
    spec = Spec(both(clip), 5, frames=3)
    adapters = [random_adapter(clip, spec, 0), random_adapter(clip, Spec(both(clip, tokens="all"), 5, frames=3), 1)]
    bench = Bench(clip, adapters)
    mine, others = pixels(clip, 3, seed=9), [pixels(clip, 3, seed=i) for i in range(3)]
    mixes = ((0, 1, 0), (1, 1, 0), (0, 0, 1))
    for task in (0, 1):
        batches = [[bench.job((task, *mix)[i], o) for i, o in enumerate([mine, *others])] for mix in mixes]
        assert len({plan_of(jobs).key for jobs in batches}) == 1
        assert len({bench.forward(jobs)[0].tobytes() for jobs in batches}) == 1
    alone = [plan_of([bench.job(task, mine)]).key.sites[0].patches for task in (0, 1)]
    assert alone == [True, False]
    table = plan_of(batches[0], pad=True).table.rows
    assert table[SITES + PATCHES_AT].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]


@torch.inference_mode()
def test_a_picture_is_shared_up_to_the_block_whose_input_changes(clip: Backbone) -> None:
    last = (clip.layout.blocks - 1,)
    specs = [Spec((site,), 3) for site in both(clip, blocks=last, temporal=False)] + [Spec((), 3)]
    bench = Bench(clip, [random_adapter(clip, spec, i) for i, spec in enumerate(specs)])
    picture = pixels(clip, 1)
    jobs = [replace(bench.job(i, picture), picture="one") for i in range(3)]
    assert plan_of(jobs).key.joins == ((last[0], 2),)
    for one, logits in zip(jobs, bench.forward(jobs), strict=True):
        np.testing.assert_allclose(logits, bench.forward([one])[0], rtol=1e-4, atol=2e-4)


def test_patches_need_a_backbone_that_tells_them(clip: Backbone) -> None:
    adapter = random_adapter(clip, Spec(both(clip), 5, frames=3), 0)
    unknown = replace(clip.layout, prefix_tokens=None)
    with pytest.raises(BrokenAdapter, match="only tokens 'all'"):
        adapter.check(unknown)
    replace(adapter, config=_everywhere(adapter.config)).check(unknown)


def test_what_is_the_default_is_not_written() -> None:
    site = SiteConfig(site="parallel", blocks=(0,), rank=4)
    before = '{"site":"parallel","blocks":[0],"rank":4,"act":"relu","scale":0.1,"temporal":false}'
    assert site.model_dump_json() == before
    assert SiteConfig.model_validate_json(before) == site
    spared = site.model_copy(update={"tokens": "patches"})
    assert SiteConfig.model_validate_json(spared.model_dump_json()) == spared
