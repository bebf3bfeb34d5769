"""Pooled vectors: the bare backbone's are timm's, a task's are what its head sees, and who asks none pays nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters import Adapter, Backbone, Predictor
from adapters.config import SiteConfig, VideoConfig
from adapters.file import write_adapter
from adapters.forward.banked import BankedForward
from adapters.forward.staging import HostStaging, PinnedStaging
from adapters.media import Preprocess, decode
from adapters.meta import bare_config
from tests.devices import StandIn
from tests.heads import SPECS as HEADS
from tests.houses import CLIP, IMAGE, House, Kit, house, photograph, problem, until
from tests.media_samples import clip
from tests.models import FAMILIES, Spec, close, random_adapter, small_backbone
from tests.references import normalised, reference
from tests.test_graphs import SPECS, Bench

QKV = Spec((SiteConfig(site="qkv", blocks=(0, 1), rank=3, act="none"),), 4)
VIEWS = Spec(IMAGE.sites, 4, "cls", "trained", frames=2, head="frames")


def vector_of(backbone: Backbone, adapter: Adapter, images: Tensor) -> Tensor:
    """(clips, width): the reference, with a head that gives the vector itself, of ``cls+avg`` twice as wide."""
    width, video = (2 if adapter.config.twice else 1) * backbone.layout.width, adapter.config.video
    plain = None if video is None else VideoConfig(frames=video.frames)
    config = adapter.config.model_copy(update={"labels": tuple(map(str, range(width))), "video": plain})
    kept = {name: tensor for name, tensor in adapter.tensors.items() if not name.startswith("head.")}
    head = {"head.weight": torch.eye(width), "head.bias": torch.zeros(width)}
    with torch.inference_mode():
        return reference(backbone, Adapter(config, kept | head, ""), images)


def seen(backbone: Backbone, body: bytes, frames: int | None = None) -> Tensor:
    """What the bare backbone takes of a body, uint8 (frames, 3, height, width)."""
    config = bare_config(backbone.layout, backbone.input, frames)
    preprocess, pictures = Preprocess(backbone.input), decode(body, config, Predictor(backbone).limits)
    return torch.from_numpy(np.stack([preprocess(picture) for picture in pictures]))


@torch.inference_mode()
def timms(backbone: Backbone, images: Tensor) -> Tensor:
    """(width,): timm alone, the mean over the frames."""
    model: Any = backbone.model
    return model.forward_head(model.forward_features(normalised(backbone, images)), pre_logits=True).mean(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bare_backbones_vector_is_timms(family: str, tmp_path: Path) -> None:
    backbone = small_backbone(tmp_path / family, family)
    predictor = Predictor(backbone)
    body, moving = photograph(), clip(count=9)
    close(torch.from_numpy(predictor.embed(body)), timms(backbone, seen(backbone, body)))
    close(torch.from_numpy(predictor.embed(moving, frames=3)), timms(backbone, seen(backbone, moving, 3)))


@pytest.mark.parametrize("number", range(len(HEADS)))
def test_a_tasks_vector_is_what_its_head_sees(kit: Kit, number: int) -> None:
    adapter = random_adapter(kit.backbone, HEADS[number], number)
    predictor = Predictor(kit.backbone, adapter)
    body = photograph() if HEADS[number].frames == 1 else clip()
    images = seen(kit.backbone, body, None if HEADS[number].frames == 1 else HEADS[number].frames)
    found, expected = torch.from_numpy(predictor.embed(body, "t")), vector_of(kit.backbone, adapter, images)[0]
    assert found.shape == ((2 if adapter.config.twice else 1) * kit.backbone.layout.width,)
    close(found, expected)
    if adapter.config.head == "mean":
        logits = adapter.tensors["head.weight"] @ found + adapter.tensors["head.bias"]
        close(torch.tensor(predictor(body).logits), logits)


class Counted:
    """How many outputs each batch brings to the host."""

    def __init__(self, forward: BankedForward) -> None:
        self.counts: list[int] = []
        staging: Any = forward._staging
        assert isinstance(staging, HostStaging | PinnedStaging)
        inner = staging.get

        def get(staged: Any, *outputs: Tensor) -> Any:
            self.counts.append(len(outputs))
            return inner(staged, *outputs)

        staging.get = get


@pytest.mark.parametrize("device", [None, StandIn()], ids=["host", "graphs"])
def test_vectors_come_to_the_host_for_batches_that_ask_alone(tmp_path: Path, device: StandIn | None) -> None:
    """Beside rows that ask none, whose logits are the same bits."""
    bench = Bench(tmp_path, device)
    counted = Counted(bench.forward)
    jobs = [replace(job, picture=None) for job in bench.jobs(0, 1, 3, 6, 7)]
    plain = bench.forward(jobs)
    assert counted.counts == [1]
    for asked in ((1,), (0, 2, 3), (3, 4)):
        some = [replace(job, embed=number in asked) for number, job in enumerate(jobs)]
        for _ in range(2):
            running = bench.forward.run(bench.forward.prepare(some))
            found, vectors = running.result(), running.vectors()
            assert vectors.keys() == set(asked)
            assert len(found) == len(jobs)
            for one, other in zip(found, plain, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-4)
            for number in asked:
                slot = bench.held.index((jobs[number].slot, jobs[number].pages, jobs[number].meta))
                adapter = random_adapter(bench.backbone, SPECS[slot], slot + 1)
                expected = vector_of(bench.backbone, adapter, torch.from_numpy(jobs[number].pixels))[0]
                close(torch.from_numpy(vectors[number]), expected)
    assert counted.counts == [1] + [2] * 6


def test_vectors_of_one_and_two_meet_in_a_batch(tmp_path: Path) -> None:
    specs = [Spec(IMAGE.sites, 4, "cls+avg"), Spec(IMAGE.sites, 4, "avg", "trained"), Spec(IMAGE.sites, 4, "cls")]
    bench = Bench(tmp_path, specs=specs)
    jobs = [replace(job, embed=True) for job in bench.jobs(1, 0, 2)]
    vectors = bench.forward.run(bench.forward.prepare(jobs)).vectors()
    for number, spec in enumerate((1, 0, 2)):
        adapter = random_adapter(bench.backbone, specs[spec], spec + 1)
        expected = vector_of(bench.backbone, adapter, torch.from_numpy(jobs[number].pixels))[0]
        close(torch.from_numpy(vectors[number]), expected)


def test_a_head_that_sees_time_adds_no_row(kit: Kit) -> None:
    predictor = Predictor(kit.backbone, random_adapter(kit.backbone, VIEWS, 0))
    forward, plans = predictor._forward, []
    inner = forward.prepare

    def prepare(jobs: Any) -> Any:
        plans.append(inner(jobs).plan)
        return inner(jobs)

    forward.prepare = prepare  # type: ignore[method-assign]
    predictor.embed(clip(), "t")
    assert [plan.key.rows for plan in plans] == [2]


def served(kit: Kit, spec: Spec, seed: int, views: int = 1) -> tuple[bytes, Adapter]:
    adapter = random_adapter(kit.backbone, spec, seed, size=0.5)
    config = adapter.config
    if views > 1:
        assert config.video is not None
        config = config.model_copy(update={"video": config.video.model_copy(update={"views": views})})
    path = kit.folder / f"embed-{seed}.safetensors"
    write_adapter(path, config, adapter.tensors)
    return path.read_bytes(), Adapter(config, adapter.tensors, "")


@pytest.fixture(scope="module")
def adapters(kit: Kit) -> dict[str, tuple[bytes, Adapter]]:
    return {
        "own": served(kit, IMAGE, 1), "qkv": served(kit, QKV, 2), "bare": served(kit, Spec((), 3), 3),
        "clip": served(kit, CLIP, 4), "views": served(kit, VIEWS, 5, views=3),
    }  # fmt: skip


@pytest.fixture(scope="module", params=[0, 2**24], ids=["plain", "prefix cache"])
def home(
    request: pytest.FixtureRequest, kit: Kit, adapters: dict[str, tuple[bytes, Adapter]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[House]:  # fmt: skip
    folder = tmp_path_factory.mktemp("data")
    with house(kit.settings(data_dir=folder, prefix_cache_bytes=request.param, max_batch_rows=12)) as made:
        for task, (content, _) in adapters.items():
            made.put(task, content).raise_for_status()
        yield made


def embed(home: House, body: bytes, **params: Any) -> httpx.Response:
    return home.client.post("/v1/embed", content=body, params=params)


def array(answer: dict[str, Any]) -> NDArray[np.float32]:
    return np.array(answer["embedding"], np.float32)


def test_a_server_embeds_pictures_and_clips(kit: Kit, home: House) -> None:
    layout, predictor, moving = kit.backbone.layout, Predictor(kit.backbone), clip(count=9)
    for _ in range(2):
        picture = embed(home, photograph()).raise_for_status()
        answer = picture.json()
        close(torch.from_numpy(array(answer)), torch.from_numpy(predictor.embed(photograph())))
        assert {k: v for k, v in answer.items() if k != "embedding"} == {
            "backbone": layout.model, "fingerprint": layout.fingerprint, "modality": "image", "frames": 1,
            "bad_frames": 0,
        }  # fmt: skip
        assert "decode;dur=" in picture.headers["server-timing"]
        for frames, params in ((8, {}), (3, {"frames": 3})):
            answer = embed(home, moving, **params).raise_for_status().json()
            assert (answer["modality"], answer["frames"]) == ("video", frames)
            close(torch.from_numpy(array(answer)), torch.from_numpy(predictor.embed(moving, frames=frames)))
    form = home.client.post("/v1/embed", files={"file": photograph()})
    np.testing.assert_array_equal(array(form.json()), array(embed(home, photograph()).json()))


@pytest.mark.parametrize("task", ["own", "qkv", "bare", "clip", "views"])
def test_a_server_answers_with_the_tasks_vector(
    kit: Kit, home: House, adapters: dict[str, tuple[bytes, Adapter]], task: str
) -> None:
    body = clip(count=12) if task in ("clip", "views") else photograph()
    plain = home.ask(task, body).raise_for_status().json()
    answer = home.ask(task, body, embedding=True).raise_for_status().json()
    found = torch.from_numpy(array(answer))
    close(found, torch.from_numpy(Predictor(kit.backbone, adapters[task][1]).embed(body, "t")))
    del answer["embedding"]
    assert "embedding" not in plain
    for one, other in zip(answer.pop("predictions"), plain.pop("predictions"), strict=True):
        assert one == other | {"score": pytest.approx(other["score"], rel=1e-4)}
    assert answer == plain
    assert "embedding" not in home.ask(task, body, embedding=False).json()


def test_all_kinds_meet_in_a_batch(kit: Kit, home: House, adapters: dict[str, tuple[bytes, Adapter]]) -> None:
    """Held back until all wait: rows of tasks with and without vectors, and of the bare backbone."""
    body, engine, tasks = photograph(7), home.local.engine, ("own", "qkv", "bare")
    gate, inner = threading.Event(), engine.runner.forward
    batches: list[int] = []

    class Gated:
        def __call__(self, jobs: Any) -> Any:
            gate.wait(10)
            batches.append(len(jobs))
            return inner(jobs)

        def prepare(self, jobs: Any) -> Any:
            gate.wait(10)
            batches.append(len(jobs))
            return inner.prepare(jobs)

        def run(self, prepared: Any) -> Any:
            return inner.run(prepared)

    engine.runner.forward = Gated()  # type: ignore[assignment]
    try:
        with ThreadPoolExecutor(8) as pool:
            first = pool.submit(embed, home, photograph(8))
            assert until(lambda: engine.queued_rows == 1)
            asked = [pool.submit(embed, home, body)]
            asked += [pool.submit(home.ask, task, body, embedding=wish) for task in tasks for wish in (True, False)]
            assert until(lambda: engine.queued_rows == 8)
            gate.set()
            answers = [one.result().json() for one in asked]
            first.result().raise_for_status()
    finally:
        gate.set()
        engine.runner.forward = inner
    assert batches == [1, 7]
    close(torch.from_numpy(array(answers[0])), torch.from_numpy(Predictor(kit.backbone).embed(body)))
    for place, task in enumerate(tasks):
        with_it, without = answers[1 + 2 * place], answers[2 + 2 * place]
        vector = Predictor(kit.backbone, adapters[task][1]).embed(body, "t")
        close(torch.from_numpy(array(with_it)), torch.from_numpy(vector))
        assert "embedding" not in without
        assert with_it["predictions"] == without["predictions"]


def test_many_tasks_answer_with_vectors_of_their_own(home: House) -> None:
    params: dict[str, Any] = {"task": ["own", "qkv"], "embedding": True}
    one, other = home.client.post("/v1/predict", params=params, content=photograph()).json()["results"]
    assert np.abs(array(one) - array(other)).max() > 0.01


@pytest.mark.parametrize(
    ("params", "body", "status"),
    [
        ({"frames": 0}, clip(), 400), ({"frames": 129}, clip(), 400), ({"frames": 64}, clip(), 413),
        ({"frames": "x"}, clip(), 400), ({"frames": 2}, photograph(), 422), ({"top_k": 2}, photograph(), 400),
        ({}, b"", 422), ({}, b"text", 415), ({}, photograph()[:300], 422),
    ],
)  # fmt: skip
def test_what_cannot_be_embedded_is_a_problem(home: House, params: dict[str, Any], body: bytes, status: int) -> None:
    problem(embed(home, body, **params), status)
