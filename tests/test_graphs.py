"""Graphs on a stand-in for the device: which are kept, how batches are padded to them, and what a wrong one leads to.

With a GPU, graphs against the eager forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

from adapters.backbone import Backbone
from adapters.bank import Slabs, pack
from adapters.config import SiteConfig
from adapters.forward import graphs
from adapters.forward.banked import BankedForward, Job
from adapters.forward.plan import plan_of
from adapters.forward.runtime import Eager
from tests.devices import OffDevice, StandIn, move_to_fake, to_fake
from tests.models import FAMILIES, Spec, random_adapter, small_backbone

ODD = ("writes nothing", "writes another answer", "keeps its inputs", "raises", "cannot be captured")


def site(temporal: bool = False, act: str = "relu", blocks: tuple[int, ...] = (0, 1)) -> SiteConfig:
    return SiteConfig(site="parallel", blocks=blocks, rank=4, temporal=temporal, act=act)


STREAM = tuple(SiteConfig(site=name, blocks=(0, 1), rank=4, tokens="patches") for name in ("input", "pre_mlp"))
SPECS = (
    Spec((site(),), 3), Spec((site(),), 20, pool="avg", norm="trained"), Spec((), 4), Spec((site(True),), 5, frames=3),
    Spec((site(act="gelu"), *STREAM), 3), Spec((SiteConfig(site="qkv", blocks=(1,), rank=2, act="none"),), 3, frames=1),
    Spec((site(True),), 5, "avg", "trained", 3, head="frames"), Spec((), 5, frames=2, head="attention", head_width=30),
)  # fmt: skip


class Bench:
    """A backbone, a slot for each of ``SPECS``, a forward on a device that may be a stand-in, and one that is eager."""

    def __init__(
        self, folder: Path, device: StandIn | None = None, on: str = "cpu", dtype: torch.dtype = torch.float32,
        specs: Sequence[Spec] = SPECS,
    ) -> None:  # fmt: skip
        name = str(dtype).removeprefix("torch.")
        self.backbone: Backbone = small_backbone(folder / "vit", device=on, dtype=name)
        self.slabs = Slabs(
            self.backbone.layout, slots=len(specs), rank=8, pages=300 + 3 * len(specs), dtype=dtype,
            device=torch.device(on),
        )  # fmt: skip
        self.held, page = [], 1
        for slot, spec in enumerate(specs, 1):
            packed = pack(random_adapter(self.backbone, spec, slot), self.backbone.layout, 8, dtype, pinned=on != "cpu")
            pages = tuple(range(page, page + len(packed.pages)))
            page += len(pages)
            self.slabs.write(slot, pages, packed)
            self.held.append((slot, pages, packed.meta))
        self.forward = BankedForward(self.backbone, self.slabs, device=device)
        self.eager = BankedForward(self.backbone, self.slabs, cuda_graphs=False)

    def jobs(self, *numbers: int, seed: int = 0) -> list[Job]:
        return [self.job(number, seed + at) for at, number in enumerate(numbers)]

    def job(self, number: int, seed: int) -> Job:
        shape = (self.held[number][2].frames, 3, *self.backbone.layout.input_size)
        return Job(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), *self.held[number])

    def same(self, jobs: list[Job]) -> None:
        close(self.forward(jobs), self.eager(jobs))


def close(found: list[NDArray[np.float32]], expected: list[NDArray[np.float32]], atol: float = 2e-4) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


@pytest.fixture
def device() -> StandIn:
    return StandIn()


@pytest.fixture
def bench(tmp_path: Path, device: StandIn) -> Bench:
    return Bench(tmp_path, device)


def test_a_batch_is_replayed_with_new_slots_and_pixels(bench: Bench, device: StandIn) -> None:
    for turn in range(4):
        bench.same(bench.jobs(0, 0, 0, seed=10 * turn))
    assert [graph.replays for graph in device.graphs] == [4]


def test_every_kind_of_batch_answers_as_eager(bench: Bench, device: StandIn) -> None:
    """Clips, own norms, other activations and sites, several pages, none at all, blank rows behind."""
    mixes = [(0,), (1,), (2,), (3,), (4, 5), (0, 1, 2), (3, 0), (0, 3, 3), (1, 3, 4, 5, 2, 0, 0), (3,) * 5, (6, 7, 0)]
    for mix in (*mixes, *mixes):
        bench.same(bench.jobs(*mix))
        bench.same(bench.jobs(*reversed(mix), seed=50))
    assert len(device.graphs) == len(mixes) - 1  # a clip of 3 alone, and with a picture, are both padded to 4 rows
    assert sum(graph.replays for graph in device.graphs) == 4 * len(mixes)


def test_jobs_that_share_a_picture_are_replayed_too_and_joins_run_eagerly(bench: Bench, device: StandIn) -> None:
    one, linear = (replace(bench.job(number, seed=0), picture="one") for number in (0, 2))
    bench.same([linear, linear, linear])
    assert len(device.graphs) == 1
    assert plan_of([one, linear]).key.joins
    bench.same([one, linear])
    assert len(device.graphs) == 1


@pytest.mark.parametrize("broken", ODD)
def test_a_graph_that_does_not_answer_as_eager_is_thrown_away(
    bench: Bench, device: StandIn, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    device.broken = broken
    for turn in range(3):
        bench.same(bench.jobs(0, 1, 3, seed=10 * turn))
    assert "run eagerly" in caplog.text
    assert all(graph.freed and graph.replays <= 1 for graph in device.graphs)
    assert len(cast(graphs.Graphs, bench.forward.runtime)) == 0
    device.broken = ""
    bench.same(bench.jobs(0, 1))  # another key


def test_scores_that_are_not_finite_do_not_cost_a_graph(bench: Bench, device: StandIn) -> None:
    bench.slabs.page_bias[bench.held[0][1][0], 1] = torch.nan
    for _ in range(2):
        found = bench.forward(bench.jobs(0, 1, 0, 1))
        assert np.isnan(found[0][1])
        close(found[1:2], bench.eager(bench.jobs(0, 1, 0, 1))[1:2])
    assert [graph.replays for graph in device.graphs] == [2]


def test_the_least_recently_used_graph_goes_but_not_one_in_use(
    bench: Bench, device: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    monkeypatch.setattr(graphs, "KEPT_FOR", 3)
    one, two, four = (bench.jobs(*(0,) * count) for count in (1, 2, 4))
    for jobs in (one, two, one, four):  # no room, and both are in use
        bench.same(jobs)
    assert len(device.graphs) == 2
    for _ in range(3):
        bench.same(one)
    bench.same(four)
    assert [graph.freed for graph in device.graphs] == [False, True, False]
    assert len(cast(graphs.Graphs, bench.forward.runtime)) == 2
    bench.same(one)


def test_what_is_warmed_up_is_captured_before_the_first_batch_and_proven_by_it(bench: Bench, device: StandIn) -> None:
    metas = [meta for _, _, meta in bench.held]
    assert bench.forward.warm_up((1, 8), metas) == len(device.graphs) > 4
    captured = len(device.graphs)
    for numbers in ((0,), (1,), (2,), (4,), (5,), (0,) * 8, (1,) * 7):
        bench.same(bench.jobs(*numbers))
    assert len(device.graphs) == captured
    assert bench.eager.warm_up((1,)) == 0


def test_a_graph_that_only_a_blank_batch_likes_is_found_out(bench: Bench, device: StandIn) -> None:
    bench.forward.warm_up((1,), [bench.held[0][2]])
    for graph in device.graphs:
        graph.broken = "writes nothing"
    for seed in range(3):
        bench.same(bench.jobs(0, seed=seed))
    assert any(graph.freed for graph in device.graphs)


def test_the_next_batch_is_copied_while_one_computes(bench: Bench, device: StandIn) -> None:
    """Each buffer is filled again only when the answers of its last batch are there; kernels wait for their copies."""
    first, second, third = (bench.jobs(0, 1, seed=seed) for seed in (1, 2, 3))
    bench.same(first)
    device.marks.clear()
    device.waits.clear()
    running = bench.forward.run(bench.forward.prepare(second))
    prepared = bench.forward.prepare(third)
    found = running.result()
    last = bench.forward.run(prepared).result()
    assert device.marks == ["copies", "kernels", "copies", "kernels"]
    assert device.waits == [0, 2]
    close(found, bench.eager(second))
    close(last, bench.eager(third))


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_in_the_run_is_made_or_read_on_the_host(tmp_path: Path, family: str) -> None:
    """With torch's fake tensors on a device that is not there: what would be an illegal copy in a capture shows."""
    backbone = small_backbone(tmp_path / "model", family)
    size, trained = backbone.layout.input_size, "avg" in backbone.layout.pools
    specs = [Spec((site(True),), 20, frames=3), Spec((site(act="gelu"),), 4)]
    specs.append(Spec((), 40, "avg", "trained") if trained else Spec((), 40))
    specs += [Spec((), 4, frames=3, head="frames"), Spec((), 4, frames=2, head="attention", head_width=20)]
    slabs = Slabs(backbone.layout, slots=len(specs), rank=8, pages=6, dtype=torch.float32, device=torch.device("cpu"))
    jobs = []
    for slot, spec in enumerate(specs, 1):
        packed = pack(random_adapter(backbone, spec, slot), backbone.layout, 8, torch.float32)
        pages = tuple(range(1, 1 + len(packed.pages)))
        jobs.append(Job(np.zeros((spec.frames, 3, *size), np.uint8), slot, pages, packed.meta))
    plan, mode = plan_of(jobs, pad=True), FakeTensorMode()
    move_to_fake(mode, backbone, slabs)
    packed_table = to_fake(mode, torch.from_numpy(plan.packed))
    pixels = to_fake(mode, torch.empty(plan.key.input_rows, 3, *size, dtype=torch.uint8))
    eager, seen = Eager(backbone, slabs), OffDevice()
    with mode, torch.inference_mode():
        eager(plan.key, packed_table, pixels)  # as before a capture
        with seen:
            outputs = eager(plan.key, packed_table, pixels)
    assert bool(seen.seen) == (family == "sam")  # its tables of positions are read by numbers made on the host
    assert outputs.logits.shape == (plan.key.jobs, plan.key.pages * 16)
    assert outputs.logits.device.type == "cuda"


def devices() -> list[str]:
    return [f"cuda:{index}" for index in range(min(2, torch.cuda.device_count()))] or ["cuda"]


@pytest.mark.gpu
@pytest.mark.parametrize("on", devices())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_answers_as_the_eager_forward_does(tmp_path: Path, dtype: torch.dtype, on: str) -> None:
    """Pictures and clips, heads of several pages, shared pictures; on a second device too, where there is one."""
    bench = Bench(tmp_path, on=on, dtype=dtype, specs=(*SPECS, Spec((site(),), 4096)))
    bench.forward.warm_up((1, 8), [meta for _, _, meta in bench.held])
    for turn in range(24):
        jobs = bench.jobs(*((turn + 5 * i) % len(bench.held) for i in range(1 + turn % 5)), seed=turn)
        close(bench.forward(jobs), bench.eager(jobs), atol=5e-2 if dtype is torch.bfloat16 else 1e-3)
    assert len(cast(graphs.Graphs, bench.forward.runtime)) > 8
    assert bench.slabs.pages.device == torch.device(on)


@pytest.mark.gpu
def test_a_slab_that_opens_later_is_zero_and_then_filled(tmp_path: Path) -> None:
    """The zeros are written on the stream of the copies, so they cannot come after them."""
    backbone = small_backbone(tmp_path / "vit", device="cuda")
    for seed in range(20):
        slabs = Slabs(backbone.layout, slots=64, rank=64, pages=64, dtype=torch.float32, device=torch.device("cuda"))
        spec = Spec((SiteConfig(site="qkv", blocks=(0, 1, 2), rank=4, act="none"),))
        packed = pack(random_adapter(backbone, spec, seed), backbone.layout, 64, torch.float32, pinned=True)
        slabs.write(64, [1], packed)
        assert torch.equal(slabs._flat["qkv"][64].cpu(), packed.planes["qkv"])
        assert not slabs._flat["qkv"][:64].any()
