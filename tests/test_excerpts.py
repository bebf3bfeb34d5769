"""Parts and windows of clips: which frames stand for them, and that each is answered as a clip of its own."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from adapters import Adapter, Predictor
from adapters.config import VideoConfig
from adapters.errors import MediaTooLarge, OutsideClip, UnsupportedMedia
from adapters.file import write_adapter
from adapters.media import Excerpt, MediaLimits, Preprocess, Sampling, decode_clip, rows
from adapters.media.timeline import LEAST_S, Timeline
from service.errors import KINDS
from tests.houses import CLIP, IMAGE, House, Kit, house, photograph, problem, scores_of
from tests.media_samples import STEP, clip
from tests.models import random_adapter

LIMITS = MediaLimits()
SECOND = 25
"""Frames of one, in the clips here."""
CONTAINERS = [
    ("mp4", "libx264"),
    ("matroska", "libvpx"),
    ("avi", "mpeg4"),
    ("mpegts", "libx264"),
    ("mpeg", "mpeg2video"),
]


def numbers(pictures: list[Image.Image]) -> list[int]:
    """Which frames of the sample clip they are."""
    return [round((int(np.asarray(picture)[..., 1].mean()) - 16) / STEP) for picture in pictures]


def found(data: bytes, frames: int, **part: float) -> tuple[list[int], list[tuple[float, float]]]:
    pictures = decode_clip(data, Sampling(frames, excerpt=Excerpt(**part)), LIMITS)
    return numbers(pictures), list(pictures.spans)


@pytest.mark.parametrize(("container", "codec"), CONTAINERS)
def test_a_part_is_cut_out_by_time(container: str, codec: str) -> None:
    data = clip(container, codec, count=25)
    whole = numbers(decode_clip(data, 5, LIMITS))
    assert whole == [2, 7, 12, 17, 22]
    part, spans = found(data, 5, start=0.4, end=0.8)
    assert spans == [(0.4, 0.8)]
    assert part == [11, 13, 15, 17, 19]  # from frame 10, at 0.4 s, up to 20
    assert found(data, 5, start=0.8)[0] == [20, 21, 22, 23, 24]
    windows, spans = found(data, 2, window=0.4, stride=0.2)
    assert spans == [(0.0, 0.4), (0.2, 0.6), (0.4, 0.8), (0.6, 1.0)]
    assert windows == [2, 7, 7, 12, 12, 17, 17, 22]


def test_an_animation_has_windows_too() -> None:
    frames = [Image.new("RGB", (32, 32), (16 + STEP * i,) * 3) for i in range(10)]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:], duration=100)
    assert found(file.getvalue(), 2, window=0.4) == ([1, 3, 5, 7], [(0.0, 0.4), (0.4, 0.8)])


@pytest.mark.parametrize(("container", "codec"), CONTAINERS)
def test_frames_tell_when_they_are_shown(container: str, codec: str) -> None:
    pictures = decode_clip(clip(container, codec, count=25), 5, LIMITS)
    assert pictures.times == pytest.approx([number / SECOND for number in numbers(pictures)], abs=0.002)


seconds = st.floats(0.001, 3, allow_nan=False)


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=40), st.floats(0, 2), seconds, seconds,
    st.integers(1, 6), st.sampled_from(["uniform", "dense"]), st.integers(1, 3),
)  # fmt: skip
def test_windows_are_clips_of_their_own(
    gaps: list[int], start: float, window: float, stride: float, frames: int, kind: Any, views: int
) -> None:
    """Every window: within the part, its frames on screen within it, ascending in each view."""
    times = [100 + sum(gaps[:n]) for n in range(len(gaps))]
    timeline = Timeline.of(times, gaps[-1], Fraction(100))
    wanted = Sampling(frames, kind, 1, views, Excerpt(start, None, window, stride))
    duration = (timeline.end - times[0]) / 100
    try:
        spans = timeline.spans(wanted, 500)
    except MediaTooLarge:
        return
    except OutsideClip:
        assert start > duration - LEAST_S or window > duration - start
        return
    assert spans[0][0] == pytest.approx(start, abs=1e-6)
    assert spans[-1][0] + window <= duration + 2 * LEAST_S < spans[-1][0] + stride + window + 3 * LEAST_S
    chosen = timeline.chosen(wanted, spans)
    assert len(chosen) == frames * views * len(spans)
    for number, (begin, end) in enumerate(spans):
        own = chosen[number * frames * views : (number + 1) * frames * views]
        assert all(one == sorted(one) for one in (own[v * frames : (v + 1) * frames] for v in range(views)))
        for index in own:
            shown = (times[index] - times[0]) / 100
            gone = ([*times, timeline.end][index + 1] - times[0]) / 100
            assert shown <= end + 0.011
            assert gone >= min(begin, duration) - 0.011


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"start": -1.0}, "start is -1"), ({"start": float("nan")}, "start is nan"),
        ({"end": float("inf")}, "end is inf"),
        ({"window": 0.0}, "window is 0"), ({"window": 1.0, "stride": 0.0}, "stride is 0"),
        ({"start": 2.0, "end": 1.0}, "end is 1"), ({"stride": 1.0}, "stride is for windows"),
    ],
)  # fmt: skip
def test_what_is_no_part_is_refused(part: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Excerpt(**part)


def test_what_the_clip_does_not_have_is_refused() -> None:
    data = clip(count=25)
    for part, field in (({"start": 1.0}, "start"), ({"end": 1.2}, "end"), ({"start": 0.5, "window": 0.6}, "window")):
        with pytest.raises(OutsideClip) as refused:
            found(data, 2, **part)
        assert refused.value.facts["field"] == field
    assert found(data, 2, end=1.0005)[1] == [(0.0, 1.0)]  # as close as times are told
    with pytest.raises(MediaTooLarge, match="999 windows.*ADAPTSERVE_MAX_WINDOWS"):
        found(data, 2, window=0.002, stride=0.001)
    with pytest.raises(UnsupportedMedia, match="does not say when"):
        Timeline.even(3).spans(Sampling(2, excerpt=Excerpt(1)), 5)
    assert KINDS["OutsideClip"] is OutsideClip


@pytest.fixture(scope="module")
def views(kit: Kit) -> Adapter:
    adapter = random_adapter(kit.backbone, CLIP, 7, size=0.5)
    video = VideoConfig(frames=4, sampling="dense", stride=2, views=2, crops=3)
    return Adapter(adapter.config.model_copy(update={"video": video}), adapter.tensors, "")


@pytest.fixture(scope="module")
def home(kit: Kit, views: Adapter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("data")
    write_adapter(folder / "views.safetensors", views.config, views.tensors)
    with house(kit.settings(data_dir=folder / "store", max_queue_rows=150)) as made:
        made.put("clips", kit.file(1, CLIP)[0]).raise_for_status()
        made.put("pictures", kit.file(2, IMAGE)[0]).raise_for_status()
        made.put("views", (folder / "views.safetensors").read_bytes()).raise_for_status()
        yield made


def alone(kit: Kit, adapter: Adapter, data: bytes, **part: float) -> np.ndarray[Any, Any]:
    """The scores of a part, from the library, of frames that were cut out by hand."""
    assert adapter.config.video is not None
    pictures = decode_clip(data, Sampling.of(adapter.config.video, Excerpt(**part)), LIMITS)
    pixels = rows(pictures, Preprocess(adapter.config.input), crops=adapter.config.crops)
    predictor = Predictor(kit.backbone, adapter)
    logits = predictor.logits([pixels])[0].astype(np.float64).reshape(-1, len(adapter.config.labels))
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return (shares / shares.sum(1, keepdims=True)).mean(0)


@pytest.mark.parametrize("task", ["clips", "views"])
def test_windows_over_http_are_answered_as_alone(kit: Kit, home: House, views: Adapter, task: str) -> None:
    data, adapter = clip(count=25), views if task == "views" else kit.file(1, CLIP)[1]
    params = {"start": 0.2, "end": 1.0, "window": 0.4, "stride": 0.2, "embedding": True, "abstain": 0.0}
    answer = home.ask(task, data, **params).raise_for_status().json()
    spans = [(0.2, 0.6), (0.4, 0.8), (0.6, 1.0)]
    assert [(one["start"], one["end"]) for one in answer["windows"]] == spans
    scores = [scores_of(one) for one in answer["windows"]]
    for (start, end), found_there in zip(spans, scores, strict=True):
        np.testing.assert_allclose(found_there, alone(kit, adapter, data, start=start, end=end), rtol=1e-3, atol=1e-5)
        part = home.ask(task, data, start=start, end=end).json()
        assert "windows" not in part
        np.testing.assert_allclose(scores_of(part), found_there, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scores_of(answer), np.mean(scores, axis=0), rtol=1e-3, atol=1e-6)
    assert np.ptp(np.stack(scores), axis=0).max() > 1e-3  # or any window would do
    assert {len(one["embedding"]) for one in answer["windows"]} == {kit.backbone.layout.width}
    assert all(one["accepted"] is True for one in answer["windows"])
    both = home.client.post(
        "/v1/predict", content=data, params={"task": ["clips", "views"], "window": 0.4, "top_k": 100}
    ).raise_for_status().json()["results"]  # fmt: skip
    assert [len(one["windows"]) for one in both] == [2, 2]


@pytest.mark.parametrize("task", ["clips", "views"])
def test_an_answer_tells_which_frames_it_is_of(kit: Kit, home: House, views: Adapter, task: str) -> None:
    adapter = views if task == "views" else kit.file(1, CLIP)[1]
    assert adapter.config.video is not None
    data = clip(count=25)
    shown = decode_clip(data, Sampling.of(adapter.config.video), LIMITS).times
    answer = home.ask(task, data, sampled=True).raise_for_status().json()
    assert answer["sampled"] == pytest.approx(sorted(set(shown)))
    late = home.ask(task, data, sampled=True, start=0.5, window=0.25).raise_for_status().json()
    assert all(0.5 - 1 / SECOND <= time < 1 for time in late["sampled"])
    assert "sampled" not in home.ask(task, data).json()
    assert "sampled" not in home.ask("pictures", photograph(), sampled=True).raise_for_status().json()


@pytest.mark.parametrize(
    ("params", "status", "field"),
    [
        ({"start": -0.1}, 400, "start"), ({"start": "nan"}, 400, "start"), ({"end": "inf"}, 400, "end"),
        ({"window": 0}, 400, "window"), ({"window": "1e-400"}, 400, "window"), ({"stride": 1}, 400, "stride"),
        ({"start": 1, "end": 0.5}, 400, "end"), ({"window": 1, "stride": -1}, 400, "stride"),
        ({"start": "x"}, 400, "start"),
        ({"start": 5}, 422, "start"), ({"end": 5}, 422, "end"), ({"window": 5}, 422, "window"),
        ({"start": 1e308}, 422, "start"),
        ({"window": 0.1, "stride": 0.001}, 413, "max_windows"), ({"window": 0.04, "stride": 0.035}, 200, None),
    ],
)  # fmt: skip
def test_what_is_no_part_of_the_clip_is_a_problem(home: House, params: dict[str, Any], status: int, field: Any) -> None:
    response = home.ask("clips", clip(count=25), **params)
    if status == 200:
        assert len(response.raise_for_status().json()["windows"]) == 28
    else:
        assert problem(response, status)["field"] == field


def test_windows_are_for_clips_and_within_the_queue(home: House) -> None:
    for params in ({"start": 0}, {"window": 1}):
        assert problem(home.ask("pictures", photograph(), **params), 422)["field"] == "start"
    problem(home.ask("clips", photograph(), window=1), 422)
    many = home.ask("views", clip(count=25), window=0.1)
    assert problem(many, 413)["field"] == "max_queue_rows"
    assert home.ask("views", clip(count=25), window=0.2).is_success
