"""Small random models of Hugging Face's transformers, and PEFT's adapters on them, answer here as in the library."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from adapters.backbone import Backbone, load_backbone
from adapters.backbone.inputs import normalise
from adapters.config import VideoConfig
from adapters.file import Adapter, read_adapter
from adapters.limits import FileLimits
from adapters.predictor import Predictor
from service.cli.main import app
from service.settings import Settings
from tests.houses import House, house, photograph, scores_of
from tests.imports import LABELS, served
from tests.models import small_backbone

transformers = pytest.importorskip("transformers", reason="transformers is not installed; `make libraries` installs it")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of the libraries, about each other

PLAIN = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 16}
MLP = {**PLAIN, "intermediate_size": 192}
EIGHT = {**MLP, "patch_size": 8}
DINO = {**PLAIN, "patch_size": 14, "image_size": 28}
SWIN = {"image_size": 32, "embed_dim": 24, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4}
# Class and config, and the small timm architecture that its weights fit, if there is one in tests.models.
CLASSES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "ViT": ("ViTForImageClassification", "ViTConfig", {**EIGHT, "num_hidden_layers": 3}, "vit"),
    "ViT-MSN": ("ViTMSNForImageClassification", "ViTMSNConfig", {**EIGHT, "num_hidden_layers": 3}, "vit"),
    "I-JEPA": ("IJepaForImageClassification", "IJepaConfig", EIGHT, ""),
    "DeiT": ("DeiTForImageClassification", "DeiTConfig", MLP, "deit"),
    "DINOv2": ("Dinov2ForImageClassification", "Dinov2Config", DINO, "dinov2_plain"),
    "DINOv2, SwiGLU": ("Dinov2ForImageClassification", "Dinov2Config", {**DINO, "use_swiglu_ffn": True}, ""),
    "DINOv2 with registers": (
        "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", DINO, "dinov2"
    ),
    "BEiT": ("BeitForImageClassification", "BeitConfig", {**MLP, "use_relative_position_bias": True}, "beit"),
    "BEiT, shared biases": (
        "BeitForImageClassification", "BeitConfig",
        {**MLP, "use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True}, "",
    ),
    "BEiT, class token": (
        "BeitForImageClassification", "BeitConfig",
        {**MLP, "use_relative_position_bias": True, "use_mean_pooling": False}, "",
    ),
    "Data2Vec": (
        "Data2VecVisionForImageClassification", "Data2VecVisionConfig", {**MLP, "use_relative_position_bias": True},
        "beit",
    ),
    "Swin": ("SwinForImageClassification", "SwinConfig", SWIN, "swin"),
    "CLIP": ("CLIPForImageClassification", "CLIPConfig", {**EIGHT, "num_hidden_layers": 3}, "clip"),
    "SigLIP": ("SiglipForImageClassification", "SiglipConfig", EIGHT, "siglip"),
}  # fmt: skip


def model_of(kind: str) -> Any:
    """A random model whose weights are large enough to matter."""
    torch.manual_seed(0)
    name, config, sizes, _ = CLASSES[kind]
    told: dict[str, Any] = {"id2label": dict(enumerate(LABELS)), "label2id": {name: n for n, name in enumerate(LABELS)}}
    if "CLIP" in config or "Siglip" in config:
        vision = getattr(transformers, config.replace("Config", "VisionConfig"))(**sizes)
        made = getattr(transformers, config)(vision_config=vision.to_dict(), **told)
    else:
        made = getattr(transformers, config)(**sizes, **told)
    model = getattr(transformers, name)(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def pictures(backbone: Backbone) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (3, 3, *backbone.layout.input_size), dtype=torch.uint8, generator=generator)


def logits_of(model: Any, backbone: Backbone, images: Tensor) -> Tensor:
    mean, std = (torch.tensor([values]).expand(len(images), 3) for values in (backbone.input.mean, backbone.input.std))
    found: Tensor = model(pixel_values=normalise(images, mean, std)).logits
    return found


def imported(command: str, source: Path, file: Path, *options: str) -> None:
    done = CliRunner().invoke(app, ["import", command, str(source), "--out", str(file), *options])
    assert done.exit_code == 0, done.output


def adapter_at(file: Path, backbone: Backbone) -> Adapter:
    return read_adapter(file, backbone.layout, FileLimits())


@pytest.mark.parametrize("kind", CLASSES)
@torch.inference_mode()
def test_a_folder_answers_as_the_library(kind: str, tmp_path: Path) -> None:
    """By its folder, and where timm has the small architecture under a name, by its weights alone."""
    with torch.inference_mode(False):
        model = model_of(kind)
        model.save_pretrained(tmp_path / "theirs")
    imported("transformers", tmp_path / "theirs", tmp_path / "head.safetensors")
    backbone = load_backbone(str(tmp_path / "theirs"), "", "cpu", "float32")
    adapter = adapter_at(tmp_path / "head.safetensors", backbone)
    assert adapter.config.labels == LABELS
    images = pictures(backbone)
    expected = logits_of(model, backbone, images)
    assert expected.std() > 0.05
    found = served(backbone, adapter, images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if CLASSES[kind][3]:
        small_backbone(tmp_path / "timm", CLASSES[kind][3])
        for name, state in (("saved", "model.safetensors"), ("in memory", "state.pth")):
            torch.save(model.state_dict(), tmp_path / "theirs" / "state.pth")
            by_weights = load_backbone(str(tmp_path / "timm"), str(tmp_path / "theirs" / state), "cpu", "float32")
            assert by_weights.layout.fingerprint == backbone.layout.fingerprint, name
            torch.testing.assert_close(served(by_weights, adapter, images), expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_folder_of_videomae_answers_as_the_library(tmp_path: Path) -> None:
    with torch.inference_mode(False):
        torch.manual_seed(0)
        told = {"id2label": dict(enumerate(LABELS)), "label2id": {name: n for n, name in enumerate(LABELS)}}
        config = transformers.VideoMAEConfig(**MLP, num_frames=4, **told)
        model = transformers.VideoMAEForVideoClassification(config).eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(tmp_path)
    imported("transformers", tmp_path, tmp_path / "head.safetensors")
    backbone = load_backbone(str(tmp_path), "", "cpu", "float32")
    adapter = adapter_at(tmp_path / "head.safetensors", backbone)
    assert adapter.config.video == VideoConfig(frames=4, sampling="dense", stride=4)
    clips = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    expected = logits_of(model, backbone, clips)
    assert expected.std() > 0.05
    found = torch.from_numpy(np.stack(Predictor(backbone, adapter).logits(clips.numpy())))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["CLIP", "SigLIP"])
@torch.inference_mode()
def test_a_model_of_pictures_and_text_is_its_half(kind: str, tmp_path: Path) -> None:
    name = CLASSES[kind][0].removesuffix("ForImageClassification")
    text = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 48,
            "vocab_size": 60}  # fmt: skip
    with torch.inference_mode(False):
        config = getattr(transformers, f"{name}Config")(vision_config=EIGHT, text_config=text)
        model = getattr(transformers, f"{name}Model")(config).eval()
        model.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), "", "cpu", "float32")
    images = torch.randn(2, 3, 32, 32)
    features = backbone.features(images)
    tokens = features.raw if kind == "CLIP" else features.normed
    expected = model.vision_model(images)
    torch.testing.assert_close(tokens, expected.last_hidden_state, rtol=0, atol=1e-5)
    if kind == "SigLIP":  # its own pooling is timm's
        pooled = backbone.pool(features, "backbone", "frozen")
        torch.testing.assert_close(pooled, expected.pooler_output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["DINOv2", "DINOv2 with registers", "ViT"])
@torch.inference_mode()
def test_pictures_of_another_size_than_the_models_own(kind: str, tmp_path: Path) -> None:
    with torch.inference_mode(False):
        model = model_of(kind)
        model.save_pretrained(tmp_path)
    side = 56 if "DINO" in kind else 48
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": side, "width": side}}))
    backbone = load_backbone(str(tmp_path), "", "cpu", "float32")
    assert backbone.layout.input_size == (side, side)
    images = torch.randn(2, 3, side, side)
    given = {} if "DINO" in kind else {"interpolate_pos_encoding": True}
    base = getattr(model, model.base_model_prefix)
    expected = base(images, **given).last_hidden_state
    torch.testing.assert_close(backbone.features(images).normed, expected, rtol=0, atol=1e-5)


PROCESSORS = {
    "ViT": ("ViTImageProcessor", 32),
    "DINOv2": ("BitImageProcessor", 28),
    "SigLIP": ("SiglipImageProcessor", 32),
    "CLIP": ("CLIPImageProcessor", 32),
    "DeiT": ("DeiTImageProcessor", 32),
    "BEiT": ("BeitImageProcessor", 32),
    "Swin": ("ViTImageProcessor", 32),
}


def processor_of(kind: str) -> Any:
    """One that resizes with Pillow, in both major versions."""
    name, side = PROCESSORS[kind]
    made = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    if kind in ("DINOv2", "CLIP"):
        return made(size={"shortest_edge": 32}, crop_size={"height": side, "width": side})
    if kind in ("DeiT", "BEiT"):
        cut = {"height": side, "width": side}
        return made(size={"height": 36, "width": 36}, crop_size=cut, do_center_crop=True)
    return made(size={"height": side, "width": side})


@pytest.fixture(scope="module", params=PROCESSORS)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, House]]:
    """A PEFT model, its image processor, and a server of its base with the imported adapter and the base's own head."""
    peft = pytest.importorskip("peft", reason="peft is not installed; `make libraries` installs it")
    kind, folder = request.param, tmp_path_factory.mktemp("tuned")
    model, processor = model_of(kind), processor_of(kind)
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    # All linear layers, but of Swin those of its blocks: what merges patches between stages is no part of any.
    names = "(?!.*downsample).*(query|key|value|dense|_proj|fc1|fc2)" if kind == "Swin" else "all-linear"
    told = peft.LoraConfig(r=4, lora_alpha=12, target_modules=names, modules_to_save=["classifier"])
    tuned = peft.get_peft_model(model, told).eval()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(folder / "lora")
    imported("transformers", folder / "base", folder / "plain.safetensors")
    imported("peft", folder / "lora", folder / "lora.safetensors", "--base", str(folder / "base"))
    settings = Settings(
        backbone=str(folder / "base"), device="cpu", dtype="float32", threads=1, port=0, data_dir=folder / "data"
    )
    with house(settings) as home:
        for task in ("plain", "lora"):
            made = home.put(task, (folder / f"{task}.safetensors").read_bytes())
            assert made.status_code == 201, made.text
        yield tuned, processor, home


@torch.inference_mode()
def test_adapters_of_peft_on_the_same_weights_over_http(tuned: tuple[Any, Any, House]) -> None:
    model, processor, home = tuned
    for seed in range(3):
        picture = photograph(seed, "PNG", (90, 70))
        seen = processor(Image.open(io.BytesIO(picture)).convert("RGB"), return_tensors="pt")
        right = model(**seen).logits.softmax(1)[0].numpy()
        with model.disable_adapter():
            bare = model(**seen).logits.softmax(1)[0].numpy()
        assert np.abs(right - bare).max() > 0.01
        for task, expected in (("lora", right), ("plain", bare)):
            answer = home.ask(task, picture).json()
            assert [p["label"] for p in sorted(answer["predictions"], key=lambda p: p["index"])] == list(LABELS)
            np.testing.assert_allclose(scores_of(answer), expected, rtol=0, atol=1e-4)
