"""The prefix cache: tasks that are asked one after another about one picture begin where they part, within a bound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adapters.backbone import Backbone
from adapters.config import SiteConfig
from adapters.forward.banked import BankedForward, Job
from adapters.forward.prefix import PrefixCache
from tests.devices import StandIn
from tests.houses import Kit, house, photograph
from tests.models import FAMILIES, Spec, random_adapter, small_backbone
from tests.references import Bench, all_sites, pixels

MIB = 2**20


def tokens(rows: int = 1) -> torch.Tensor:
    return torch.zeros(rows, 10, 25)  # 1000 bytes a row


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(tmp_path_factory.mktemp("models") / request.param, request.param)


class Tasks(Bench):
    """Tasks adapted from the first block, the last one and no block on, of pictures and of clips; with a cache."""

    def __init__(self, backbone: Backbone, device: Any = None) -> None:
        last = (backbone.layout.blocks - 1,)
        late, moving = (SiteConfig(site="parallel", blocks=last, rank=4, temporal=t) for t in (False, True))
        specs = [Spec((all_sites(backbone, "parallel"),)), Spec((late,)), Spec(()), Spec((late,), 4)]
        specs += [Spec((moving,), frames=3), Spec((), frames=3)]
        specs += [Spec((late.model_copy(update={"site": "input", "tokens": "patches"}),))]
        super().__init__(backbone, [random_adapter(backbone, spec, i) for i, spec in enumerate(specs)])
        self.cached = BankedForward(backbone, self.slabs, device=device, prefix_cache_bytes=MIB)
        self.picture, self.clip = pixels(backbone, 1), pixels(backbone, 3, 1)
        self.blocks_seen: list[tuple[int, int]] = []
        for number, block in enumerate(backbone._blocks):
            block.before_mlp.register_forward_hook(
                lambda _m, _a, out, number=number: self.blocks_seen.append((number, out.shape[0]))
            )

    def named(self, index: int) -> Job:
        """A job that names its picture, or its clip."""
        if self.packed[index][2].frames > 1:
            return replace(self.job(index, self.clip), picture="clip")
        return replace(self.job(index, self.picture), picture="one")

    def close(self, jobs: list[Job]) -> None:
        """With the cache as without, as near as the answers of another shape of batch are."""
        for job, found in zip(jobs, self.cached(jobs), strict=True):
            np.testing.assert_allclose(found, self.forward([job])[0], rtol=1e-4, atol=2e-4)


@torch.inference_mode()
def test_tasks_one_after_another_begin_where_they_part(backbone: Backbone) -> None:
    tasks, last = Tasks(backbone), backbone.layout.blocks - 1
    cache = tasks.cached.prefixes
    assert cache is not None
    assert (len(cache), cache.nbytes, cache.hits) == (0, 0, 0)
    ran: list[list[int]] = []
    for index in (1, 3, 2, 2, 0, 4, 5):
        tasks.blocks_seen.clear()
        tasks.cached([tasks.named(index)])
        ran.append(sorted({block for block, _ in tasks.blocks_seen}))
    every = list(range(last + 1))
    # The first task pays for all; the next one of its kind for the last block. One that adapts none then goes on from
    # there, and its like pays for nothing. What is adapted from the first block on has nothing to go on from.
    assert ran == [every, [last], [last], [], every, every, [last]]
    assert cache.hits == 4
    for jobs in ([3], [2], [5], [6], [4, 0], [0, 1, 2, 3, 4, 5, 6], [1, 6], [1, 2]):
        tasks.close([tasks.named(index) for index in jobs])
    tasks.close([tasks.job(1, pixels(backbone, 1, 7)), tasks.named(2)])


@torch.inference_mode()
def test_a_batch_fills_the_cache_for_each_of_its_tasks(backbone: Backbone) -> None:
    tasks = Tasks(backbone)
    tasks.close([tasks.named(index) for index in (0, 1, 2, 5)])
    tasks.blocks_seen.clear()
    tasks.cached([tasks.named(index) for index in (1, 2, 3, 5)])
    assert {rows for _, rows in tasks.blocks_seen} == {2}  # both that adapt the last block
    assert {block for block, _ in tasks.blocks_seen} == {backbone.layout.blocks - 1}


@torch.inference_mode()
def test_the_same_cache_and_batch_give_the_same_bits(backbone: Backbone) -> None:
    tasks = Tasks(backbone)
    jobs = [tasks.named(index) for index in (1, 3, 2)]
    tasks.cached(jobs)
    first, second = tasks.cached(jobs), tasks.cached(jobs)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@torch.inference_mode()
def test_another_normalisation_or_nameless_pictures_take_nothing(backbone: Backbone) -> None:
    tasks = Tasks(backbone)
    one = tasks.named(2)
    tasks.cached([one])
    other = replace(one, meta=replace(one.meta, normalisation=(0.1, 0.1, 0.1, 1.0, 1.0, 1.0)))
    cache = tasks.cached.prefixes
    assert cache is not None
    tasks.cached([other])
    tasks.cached([replace(one, picture=None)])
    assert cache.hits == 0
    assert len(cache) == 2


@torch.inference_mode()
def test_on_a_device_with_graphs_such_batches_run_eagerly_and_others_are_replayed(backbone: Backbone) -> None:
    device = StandIn()
    tasks = Tasks(backbone, device)
    graphs = tasks.cached._graphs
    assert graphs is not None
    for _ in range(2):
        tasks.close([tasks.named(1), tasks.named(2)])
    assert not device.graphs
    tasks.close([tasks.named(0)])
    tasks.close([tasks.named(0), tasks.job(1, tasks.picture)])
    assert len(device.graphs) == 2


class Choosy(nn.Module):
    """Between two blocks, and not for nothing."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if not tokens.shape[0]:
            raise RuntimeError("no tokens")
        return tokens


@torch.inference_mode()
def test_a_backbone_that_does_not_go_on_has_no_cache(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    made = small_backbone(tmp_path_factory.mktemp("vit"))
    made.model.blocks.insert(1, Choosy())
    tasks = Tasks(made)
    assert tasks.cached.prefixes is None
    assert "no prefix cache" in caplog.text
    tasks.close([tasks.named(1), tasks.named(2)])


def test_a_server_counts_what_it_did_not_compute(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path / "data", prefix_cache_bytes=MIB)) as home:
        last = (kit.backbone.layout.blocks - 1,)
        late = Spec((SiteConfig(site="parallel", blocks=last, rank=4),), 5)
        for number in range(2):
            home.client.put(f"/v1/tasks/t{number}/adapter", content=kit.file(number, late)[0]).raise_for_status()
            home.client.post(f"/v1/tasks/t{number}/predict", content=photograph()).raise_for_status()
        assert "adaptserve_prefix_cache_hits_total 1.0" in home.client.get("/metrics").text


def test_the_picture_asked_least_recently_goes_first() -> None:
    cache = PrefixCache(3500)
    cache.put("a", 2, tokens())
    cache.put("a", 4, tokens())
    cache.put("b", 2, tokens())
    assert (cache.last("a", 3), cache.last("a", 9), cache.last("a", 1), cache.last("c", 9)) == (2, 4, 0, 0)
    cache.take("a", 2)
    cache.put("c", 2, tokens())
    assert (len(cache), cache.nbytes, cache.hits) == (2, 3000, 1)
    assert cache.last("b", 9) == 0
    cache.put("c", 2, tokens())  # as it is there already
    assert cache.nbytes == 3000
    cache.put("d", 1, tokens(4))  # larger than all
    assert (len(cache), cache.nbytes) == (2, 3000)
    cache.put("d", 1, tokens(3))
    assert (len(cache), cache.nbytes) == (1, 3000)
    cache.put("d", 2, tokens())  # one picture with more than all
    assert (len(cache), cache.nbytes) == (0, 0)
