"""A backbone of clips: VideoMAE's forward, its checkpoints by whatever names, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from adapters.backbone import Backbone, load_backbone
from adapters.backbone.tubelets import NAMES, sinusoids
from adapters.backbone.weights import _architecture_of
from adapters.config import SiteConfig, VideoConfig
from adapters.errors import AdaptError, BackboneError, BrokenAdapter, WrongModality
from adapters.file import read_adapter, write_adapter
from adapters.forward.banked import BankedForward
from adapters.limits import FileLimits
from adapters.predictor import Predictor
from adapters.training.fit import FitConfig, fit, predict
from adapters.training.model import AdaptedModel
from adapters.training.recipe import Recipe
from adapters.training.recipe import config_of as recipe_of
from adapters.training.start import frozen
from service.cli.main import app
from tests.clip_backbone import FRAMES, ClipBase, clips_of, normalised, videomae_names
from tests.devices import StandIn
from tests.media_samples import clip, encode, scene
from tests.models import Spec, close, config_of, random_adapter, residual
from tests.official_video import official_vectors, random_clip_state
from tests.references import Bench
from tests.test_training_fit import tinted

State = dict[str, Tensor]
SITES = ("parallel", "sequential", "qkv", "q", "v", "proj", "fc1", "fc2", "attn", "input", "pre_mlp", "output")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ClipBase:
    return ClipBase(tmp_path_factory.mktemp("models") / "clips")


@pytest.fixture(scope="module")
def backbone(base: ClipBase) -> Backbone:
    return base.backbone


def spec(site: str = "parallel", **more: Any) -> Spec:
    sites = (SiteConfig(site=site, blocks=(0, 2), rank=4, act="relu", scale=0.5),)  # type: ignore[arg-type]
    return Spec(sites, 5, "avg", "trained", FRAMES, **more)


@torch.inference_mode()
def test_the_bare_backbone_is_videomaes_forward(backbone: Backbone) -> None:
    state = random_clip_state(backbone, blocks=())
    state |= {name: tensor for name, tensor in backbone.model.state_dict().items() if name.startswith("fc_norm.")}
    clips = normalised(backbone, clips_of(backbone, 3))
    features = backbone.features(clips)
    close(backbone.pool(features, "backbone", "frozen"), official_vectors(state, clips))
    close(backbone.pool(features, "avg", "frozen"), official_vectors(state, clips))
    assert features.raw.shape == (3, FRAMES // 2 * 16, 48)
    assert (backbone.layout.frames, backbone.layout.pools, backbone.layout.prefix_tokens) == (4, ("backbone", "avg"), 0)


def test_positions_are_the_published_table() -> None:
    found = sinusoids(1568, 768)[0]
    for token, column in ((0, 0), (0, 1), (7, 2), (783, 401), (1567, 767)):
        angle = token / np.power(10000, 2 * (column // 2) / 768)
        assert float(found[token, column]) == pytest.approx(np.cos(angle) if column % 2 else np.sin(angle), abs=1e-12)


def _pretrained(state: State) -> State:
    """As masked training saves it: a prefix, a norm before any pooling, and a decoder."""
    renamed = {f"encoder.{name.replace('fc_norm', 'norm')}": tensor for name, tensor in state.items()}
    decoder = {"decoder.blocks.0.norm1.weight": torch.ones(3), "decoder.head.bias": torch.ones(3)}
    return renamed | decoder | {"mask_token": torch.ones(1, 1, 3), "encoder_to_decoder.weight": torch.ones(3, 48)}


def _split(state: State) -> State:
    """As AdaptFormer's code has it."""
    found: State = {}
    for name, tensor in state.items():
        if name.endswith("qkv.weight"):
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                found[name.replace("qkv", f"{letter}_proj")] = part.clone()
        else:
            found[name.replace(".mlp.", ".")] = tensor
    return found


def _hugging_face(state: State) -> State:
    """As transformers' VideoMAEForVideoClassification saves it."""
    names = {
        "patch_embed.proj": "videomae.embeddings.patch_embeddings.projection", "norm1": "layernorm_before",
        "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
        "attn.proj": "attention.output.dense", "attn.q_bias": "attention.attention.q_bias",
        "attn.v_bias": "attention.attention.v_bias",
    }  # fmt: skip
    found: State = {"classifier.weight": torch.ones(2, 48), "classifier.bias": torch.ones(2)}
    for name, tensor in state.items():
        if name.endswith("qkv.weight"):
            block = name.split(".")[1]
            for part, one in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[f"videomae.encoder.layer.{block}.attention.attention.{part}.weight"] = one.clone()
            continue
        module = name.removesuffix(".weight").removesuffix(".bias")
        ours = next((one for one in names if module.endswith(one)), "")
        renamed = name.replace(ours, names[ours]) if ours else name
        found[renamed.replace("blocks.", "videomae.encoder.layer.")] = tensor
    return found


@pytest.mark.parametrize(
    "spelt",
    [dict, _pretrained, _split, lambda state: _pretrained(_split(state)), _hugging_face],
    ids=["fine-tuned", "pretrained", "AdaptFormer's", "converted", "transformers"],
)
def test_every_spelling_of_its_weights_is_the_same_backbone(
    base: ClipBase, tmp_path: Path, spelt: Callable[[State], State]
) -> None:
    weights = tmp_path / "w.safetensors"
    save_file(spelt(videomae_names(base.backbone)), weights)
    found = load_backbone(str(base.folder), str(weights), "cpu", "float32")
    assert found.layout.fingerprint == base.backbone.layout.fingerprint


@pytest.mark.parametrize("key", ["model", "module"])
def test_a_pickled_checkpoint_is_read_without_running_it(base: ClipBase, tmp_path: Path, key: str) -> None:
    weights = tmp_path / "w.pth"
    torch.save({key: _pretrained(videomae_names(base.backbone)), "epoch": 3}, weights)
    found = load_backbone(str(base.folder), str(weights), "cpu", "float32")
    assert found.layout.fingerprint == base.backbone.layout.fingerprint


def test_what_does_not_fit_is_told(base: ClipBase, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    state = videomae_names(base.backbone)
    del state["blocks.1.attn.v_bias"]
    save_file(state, weights)
    with pytest.raises(BackboneError, match=r"lacks 1 tensors.*blocks\.1\.attn\.qkv\.bias"):
        load_backbone(str(base.folder), str(weights), "cpu", "float32")
    with pytest.raises(BackboneError, match="positions are numbers of tokens"):
        load_backbone(str(base.folder), str(base.weights), "cpu", "float32", 64)
    config = json.loads((base.folder / "config.json").read_text())
    config["model_args"]["frames"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match="5 frames are not whole tubelets of 2"):
        load_backbone(str(tmp_path), "random:0", "cpu", "float32")


def test_published_models_go_by_names_and_need_weights() -> None:
    assert len(NAMES) == len(timm.list_models(module="tubelets")) == 12
    assert not set(NAMES) & {name.split(".")[0] for name in timm.list_pretrained()}
    with torch.device("meta"):
        base, other = (timm.create_model(f"videomae_base_patch16_224{tag}", num_classes=0) for tag in ("", "_f8"))
    assert (base.frames, base.patch_embed.num_patches) == (16, 1568)
    assert (other.frames, other.patch_embed.num_patches) == (8, 784)
    assert sum(p.numel() for p in other.parameters()) == 86_227_200 + 12 * 768  # keys' zero biases among them
    with pytest.raises(BackboneError, match="give a local file with --weights"):
        load_backbone("videomae_small_patch16_224_f8", "", "cpu", "float32")
    with torch.device("meta"):
        small = timm.create_model("videomae_small_patch16_224_f8", num_classes=0).state_dict()
    assert _architecture_of(small, "vit_small_patch16_224") == "videomae_small_patch16_224"


@torch.inference_mode()
def test_every_site_adds_nothing_or_what_the_formula_says(backbone: Backbone) -> None:
    """Of a zero adapter the bare backbone's bits; of a random one the forward written out."""
    assert set(SITES) <= set(backbone.layout.sites)
    clips = clips_of(backbone, 2)
    for number, site in enumerate(SITES):
        zero, loud = random_adapter(backbone, spec(site), 1), random_adapter(backbone, spec(site), number)
        for name, tensor in zero.tensors.items():
            if ".up." in name:
                tensor.zero_()
        bare = random_adapter(backbone, replace(spec(), sites=()), 1)
        bare.tensors.update({n: t for n, t in zero.tensors.items() if n in bare.tensors})  # type: ignore[attr-defined]
        bench = Bench(backbone, [zero, bare, loud])
        silent, plain, said = (bench.forward([bench.job(i, one) for one in clips]) for i in range(3))
        assert all(map(np.array_equal, silent, plain))
        assert float(np.abs(np.stack(said) - np.stack(plain)).max()) > 1e-2, site
    loud = random_adapter(backbone, spec(), 0)
    bench = Bench(backbone, [loud])
    tokens = backbone.model.patch_embed(normalised(backbone, clips))
    for index, block in enumerate(backbone.model.blocks):
        middle = tokens + block.attn(block.norm1(tokens))
        tokens = middle + block.mlp(block.norm2(middle)) + residual(loud, "parallel", index, middle)
    t = loud.tensors
    vector = torch.nn.functional.layer_norm(tokens.mean(1), (48,), t["norm.weight"], t["norm.bias"], 1e-6)
    expected = vector @ t["head.weight"].T + t["head.bias"]
    close(torch.from_numpy(np.stack(bench.forward([bench.job(0, one) for one in clips]))), expected)


@torch.inference_mode()
def test_beside_other_tasks_each_answers_as_alone(backbone: Backbone) -> None:
    """One batch of many tasks, each clip one row of it; the same shape of batch gives the same bits."""
    adapters = [random_adapter(backbone, spec(site), seed) for seed, site in enumerate(("parallel", "qkv", "fc1"))]
    bench, clips = Bench(backbone, adapters), clips_of(backbone, 6)
    jobs = [bench.job(number % 3, one) for number, one in enumerate(clips)]
    together = bench.forward(jobs)
    assert bench.forward.prepare(jobs).plan.key.rows == 6
    for job, mixed in zip(jobs, together, strict=True):
        close(torch.from_numpy(mixed), torch.from_numpy(bench.forward([job])[0]))
    assert all(map(np.array_equal, reversed(bench.forward(jobs[::-1])), together))
    same = replace(jobs[0], picture="one"), replace(jobs[1], picture="one", pixels=jobs[0].pixels)
    shared = bench.forward(same)
    close(torch.from_numpy(shared[0]), torch.from_numpy(together[0]))
    close(torch.from_numpy(shared[1]), torch.from_numpy(bench.forward([same[1]])[0]))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"frames": 1, "pool": "avg"}, "modality"), ({"frames": 8}, "video.frames"),
        ({"head": "frames"}, "video.head"), ({"head": "attention", "head_width": 15}, "video.head"),
        ({"sites": (SiteConfig(site="parallel", blocks=(0,), rank=4, temporal=True),)}, "sites.temporal"),
        ({"pool": "cls"}, "pool"),
    ],
)  # fmt: skip
def test_adapters_of_pictures_or_other_clips_are_refused(
    backbone: Backbone, change: dict[str, Any], field: str
) -> None:
    config = config_of(backbone, replace(spec(), **change))
    with pytest.raises(BrokenAdapter) as refused:
        backbone.layout.check(config, max_rank=16, max_classes=10, max_frames=16)
    assert refused.value.facts["field"] == field


def test_the_library_sees_clips_and_refuses_pictures(backbone: Backbone) -> None:
    adapter = random_adapter(backbone, spec(), 3)
    predictor, moving = Predictor(backbone, adapter), clip(count=12)
    assert predictor(moving).scores.shape == (5,)
    assert predictor.embed(moving).shape == predictor.embed(moving, frames=FRAMES).shape == (48,)
    assert predictor.embed(moving, "t").shape == (48,)
    with pytest.raises(WrongModality, match="sees clips of 4 frames, 8 were asked"):
        predictor.embed(moving, frames=8)
    for ask in (predictor, predictor.embed):
        with pytest.raises(WrongModality, match="takes clips, a picture came"):
            ask(encode(scene(), "PNG"))  # type: ignore[operator]


@torch.inference_mode()
def test_graphs_and_kept_tokens_hold_whole_clips(backbone: Backbone) -> None:
    """Rows of a graph, and of the prefix cache, are clips; both answer as eager does."""
    late = SiteConfig(site="parallel", blocks=(2,), rank=4)
    specs = [spec(), replace(spec(), sites=(late,)), replace(spec("fc1"), norm="frozen")]
    bench = Bench(backbone, [random_adapter(backbone, one, seed) for seed, one in enumerate(specs)])
    device, clips = StandIn(), clips_of(backbone, 5)
    graphs = BankedForward(backbone, bench.slabs, device=device)  # type: ignore[arg-type]
    assert graphs.warm_up((1, 32)) == 4  # a clip and eight, of no task and of a usual one
    jobs = [bench.job(number % 3, one) for number, one in enumerate(clips)]
    for turn in (jobs, jobs[::-1], jobs[:1], jobs[1:4]):
        for found, expected in zip(graphs(turn), bench.forward(turn), strict=True):
            close(torch.from_numpy(found), torch.from_numpy(expected))
    assert sum(graph.replays for graph in device.graphs) >= 4
    kept = BankedForward(backbone, bench.slabs, prefix_cache_bytes=2**20)
    assert kept.prefixes is not None
    one, other = (replace(bench.job(number, clips[0]), picture="clip") for number in (1, 2))
    for job in (one, one, other):
        close(torch.from_numpy(kept([job])[0]), torch.from_numpy(bench.forward([job])[0]))
    assert (len(kept.prefixes), kept.prefixes.hits) == (1, 1)
    (tokens,) = (tokens for blocks in kept.prefixes._kept.values() for tokens in blocks.values())
    assert tokens.shape == (1, FRAMES // 2 * 16, 48)


@pytest.mark.parametrize("blocks", [(0, 2), (2,)], ids=["from the first block", "from the last"])
def test_what_is_trained_answers_as_it_is_served(backbone: Backbone, blocks: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    site = SiteConfig(site="parallel", blocks=blocks, rank=4, scale=0.5)
    model = AdaptedModel(backbone, config_of(backbone, replace(spec(), sites=(site,), classes=2)))
    data = tinted(16, FRAMES)
    fit(model, data, data, FitConfig(epochs=2, batch=8, lr=5e-3, mixup=0.2))
    expected, _ = predict(model, data, FitConfig())
    write_adapter(tmp_path / "a.safetensors", model.exported_config(), model.tensors())
    adapter = read_adapter(tmp_path / "a.safetensors", backbone.layout, FileLimits())
    found = Predictor(backbone, adapter).logits(data.tensors[0].numpy())
    torch.testing.assert_close(torch.from_numpy(np.stack(found)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["adaptformer", "lora", "linear", "vpt", "full"])
def test_every_method_has_a_recipe_for_it(backbone: Backbone, method: Any) -> None:
    config = recipe_of(Recipe("t", method=method), backbone, "video", ("a", "b"))
    assert config.video == VideoConfig(frames=FRAMES)
    assert not any(site.temporal for site in config.sites)
    vectors = frozen(backbone, config, backbone.layout.pools, tinted(6, FRAMES))
    assert {v.shape for v in vectors.vectors.values()} == {(6, 1, 48)}


@pytest.mark.parametrize(
    ("recipe", "modality", "reason"),
    [
        (Recipe("t"), "image", "the data holds pictures"), (Recipe("t", frames=8), "video", "the adapter takes 8"),
        (Recipe("t", head="frames"), "video", "no frames for video.head"),
        (Recipe("t", temporal=True), "video", "no frames beside each other"),
        (Recipe("t", method="st-adapter"), "video", "sees together"),
    ],
)  # fmt: skip
def test_training_refuses_what_it_cannot_see(backbone: Backbone, recipe: Recipe, modality: Any, reason: str) -> None:
    with pytest.raises(AdaptError, match=reason):
        recipe_of(recipe, backbone, modality, ("a", "b"))


def test_a_command_trains_what_a_server_answers(base: ClipBase, tmp_path: Path) -> None:
    for number in range(5):
        for name in ("lighter", "still"):
            picture = Image.new("RGB", (32, 32), (30 * number, 90, 40)) if name == "still" else None
            (tmp_path / "clips" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "clips" / name / f"{number}.mp4").write_bytes(clip(count=8 + number, picture=picture))
    where, file = ["--backbone", str(base.folder), "--weights", str(base.weights)], tmp_path / "moves.safetensors"
    few = ["--device", "cpu", "--dtype", "float32", "--epochs", "2", "--scale", "0.5", "--no-fallback"]
    done = CliRunner().invoke(app, ["train", str(tmp_path / "clips"), "--out", str(file), *where, *few])
    assert done.exit_code == 0, done.output
    adapter = read_adapter(file, base.backbone.layout, FileLimits())
    assert adapter.config.video == VideoConfig(frames=FRAMES)
    assert adapter.config.sites
    predictor = Predictor(base.backbone, adapter)
    held_out = json.loads((Path(f"{file}.report") / "metrics.json").read_text())["held_out"]
    for example in held_out:
        scores = predictor(tmp_path / "clips" / example["path"]).scores
        assert dict(zip(adapter.config.labels, scores, strict=True)) == pytest.approx(example["scores"], abs=1e-5)
