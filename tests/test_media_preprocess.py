"""The pixels a backbone sees: timm's eval transform to the last bit; and bodies meeting tasks."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from adapters.backbone.inputs import input_config, normalise
from adapters.config import AdapterConfig, InputConfig
from adapters.errors import BackboneError, BrokenMedia, MediaTooLarge, WrongModality
from adapters.media import MediaLimits, Pixels, Preprocess, decode, rows
from tests.media_samples import clip, encode, levels, scene

LIMITS = MediaLimits()
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(500, 375), (97, 331), (33, 32), (301, 10), (7, 9)]
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
MODES = ("center", "squash", "border")


def config(**changes: Any) -> InputConfig:
    return InputConfig(**{"size": 32, "mean": MEAN, "std": STD, **changes})


def timms(wanted: InputConfig, *, normalize: bool = True) -> Any:
    return create_transform(
        (3, *wanted.size), is_training=False, interpolation=wanted.interpolation, mean=wanted.mean,
        std=wanted.std, crop_pct=wanted.crop_pct, crop_mode=wanted.crop_mode, normalize=normalize,
    )  # fmt: skip


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.merge("RGB", [Image.effect_noise(size, 90) for _ in range(3)])


NOISE = noise((700, 700))


@pytest.mark.parametrize(
    ("interpolation", "crop_pct", "crop_mode", "size"),
    list(product(INTERPOLATIONS, [1.0, 0.875, 0.9, 0.55], MODES, [(32, 32), (24, 40)])),
)
def test_equal_to_timm_to_the_last_bit(
    interpolation: str, crop_pct: float, crop_mode: str, size: tuple[int, int]
) -> None:
    wanted = config(interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode, size=size)
    pre, reference = Preprocess(wanted), timms(wanted)
    pictures = [noise(size) for size in SIZES]
    pixels = rows(pictures, pre)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (len(SIZES), 3, *size))
    mean = torch.tensor([wanted.mean] * len(SIZES))
    std = torch.tensor([wanted.std] * len(SIZES))
    expected = torch.stack([reference(picture) for picture in pictures])
    assert torch.equal(normalise(torch.from_numpy(pixels), mean, std), expected)


SIDES = st.integers(1, 700)
CONFIGS = st.builds(
    config,
    size=st.integers(8, 260) | st.tuples(st.integers(8, 260), st.integers(8, 260)),
    interpolation=st.sampled_from(INTERPOLATIONS),
    crop_mode=st.sampled_from(MODES),
    crop_pct=st.sampled_from([1.0, 0.875, 0.9, 0.95, 0.965, 0.55]) | st.floats(0.2, 1.0),
    mean=st.tuples(*[st.floats(-0.5, 1.5)] * 3),
)


@settings(max_examples=400, deadline=None)
@given(width=SIDES, height=SIDES, wanted=CONFIGS)
@example(width=255, height=2, wanted=config(size=64, crop_mode="border"))  # half a pixel
@example(width=127, height=64, wanted=config(size=33, crop_mode="border"))  # an odd border
@example(width=255, height=512, wanted=config(size=33, crop_pct=0.9))
@example(width=255, height=2, wanted=config(size=(64, 65), crop_mode="border"))
def test_any_size_and_config_as_timm(width: int, height: int, wanted: InputConfig) -> None:
    picture = NOISE.crop((0, 0, width, height))
    try:
        found = Preprocess(wanted)(picture)
    except (BrokenMedia, MediaTooLarge):
        found = None
    if found is None:
        assert max(width, height) >= 16 * min(width, height)
        return
    assert np.array_equal(found, timms(wanted, normalize=False)(picture).numpy())


@settings(max_examples=400, deadline=None)
@given(width=st.integers(1, 2**14), height=st.integers(1, 2**14), wanted=CONFIGS)
def test_what_is_to_be_resized_is_what_timm_and_torchvision_resize(
    width: int, height: int, wanted: InputConfig
) -> None:
    """By their own arithmetic, for sides too long to draw."""
    from timm.data.transforms import ResizeKeepRatio
    from torchvision.transforms.functional import _compute_resized_output_size as torchvisions

    scaled, blank = [int(side / wanted.crop_pct) for side in wanted.size], Image.new("1", (width, height))
    asked = {"center": scaled[:1], "squash": scaled}
    if wanted.crop_mode == "border" or (wanted.crop_mode == "center" and scaled[0] != scaled[1]):
        expected = ResizeKeepRatio.get_params(blank, scaled, float(wanted.crop_mode == "border"))
    else:
        expected = torchvisions((height, width), asked[wanted.crop_mode])
    assert Preprocess(wanted)._wanted(width, height) == tuple(reversed(expected))


def test_a_mean_without_bounds_pads_with_the_nearest_colour() -> None:
    wanted = config(crop_mode="border", mean=(1e308, -1e308, 0.5))
    assert Preprocess(wanted)(noise((64, 16)))[:, 0, 0].tolist() == [255, 0, 128]


def test_pixels_are_written_where_they_are_wanted() -> None:
    """As into shared memory: also where rows do not follow one another."""
    pictures, pre = [noise((50, 40)), noise((40, 50))], Preprocess(config())
    place = np.zeros((8, 3, 32, 32), np.uint8)
    found = rows([*pictures, pictures[0]], pre, place[1:7:2])
    assert np.shares_memory(found, place)
    assert np.array_equal(place[[1, 3, 5]], rows([*pictures, pictures[0]], pre))
    assert not place[::2].any()
    assert not place[7].any()


def test_rows_of_different_tasks_are_normalised_each_their_own_way() -> None:
    every = torch.arange(256, dtype=torch.uint8).repeat(3 * 4).view(1, 3, 32, 32).expand(2, -1, -1, -1)
    mean, std = torch.tensor([MEAN, (0.5, 0.5, 0.5)]), torch.tensor([STD, (0.5, 0.25, 1.0)])
    got = normalise(every, mean, std)
    assert got.dtype == torch.float32
    for row in range(2):
        scaled = every[row].to(torch.float32) / 255
        assert torch.equal(got[row], (scaled - mean[row][:, None, None]) / std[row][:, None, None])
    assert every.dtype == torch.uint8  # the input is left alone


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_divides_as_the_cpu_does() -> None:
    every = torch.arange(256, dtype=torch.uint8).repeat(12).view(1, 3, 32, 32)
    mean, std = torch.tensor([MEAN]), torch.tensor([STD])
    got = normalise(every.cuda(), mean.cuda(), std.cuda()).cpu()
    assert torch.equal(got, normalise(every, mean, std))


def test_a_repeated_picture_is_resized_once() -> None:
    calls: list[Image.Image] = []

    class Counted(Preprocess):
        def __call__(self, picture: Image.Image, out: Pixels | None = None) -> Pixels:
            calls.append(picture)
            return super().__call__(picture, out)

    one, two = noise((40, 40)), noise((40, 40))
    pixels = rows([one, one, two, one], Counted(config()))
    assert len(calls) == 2
    assert np.array_equal(pixels[0], pixels[3])
    assert not np.array_equal(pixels[0], pixels[2])


@pytest.mark.parametrize("size", [(16_384, 1), (1, 16_384)])
def test_strips_are_refused_before_they_are_blown_up(size: tuple[int, int]) -> None:
    strip = Image.new("RGB", size)
    with pytest.raises(MediaTooLarge, match="long and thin"):
        Preprocess(config(size=224))(strip)
    with pytest.raises(BrokenMedia, match="long and thin"):
        Preprocess(config(size=224, crop_mode="border"))(strip)
    assert Preprocess(config(size=224, crop_mode="squash"))(strip).shape == (3, 224, 224)


def test_input_config_of_a_model() -> None:
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=1)
    data = timm.data.resolve_model_data_config(model)
    got = input_config(model)
    assert (got.size, got.mean, got.std) == ((224, 224), tuple(data["mean"]), tuple(data["std"]))
    assert (got.interpolation, got.crop_pct, got.crop_mode) == (
        data["interpolation"], data["crop_pct"], data["crop_mode"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"input_size": (1, 28, 28)}, "1 channels"), ({"interpolation": "random"}, "interpolation")],
)
def test_input_config_that_cannot_be_expressed(changes: dict[str, Any], word: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=1)
    model.pretrained_cfg = {**model.pretrained_cfg, **changes}
    with pytest.raises(BackboneError, match=word):
        input_config(model)


def task(modality: str) -> AdapterConfig:
    video = {"frames": 4} if modality == "video" else None
    base = {"model": "vit_tiny_patch16_224", "fingerprint": "0" * 64}
    return AdapterConfig.model_validate(
        {"task": "t", "modality": modality, "labels": ["a"], "base": base, "input": config(), "video": video}
    )


def test_decode_by_task() -> None:
    assert [p.size for p in decode(encode(scene(), "PNG"), task("image"), LIMITS)] == [(48, 32)]
    assert levels(decode(clip(count=8), task("video"), LIMITS)) == [1, 3, 5, 7]


@pytest.mark.parametrize(("modality", "other"), [("image", "clip"), ("video", "picture")])
def test_wrong_modality(modality: str, other: str) -> None:
    data = clip(count=2) if modality == "image" else encode(scene(), "PNG")
    with pytest.raises(WrongModality, match=f"a {other} came") as caught:
        decode(data, task(modality), LIMITS)
    assert caught.value.facts["expected"] == modality


@pytest.mark.parametrize("size", [(90, 40), (40, 90), (64, 64), (33, 32)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
def test_three_crops_lie_along_the_longer_side(size: tuple[int, int], crop_pct: float) -> None:
    """The one in the middle is the usual one; each picture is resized once, also where it repeats."""
    pre, picture = Preprocess(config(crop_pct=crop_pct)), noise(size)
    pixels = rows([picture, NOISE, picture], pre, crops=3)
    assert pixels.shape == (9, 3, 32, 32)
    first, middle, last = (pixels[3 * crop] for crop in range(3))
    assert np.array_equal(middle, pre(picture))
    resized = np.asarray(pre._resized(picture)).transpose(2, 0, 1)
    height, width = resized.shape[1:]
    left, top = round((width - 32) / 2), round((height - 32) / 2)
    if width > height:
        assert np.array_equal(first, resized[:, top : top + 32, :32])
        assert np.array_equal(last, resized[:, top : top + 32, width - 32 :])
    else:
        assert np.array_equal(first, resized[:, :32, left : left + 32])
        assert np.array_equal(last, resized[:, height - 32 :, left : left + 32])
    assert np.array_equal(pixels[[0, 3, 6]], pixels[[2, 5, 8]])
