"""AdaptFormer's video checkpoints answer as their own code would, over HTTP too, on VideoMAE's backbone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN
from torch import Tensor

from adapters.backbone import load_backbone
from adapters.config import VideoConfig
from adapters.file import Adapter, read_adapter
from adapters.limits import FileLimits, MediaLimits
from adapters.media import Preprocess, rows, take
from adapters.predictor import Predictor
from service.settings import Settings
from tests.clip_backbone import ClipBase, clips_of, normalised, videomae_names
from tests.houses import House, house, photograph, problem, scores_of
from tests.imports import LABELS, Base, Bed
from tests.media_samples import clip
from tests.models import close
from tests.official import random_state
from tests.official_video import official_clip_logits, random_clip_state
from tests.teaching import send, start, trainer

VIDEO = {"num_frames": 4, "num_segments": 1, "sampling_rate": 4, "window_size": (2, 4, 4), "patch_size": (8, 8),
         "model": "vit_base_patch16_224", "data_set": "HMDB51", "inception": False}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ClipBase:
    return ClipBase(tmp_path_factory.mktemp("models") / "clips")


class ClipBed(Bed):
    """With arguments of ``main_video.py`` in its checkpoints."""

    def checkpoint(self, state: dict[str, Tensor], **args: Any) -> Path:
        return super().checkpoint(state, **(VIDEO | args))


@pytest.fixture
def bed(tmp_path: Path, base: ClipBase) -> ClipBed:
    return ClipBed(tmp_path, base)  # type: ignore[arg-type]


def served(bed: Bed, adapter: Adapter, clips: Tensor) -> Tensor:
    return torch.from_numpy(np.stack(Predictor(bed.backbone, adapter).logits(clips.numpy())))


@torch.inference_mode()
@pytest.mark.parametrize("option", ["parallel", "sequential"])
def test_an_official_checkpoint_answers_as_its_own_code(bed: ClipBed, option: str) -> None:
    state = random_clip_state(bed.backbone)
    adapter = bed.made("adaptformer", bed.checkpoint(state), "--option", option)
    clips = clips_of(bed.backbone, 3)
    seen = adapter.config.input
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (seen.mean, seen.std))
    expected = official_clip_logits(state, clips.float().div(255).sub(mean).div(std), option=option)
    close(served(bed, adapter, clips), expected)
    assert [(s.site, s.rank, s.scale) for s in adapter.config.sites] == [(option, 7, 0.1)]
    assert (adapter.config.pool, adapter.config.norm, adapter.config.labels) == ("avg", "trained", LABELS)


@torch.inference_mode()
def test_scales_told_learnt_and_some_blocks_only(bed: ClipBed) -> None:
    state, clips = random_clip_state(bed.backbone, blocks=(0, 2)), clips_of(bed.backbone, 2)
    colours = ["--mean", "0.5", "0.4", "0.3", "--std", "0.25", "0.2", "0.3"]
    adapter = bed.made("adaptformer", bed.checkpoint(state), "--scale", "0.7", *colours)
    close(served(bed, adapter, clips), official_clip_logits(state, normalised(bed.backbone, clips), scale=0.7))
    state |= {f"blocks.{b}.adaptmlp.scale": torch.tensor([0.2 + b]) for b in (0, 2)}
    adapter = bed.made("adaptformer", bed.checkpoint(state), *colours)
    close(served(bed, adapter, clips), official_clip_logits(state, normalised(bed.backbone, clips)))
    probe = random_clip_state(bed.backbone, blocks=())
    adapter = bed.made("adaptformer", bed.checkpoint(probe), *colours)
    assert adapter.config.sites == ()
    close(served(bed, adapter, clips), official_clip_logits(probe, normalised(bed.backbone, clips)))


def test_what_it_sees_is_what_the_arguments_say(bed: ClipBed) -> None:
    state = random_clip_state(bed.backbone)
    adapter = bed.made("adaptformer", bed.checkpoint(state))
    assert adapter.config.video == VideoConfig(frames=4, sampling="dense", stride=4)
    seen = adapter.config.input
    assert (seen.mean, seen.crop_pct, seen.crop_mode, seen.interpolation) == (
        IMAGENET_DEFAULT_MEAN, 1.0, "center", "bilinear",
    )  # fmt: skip
    told = bed.run("adaptformer", bed.checkpoint(state)).output
    assert "taken for granted: clips as the official code evaluates: 4 frames, 4 apart" in told
    assert "--views 4 --crops 3" in told
    assert "taken for granted: scale 0.1" in told
    adapter = bed.made("adaptformer", bed.checkpoint(state, sampling_rate=2, inception=True), "--views", "2",
                       "--crops", "3")  # fmt: skip
    assert adapter.config.video == VideoConfig(frames=4, sampling="dense", stride=2, views=2, crops=3)
    assert adapter.config.input.mean == (0.5, 0.5, 0.5)
    sparse = bed.made("adaptformer", bed.checkpoint(state, num_frames=1, num_segments=4))
    assert sparse.config.video == VideoConfig(frames=4)
    asked = bed.made("adaptformer", bed.checkpoint(state), "--sampling", "uniform")
    assert asked.config.video == VideoConfig(frames=4)
    state["blocks.1.attn.q_bias"] = state["blocks.1.attn.q_bias"] + 2e-6
    assert "blocks.1.attn.qkv.bias differs by 2e-06" in bed.refused("adaptformer", bed.checkpoint(state))


@pytest.mark.parametrize(
    ("change", "args", "options", "reason"),
    [
        ({}, {"num_frames": 8}, (), "clips of 8 frames, and clips.* sees clips of 4 frames; name a folder"),
        ({}, {"num_frames": "all"}, (), "num_frames is 'all'"),
        ({}, {"sampling_rate": 0}, (), "sampling_rate is '0'"),
        ({}, {}, ("--crops", "2"), "'crops' cannot be 2"),
        ({}, {}, ("--views", "99"), "'views' cannot be 99"),
        ({}, {}, ("--sampling", "random"), "'sampling' cannot be 'random'"),
        ({}, {"fulltune": True}, (), "fully tuned"),
        ({"fc_norm.weight": None}, {}, (), "lacks tensor fc_norm.weight"),
        ({"blocks.1.attn.k_proj.weight": None}, {}, (), "another architecture.*blocks.1.attn.qkv.weight"),
        ({"blocks.1.attn.v_bias": None}, {}, (), "another architecture.*blocks.1.attn.qkv.bias"),
        ({"blocks.9.norm1.bias": torch.ones(48)}, {}, (), "another architecture.*blocks.9.norm1.bias"),
        ({"blocks.0.adaptmlp.adapter_layer_norm_before.bias": torch.ones(48)}, {}, (), "LayerNorm of their own"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused(
    bed: ClipBed, change: dict[str, Tensor | None], args: dict[str, Any], options: tuple[str, ...], reason: str
) -> None:
    state = random_clip_state(bed.backbone) | change  # type: ignore[operator]
    source = bed.checkpoint({name: tensor for name, tensor in state.items() if tensor is not None}, **args)
    assert re.search(reason, bed.refused("adaptformer", source, *options))


def test_pictures_and_clips_have_backbones_of_their_own(bed: ClipBed, tmp_path: Path) -> None:
    pictures = Bed(tmp_path, Base(tmp_path / "vit"))
    clips = bed.checkpoint(random_clip_state(bed.backbone), num_frames=8)
    refusal = pictures.refused("adaptformer", clips)
    assert "this is the video form" in refusal
    assert "sees pictures" in refusal
    wide = random_clip_state(bed.backbone)
    wide["patch_embed.proj.weight"] = torch.zeros(768, 3, 2, 16, 16)
    assert "name videomae_base_patch16_224_f8 with --base" in pictures.refused(
        "adaptformer", bed.checkpoint(wide, num_frames=8)
    )
    still = pictures.checkpoint(random_state(pictures.backbone))
    assert "is of the image form, and clips" in bed.refused("adaptformer", still)
    assert "views are for clips" in pictures.refused("adaptformer", still, "--views", "2")


@torch.inference_mode()
def test_another_backbone_can_be_exported_and_is_served(bed: ClipBed) -> None:
    state = random_clip_state(bed.backbone, seed=5)
    for name in state:
        if name.startswith("blocks.") and "adaptmlp" not in name:
            state[name] = state[name] * 1.01
    source, exported = bed.checkpoint(state), bed.folder / "theirs.safetensors"
    assert "--export-base" in bed.refused("adaptformer", source)
    done = bed.run("adaptformer", source, "--export-base", str(exported), weights=False)
    assert done.exit_code == 0, done.output
    theirs = load_backbone(str(bed.base), str(exported), "cpu", "float32")
    adapter, clips = read_adapter(bed.out, theirs.layout, FileLimits()), clips_of(theirs, 2)
    seen = adapter.config.input
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (seen.mean, seen.std))
    found = torch.from_numpy(np.stack(Predictor(theirs, adapter).logits(clips.numpy())))
    close(found, official_clip_logits(state, clips.float().div(255).sub(mean).div(std)))


def test_a_check_compares_clips(bed: ClipBed, tmp_path: Path) -> None:
    """Also one that is looked at more often than a server takes by default."""
    state, seen = random_clip_state(bed.backbone), tmp_path / "seen"
    source = bed.checkpoint(state)
    adapter = bed.made("adaptformer", source, "--views", "2", "--crops", "3")
    seen.mkdir()
    (seen / "a.mp4").write_bytes(clip(count=30))
    scores = Predictor(bed.backbone, adapter)(seen / "a.mp4").scores
    (seen / "scores.csv").write_text("a.mp4," + ",".join(f"{score:.9f}" for score in scores))
    looks = ["--views", "2", "--crops", "3", "--check", str(seen)]
    assert "checked: 1 of 1" in bed.run("adaptformer", source, *looks).output
    assert "does not answer as expected" in bed.run("adaptformer", source, *looks, "--scale", "3").output
    looks[1] = "4"
    told = bed.run("adaptformer", source, *looks).output
    assert "ADAPTSERVE_MAX_CLIP_FRAMES=48" in told
    assert "1 pictures have the same best label" in told


@pytest.fixture(scope="module")
def home(base: ClipBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings = Settings(
        backbone=str(base.folder), weights=str(base.weights), device="cpu", dtype="float32", threads=1, port=0,
        data_dir=tmp_path_factory.mktemp("data"),
    )  # fmt: skip
    with house(settings) as made:
        yield made


@torch.inference_mode()
def test_over_http_it_is_the_official_mathematics(bed: ClipBed, home: House) -> None:
    """Several checkpoints answer a batch of clips; each as its own code does of the same frames, view by view."""
    bodies = [clip(count=20 + 7 * number, size=(64, 48)) for number in range(3)]
    tasks: dict[str, tuple[dict[str, Tensor], Adapter]] = {}
    for number, options in enumerate(((), ("--option", "sequential"), ("--views", "2", "--crops", "3"))):
        state = random_clip_state(bed.backbone, seed=number)
        adapter = bed.made("adaptformer", bed.checkpoint(state), *options)
        tasks[f"task-{number}"] = state, adapter
        assert home.put(f"task-{number}", bed.out.read_bytes()).status_code == 201
    for name, (state, adapter) in tasks.items():
        for body in bodies:
            frames = take(body, adapter.config, MediaLimits(max_frames=512))
            pixels = torch.from_numpy(rows(frames, Preprocess(adapter.config.input), crops=adapter.config.crops))
            seen = adapter.config.input
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (seen.mean, seen.std))
            views = pixels.view(-1, 4, *pixels.shape[1:]).float().div(255).sub(mean).div(std)
            option = adapter.config.sites[0].site
            expected = official_clip_logits(state, views, option=option).softmax(1).mean(0)
            found = home.ask(name, body).raise_for_status().json()
            assert found["modality"] == "video"
            np.testing.assert_allclose(scores_of(found), expected.numpy(), rtol=1e-4, atol=1e-6)
    asked = {"task": list(tasks)}
    together = home.client.post("/v1/predict", params=asked | {"top_k": 100}, content=bodies[0]).json()["results"]
    for answer in together:
        alone = scores_of(home.ask(answer["task"], bodies[0]).json())
        np.testing.assert_allclose(scores_of(answer), alone, rtol=1e-4, atol=1e-6)


def test_a_server_of_clips_says_so_and_refuses_pictures(bed: ClipBed, base: ClipBase, home: House) -> None:
    adapter = bed.made("adaptformer", bed.checkpoint(random_clip_state(bed.backbone)))
    home.put("clips", bed.out.read_bytes())
    listed = home.client.get("/v1/tasks").json()
    assert (listed["frames"], listed["input_size"]) == (4, [32, 32])
    assert home.client.get("/readyz").status_code == 200
    assert "takes clips, a picture came" in problem(home.ask("clips", photograph()), 422)["detail"]  # type: ignore[operator]
    refused = problem(home.client.post("/v1/embed", content=photograph()), 422)
    assert "sees clips of 4 frames, and a picture came" in refused["detail"]  # type: ignore[operator]
    refused = problem(home.client.post("/v1/embed", content=clip(), params={"frames": 8}), 422)
    assert (refused["field"], refused["expected"]) == ("frames", 4)
    moving = clip(count=9)
    answer = home.client.post("/v1/embed", content=moving).raise_for_status().json()
    assert (answer["modality"], answer["frames"]) == ("video", 4)
    close(torch.tensor(answer["embedding"]), torch.from_numpy(Predictor(base.backbone).embed(moving)))
    vector = home.ask("clips", moving, embedding=True).json()["embedding"]
    close(torch.tensor(vector), torch.from_numpy(Predictor(base.backbone, adapter).embed(moving, adapter.config.task)))


def test_a_batch_must_hold_a_clip(base: ClipBase, tmp_path: Path) -> None:
    settings = Settings(
        backbone=str(base.folder), weights=str(base.weights), device="cpu", max_batch_rows=3, port=0, data_dir=tmp_path
    )
    with pytest.raises(Exception, match="ADAPTSERVE_MAX_BATCH_ROWS=4"), house(settings):
        pass


def test_a_folder_of_transformers_is_its_backbone(base: ClipBase, tmp_path: Path) -> None:
    """Its own names of config and tensors; the norm behind the pooling has an epsilon of its own there."""
    from safetensors.torch import save_file

    from tests.test_tubelets import _hugging_face

    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192}
    config = {"model_type": "videomae", "image_size": 32, "patch_size": 8, "num_frames": 4, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(_hugging_face(videomae_names(base.backbone)), tmp_path / "model.safetensors")
    found = load_backbone(str(tmp_path), "", "cpu", "float32")
    assert found.layout.fingerprint == base.backbone.layout.fingerprint
    assert (found.layout.frames, found.layout.input_size, found.norm_eps) == (4, (32, 32), 1e-5)
    assert (found.model.blocks[0].norm1.eps, found.input.interpolation) == (1e-12, "bilinear")


def test_a_job_trains_on_examples_that_are_clips(home: House) -> None:
    """The head on vectors that the engine computes of whole clips; pictures are refused in words."""
    client = home.client
    for label, picture in (("lighter", None), ("still", Image.new("RGB", (32, 32), (90, 90, 40)))):
        files = [("file", (f"{n}.mp4", clip(count=8 + n, picture=picture))) for n in range(5)]
        client.post("/v1/tasks/moves/examples", params={"label": label}, files=files).raise_for_status()
    with trainer(home) as worker:
        start(client, "moves", method="auto", epochs=1)
        done = worker.work()
        assert (done.state, done.problem) == ("done", None)
        assert [one.method for one in done.published] == ["linear", "adaptformer"]
        assert client.get("/v1/tasks/moves").json()["frames"] == 4
        assert home.ask("moves", clip(count=9)).json()["predictions"][0]["label"] in ("lighter", "still")
        send(client, "stills", 3)
        start(client, "stills", method="linear")
        failed = worker.work()
        assert failed.state == "failed"
        assert "sees clips of 4 frames and nothing else" in str(failed.problem)
