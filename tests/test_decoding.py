"""Decoder: a body is decoded once for each sampling and resized once for each geometry, all within one deadline."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adapters.config import AdapterConfig
from adapters.errors import MediaTooLarge, WrongModality
from adapters.media import MediaLimits, Pixels, Preprocess, decode, rows
from adapters.training.data import Example
from adapters.training.decoding import Reader
from service.engine.pixels import PixelMemory
from service.pool import Pool
from service.web import decoding
from service.web.decoding import Decoder
from tests.media_samples import clip, encode, scene

LIMITS = MediaLimits()
PICTURE = encode(scene(90, 70), "PNG")
MEMORY = PixelMemory.private(64, (32, 32))


def task(frames: int = 0, **changes: Any) -> AdapterConfig:
    preprocessing = {"size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), **changes}
    return AdapterConfig.model_validate(
        {
            "task": "t", "modality": "video" if frames else "image", "labels": ["a"], "input": preprocessing,
            "base": {"model": "m", "fingerprint": "0" * 64}, "video": {"frames": frames} if frames else None,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool("decode", workers=1, max_waiting=9, setting="max_jobs")
    yield pool
    pool.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a body was decoded, and a picture resized."""
    counted: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            counted[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr(decoding, "decode", counting("decoded", decoding.decode))
    monkeypatch.setattr(Preprocess, "__call__", counting("resized", Preprocess.__call__))
    return counted


def alone(body: bytes, config: AdapterConfig) -> Pixels:
    return rows(decode(body, config, LIMITS), Preprocess(config.input))


def test_tasks_that_differ_in_mean_and_deviation_share_all_work(pool: Pool, calls: Counter[str]) -> None:
    configs = [task(mean=(i / 100, 0.5, 0.5), std=(0.5, 0.1 + i / 100, 0.5)) for i in range(32)]
    decoded = Decoder(pool, LIMITS, MEMORY).submit(PICTURE, configs, 9).result()
    assert calls == {"decoded": 1, "resized": 1}
    assert len({id(seen.pixels) for seen in decoded.seen}) == 1
    calls.clear()
    assert all(np.array_equal(decoded.seen[i].pixels.array, alone(PICTURE, configs[i])) for i in (0, 31))


def test_crops_share_the_decoding(pool: Pool, calls: Counter[str]) -> None:
    configs = [task(crop_pct=crop, crop_mode=mode) for crop in (0.875, 1.0) for mode in ("center", "squash")] * 2
    decoded = Decoder(pool, LIMITS, MEMORY).submit(PICTURE, configs, 9).result()
    assert calls == {"decoded": 1, "resized": 4}
    assert [seen.digest for seen in decoded.seen[:4]] == [seen.digest for seen in decoded.seen[4:]]
    assert len({seen.digest for seen in decoded.seen}) == 4


def test_the_padding_has_each_tasks_mean(pool: Pool, calls: Counter[str]) -> None:
    configs = [task(mean=(mean, 0.5, 0.5), crop_mode="border") for mean in (0.0, 1.0)]
    black, red = (seen.pixels.array for seen in Decoder(pool, LIMITS, MEMORY).submit(PICTURE, configs, 9).result().seen)
    assert calls == {"decoded": 1, "resized": 2}
    assert (black[0, 0, 0, 0], red[0, 0, 0, 0]) == (0, 255)


def test_each_sampling_of_a_clip_is_decoded_once(pool: Pool, calls: Counter[str]) -> None:
    body = clip(count=8)
    configs = [task(frames, mean=(mean, 0.5, 0.5)) for mean in (0.1, 0.2, 0.3) for frames in (2, 4)]
    decoded = Decoder(pool, LIMITS, MEMORY).submit(body, configs, 9).result()
    assert calls == {"decoded": 2, "resized": 6}
    assert [len(seen.pixels) for seen in decoded.seen] == [2, 4] * 3


def test_views_are_rows_of_one_input_and_share_the_decoding_with_their_like(
    pool: Pool, calls: Counter[str], tmp_path: Path
) -> None:
    """And they are what training reads of the file."""
    body = clip(count=20)
    dense = {"frames": 4, "sampling": "dense", "stride": 3, "views": 2}
    asked = (dense, dense | {"crops": 3}, dense | {"stride": 2}, dense, {"frames": 8}, dense | {"views": 1})
    configs = [AdapterConfig.model_validate(task(4).model_dump() | {"video": video}) for video in asked]
    seen = Decoder(pool, LIMITS, PixelMemory.private(80, (32, 32))).submit(body, configs, 9).result().seen
    assert calls["decoded"] == 4  # one for both that differ in crops alone
    assert [len(one.pixels) for one in seen] == [8, 24, 8, 8, 8, 4]
    assert seen[0] is seen[3]
    assert len({one.digest for one in seen}) == 5
    (tmp_path / "a.mp4").write_bytes(body)
    for one, config in zip(seen, configs, strict=True):
        read = Reader(config, LIMITS)(Example(tmp_path / "a.mp4", "a.mp4", "a", "a"))
        assert np.array_equal(one.pixels.array, read.numpy())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.builds(
            task,
            mean=st.sampled_from([(0.0, 0.0, 0.0), (0.3, 0.6, 0.9)]),
            crop_pct=st.sampled_from([0.875, 1.0]),
            crop_mode=st.sampled_from(["center", "squash", "border"]),
            interpolation=st.sampled_from(["bilinear", "bicubic"]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_pixels_are_those_of_decoding_alone(pool: Pool, configs: list[AdapterConfig]) -> None:
    decoded = Decoder(pool, LIMITS, MEMORY).submit(PICTURE, configs, 9).result()
    for seen, config in zip(decoded.seen, configs, strict=True):
        assert np.array_equal(seen.pixels.array, alone(PICTURE, config))
    for one, other in itertools.pairwise(decoded.seen):
        assert (one.digest == other.digest) == np.array_equal(one.pixels.array, other.pixels.array)


def test_the_time_is_that_of_all_tasks_together(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each resizing takes a second by a clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    resize = Preprocess.__call__

    def slow(self: Preprocess, picture: Image.Image, out: Pixels | None = None) -> Pixels:
        now[0] += 1
        return resize(self, picture, out)

    monkeypatch.setattr(Preprocess, "__call__", slow)
    decoder = Decoder(pool, MediaLimits(decode_timeout_s=2.5), MEMORY)
    assert len(decoder._decode(PICTURE, [task(crop_pct=crop) for crop in (0.5, 0.6, 0.7)]).seen) == 3
    with pytest.raises(MediaTooLarge) as caught:
        decoder._decode(PICTURE, [task(crop_pct=crop) for crop in (0.5, 0.6, 0.7, 0.8)])
    assert caught.value.facts["field"] == "decode_timeout_s"
    with pytest.raises(MediaTooLarge):
        decoder._decode(clip(count=4), [task(frames) for frames in (1, 2, 3)])


def test_a_task_of_another_kind_among_them(pool: Pool) -> None:
    with pytest.raises(WrongModality, match="takes clips"):
        Decoder(pool, LIMITS, MEMORY).submit(PICTURE, [task(), task(2)], 9).result()


def test_training_sees_what_the_server_sees_through_a_transparent_picture(pool: Pool, tmp_path: Path) -> None:
    clear = scene(90, 70).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    (tmp_path / "clear.png").write_bytes(encode(clear, "PNG"))
    example, found = Example(tmp_path / "clear.png", "clear.png", "a", "a"), []
    for limits in (LIMITS, MediaLimits(transparent_background="#2080f0")):
        (seen,) = Decoder(pool, limits, MEMORY).submit(example.path.read_bytes(), [task()], 9).result().seen
        assert np.array_equal(seen.pixels.array, Reader(task(), limits)(example).numpy())
        found.append(seen.pixels.array.copy())
    assert not np.array_equal(*found)


def test_transforms_are_kept_by_geometry(pool: Pool) -> None:
    decoder = Decoder(pool, LIMITS, MEMORY)
    decoder.submit(PICTURE, [task(mean=(i / 999, 0.5, 0.5)) for i in range(300)], 9).result()
    assert len(decoder._preprocesses) == 1
