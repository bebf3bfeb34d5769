"""Clips that are sampled densely or looked at several times: the mean of what each view says alone, wherever asked."""

from __future__ import annotations

import gc
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adapters import Adapter, MediaLimits, Predictor
from adapters.config import AdapterConfig, VideoConfig
from adapters.errors import AdapterTooLarge, BrokenAdapter
from adapters.file import read_adapter, write_adapter, write_tensors
from adapters.header import METADATA_KEY, read_header
from adapters.limits import FileLimits
from adapters.media import decode_clip
from service.errors import QueueFull
from tests.houses import CLIP, IMAGE, House, Kit, house, photograph, problem, scores_of, until
from tests.media_samples import animation, clip
from tests.models import random_adapter

ROOT = Path(__file__).parent.parent
COUNT = 14
VIEWS: dict[str, dict[str, Any]] = {
    "dense": {"sampling": "dense", "stride": 2},
    "uniform views": {"views": 3},
    "dense views": {"sampling": "dense", "stride": 3, "views": 4},
    "crops": {"sampling": "dense", "stride": 2, "views": 2, "crops": 3},
    "too long for the clip": {"sampling": "dense", "stride": 9, "views": 2},
}


def made(kit: Kit, name: str, score: str = "softmax", seed: int = 2) -> Adapter:
    adapter = random_adapter(kit.backbone, CLIP, seed, size=0.5, task=name.replace(" ", "-"))
    config = adapter.config.model_dump() | {"video": {"frames": 4, **VIEWS[name]}, "score": score}
    return Adapter(AdapterConfig.model_validate(config), adapter.tensors, adapter.digest)


def bytes_of(adapter: Adapter, folder: Path) -> bytes:
    write_adapter(folder / "a.safetensors", adapter.config, adapter.tensors)
    return (folder / "a.safetensors").read_bytes()


def moving(count: int = COUNT) -> bytes:
    """A clip of frames that differ from left to right too."""
    colours = np.random.default_rng(1).integers(0, 256, (count, 4, 9, 3), dtype=np.uint8)
    frames = [Image.fromarray(one).resize((90, 40), Image.Resampling.NEAREST) for one in colours]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=40, lossless=True)
    return file.getvalue()


def plain(kit: Kit, adapter: Adapter, body: bytes) -> NDArray[np.float64]:
    """One view after the other, each cut out by hand and asked of a task that knows no views; then the mean."""
    video = adapter.config.video
    assert video is not None
    count = len(set(map(bytes, (p.tobytes() for p in decode_clip(body, 32, MediaLimits())))))
    frames = decode_clip(body, count, MediaLimits())  # every one, once
    if video.sampling == "dense":
        span = (video.frames - 1) * video.stride
        last_start = max(count - 1 - span, 0)
        starts = [last_start // 2] if video.views == 1 else [
            int(view * last_start / (video.views - 1)) for view in range(video.views)
        ]  # fmt: skip
        chosen = [[min(start + k * video.stride, count - 1) for k in range(video.frames)] for start in starts]
    else:
        many = video.frames * video.views
        every = [int((k + 0.5) / many * count) for k in range(many)]
        chosen = [every[view :: video.views] for view in range(video.views)]
    one = Adapter(adapter.config.seen_once(), adapter.tensors, adapter.digest)
    predictor, size, scores = Predictor(kit.backbone, one), adapter.config.input.size[0], []
    scaled = int(size / adapter.config.input.crop_pct)
    for view in chosen:
        for crop in range(video.crops):
            pixels = []
            for index in view:
                picture = frames[index]
                width, height = int(scaled * picture.width / picture.height), scaled
                picture = picture.resize((width, height), Image.Resampling.BICUBIC)
                middle, top = round((width - size) / 2), round((height - size) / 2)
                left = middle if video.crops == 1 else (0, middle, width - size)[crop]
                pixels.append(np.asarray(picture)[top : top + size, left : left + size].transpose(2, 0, 1))
            (logits,) = predictor.logits([np.stack(pixels)])
            values = logits.astype(np.float64)
            score = adapter.config.score
            scores.append(np.exp(values) / np.exp(values).sum() if score == "softmax" else 1 / (1 + np.exp(-values)))
    return np.mean(scores, axis=0)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", VIEWS)
def test_the_answer_is_the_mean_of_the_views(kit: Kit, name: str, score: str) -> None:
    adapter, body = made(kit, name, score), moving()
    expected = plain(kit, adapter, body)
    for rows in (4, 10, 64):  # views lie in several batches, or all in one
        found = Predictor(kit.backbone, adapter, batch_rows=rows)(body)
        np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-6)
    views = adapter.config.views
    assert found.logits.shape == ((views, 4) if views > 1 else (4,))
    assert found.best.score == found.scores.max()
    assert expected.std() > 0.01


def test_many_tasks_see_one_clip_in_their_own_ways(kit: Kit) -> None:
    """In one call, one list of calls, and from the pixels alone."""
    adapters = [made(kit, name, seed=seed) for seed, name in enumerate(VIEWS)]
    predictor, body = Predictor(kit.backbone, *adapters, batch_rows=7), moving()
    predictor.add(random_adapter(kit.backbone, IMAGE, 5), "pictures")
    alone = {one.config.task: Predictor(kit.backbone, one)(body).scores for one in adapters}
    found = predictor.each_task(body, list(alone))
    picture = predictor(photograph(), "pictures").scores
    mixed = predictor.many([body, photograph(), body], ["crops", "pictures", "dense-views"])
    for task, scores in alone.items():
        np.testing.assert_allclose(found[task].scores, scores, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(mixed[0].scores, alone["crops"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(mixed[1].scores, picture, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(mixed[2].scores, alone["dense-views"], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("data")
    with house(kit.settings(data_dir=folder / "1", max_batch_rows=8, max_queue_rows=64, decode_workers=1)) as opened:
        for name in VIEWS:
            adapter = made(kit, name)
            opened.put(adapter.config.task, bytes_of(adapter, folder)).raise_for_status()
        opened.put("pictures", kit.file(1)[0]).raise_for_status()
        yield opened


@pytest.mark.parametrize("kind", ["webp", "h264", "vp9", "mpeg4", "gif", "one frame", "uneven"])
def test_the_server_answers_as_the_library(home: House, kit: Kit, kind: str) -> None:
    """Clips of every kind, in batches of 8 rows: one request for each task, and one for all of them."""
    body = {
        "webp": moving, "h264": lambda: clip(count=20), "vp9": lambda: clip("webm", "libvpx-vp9", count=20),
        "mpeg4": lambda: clip("avi", "mpeg4", count=20), "gif": lambda: animation("GIF"),
        "one frame": lambda: clip(count=1), "uneven": lambda: clip(count=6, times=[0, 10, 20, 500, 510, 2000]),
    }[kind]()  # fmt: skip
    tasks = [name.replace(" ", "-") for name in VIEWS]
    many = home.client.post("/v1/predict", params={"task": tasks, "top_k": 9}, content=body).json()["results"]
    for name, answer in zip(VIEWS, many, strict=True):
        expected = kit.alone(made(kit, name), body)
        np.testing.assert_allclose(scores_of(answer), expected, rtol=1e-4, atol=1e-6)
        served = home.ask(answer["task"], body).json()
        np.testing.assert_allclose(scores_of(served), expected, rtol=1e-4, atol=1e-6)
        assert served["bad_frames"] == 0
    assert until(lambda: home.local.engine.queued_rows == 0)


def test_rows_come_back_with_the_answer_and_not_when_rings_are_collected(home: House) -> None:
    memory = home.built.answers._decoder._memory
    assert until(lambda: gc.collect() >= 0 and memory.held == 0)
    gc.disable()
    try:
        for task in ("crops", "pictures", "crops"):
            home.ask(task, photograph() if task == "pictures" else moving()).raise_for_status()
        assert until(lambda: memory.held == 0)
    finally:
        gc.enable()


def test_a_queue_too_small_for_all_views_takes_none(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with house(kit.settings(data_dir=tmp_path / "1", max_batch_rows=8, max_queue_rows=15, decode_workers=1)) as home:
        home.put("t", bytes_of(made(kit, "dense views"), tmp_path)).raise_for_status()
        home.put("small", bytes_of(made(kit, "uniform views"), tmp_path)).raise_for_status()
        assert home.ask("small", moving()).status_code == 200
        asked: list[object] = []
        monkeypatch.setattr(home.local, "ask", lambda *given, **_: asked.append(given))
        told = problem(home.ask("t", moving()), 429)
        assert (told["field"], told["limit"], told["value"]) == ("max_queue_rows", 15, 16)
        assert not asked


def test_views_wait_for_one_load(kit: Kit, tmp_path: Path) -> None:
    """Of three tasks in one slot, asked at once: each is loaded for all its views, and none is refused."""
    names = ["uniform views", "dense views", "crops"]
    with house(kit.settings(data_dir=tmp_path / "1", slots=1, host_cache_bytes=0, decode_workers=1)) as home:
        for name in names:
            home.put(name.replace(" ", "-"), bytes_of(made(kit, name), tmp_path)).raise_for_status()
        with ThreadPoolExecutor(3) as pool:
            asked = [(name, pool.submit(home.ask, name.replace(" ", "-"), moving())) for name in names * 2]
        for name, answer in asked:
            expected = kit.alone(made(kit, name), moving())
            np.testing.assert_allclose(scores_of(answer.result().json()), expected, rtol=1e-4, atol=1e-6)


def test_a_view_that_fails_takes_the_others_back(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room was there for all when it was looked for, and is not any more for the last."""
    with house(kit.settings(data_dir=tmp_path / "1", decode_workers=1)) as home:
        home.put("t", bytes_of(made(kit, "dense views"), tmp_path)).raise_for_status()
        ask, asked = home.local.ask, list[Any]()

        def full(*given: Any, **more: Any) -> Any:
            if len(asked) == 3:
                raise QueueFull("the queue is full now", retry_after=1.0)
            asked.append(ask(*given, **more))
            return asked[-1]

        monkeypatch.setattr(home.local, "ask", full)
        assert problem(home.ask("t", moving()), 429)["detail"] == "the queue is full now"
        assert all(answer.done() for (answer,) in asked)
        assert until(lambda: home.local.engine.queued_rows == 0)
        monkeypatch.undo()
        np.testing.assert_allclose(
            scores_of(home.ask("t", moving()).json()), kit.alone(made(kit, "dense views"), moving()), atol=1e-5
        )
        told = home.client.get("/v1/tasks/t").json()
        assert (told["frames"], told["views"]) == (4, 4)


def test_views_beyond_the_server_s_bound_are_refused_with_the_setting_that_takes_them(
    home: House, kit: Kit, tmp_path: Path
) -> None:
    """An upload, a file that is made, the library: by the rows of all views; a batch must hold those of one alone."""
    adapter = made(kit, "crops")
    video = adapter.config.video
    assert video is not None
    config = adapter.config.model_copy(update={"video": video.model_copy(update={"views": 3})})
    large = Adapter(config, adapter.tensors, adapter.digest)
    told = problem(home.put("large", bytes_of(large, tmp_path)), 413)
    assert "36 frames in 9 views, this server takes at most 32" in str(told["detail"])
    assert "ADAPTSERVE_MAX_CLIP_FRAMES=36" in str(told["detail"])
    with pytest.raises(AdapterTooLarge, match=r"MAX_CLIP_FRAMES=36$"):
        read_adapter(tmp_path / "a.safetensors", kit.backbone.layout, FileLimits())
    with pytest.raises(AdapterTooLarge, match=r"36 frames in 9 views, at most 32 .*max_frames=36"):
        Predictor(kit.backbone, large)
    with house(kit.settings(data_dir=tmp_path / "2", max_batch_rows=4, max_clip_frames=36)) as opened:
        opened.put("large", bytes_of(large, tmp_path)).raise_for_status()
        expected = Predictor(kit.backbone, large, limits=MediaLimits(max_frames=36))(moving()).scores
        found = scores_of(opened.ask("large", moving()).json())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("video", "told"),
    [
        ({"stride": 2}, "'stride' is for sampling 'dense'"),
        ({"frames": 128, "views": 5}, "at most 512"),
        ({"crops": 2}, "1 or 3"),
        ({"views": 0}, "greater than or equal to 1"),
        ({"sampling": "random"}, "'uniform' or 'dense'"),
    ],
)
def test_what_a_file_cannot_ask_for(kit: Kit, tmp_path: Path, video: dict[str, Any], told: str) -> None:
    adapter = made(kit, "dense")
    config = json.loads(adapter.config.model_dump_json(exclude_none=True))
    config["video"] = {"frames": 4, **video}
    write_tensors(tmp_path / "a.safetensors", adapter.tensors, {METADATA_KEY: json.dumps(config)})
    with pytest.raises(BrokenAdapter, match=told):
        read_header(tmp_path / "a.safetensors", FileLimits())


def test_crops_need_a_side_to_be_cut(kit: Kit) -> None:
    config = made(kit, "crops").config.model_dump()
    with pytest.raises(ValueError, match=r"crops 3 needs input.crop_mode 'center'"):
        AdapterConfig.model_validate(config | {"input": config["input"] | {"crop_mode": "squash"}})


def test_files_of_before_are_written_as_they_were() -> None:
    """What a clip's config says anew is left out where it says what was meant before."""
    assert VideoConfig(frames=8).model_dump_json() == '{"frames":8,"sampling":"uniform"}'
    for file in (ROOT / "adapters/demo/tasks").glob("*.safetensors"):
        head = file.read_bytes()
        told = head[8 : 8 + int.from_bytes(head[:8], "little")]
        written = read_header(file, FileLimits()).config.model_dump_json(exclude_none=True)
        assert json.loads(told)["__metadata__"][METADATA_KEY] == written
