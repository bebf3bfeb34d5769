"""Heads that see time, or two vectors: as written out by hand, beside any neighbours, on the bench and over HTTP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from adapters.backbone import Backbone
from adapters.file import Adapter
from adapters.forward import heads as served_heads
from adapters.forward.banked import BankedForward, Job
from adapters.forward.plan import plan_of
from adapters.forward.timed import TimedTable
from adapters.predictor import Predictor
from tests import media_samples
from tests.devices import StandIn
from tests.heads import SPECS, TIMED, adapters, backbone
from tests.houses import Kit, house, photograph, scores_of
from tests.models import Spec, random_adapter
from tests.references import Bench, pixels, reference

__all__ = ["adapters", "backbone"]
LARGE = [*TIMED, *(number for number, spec in enumerate(SPECS) if spec.pool == "cls+avg")]


@pytest.fixture(scope="module")
def bench(backbone: Backbone, adapters: list[Adapter]) -> Bench:
    return Bench(backbone, adapters)


def job(bench: Bench, number: int, seed: int = 0) -> Job:
    return bench.job(number, pixels(bench.forward.backbone, SPECS[number].frames, seed))


def near(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=5e-4)


@torch.inference_mode()
def test_every_kind_in_one_batch_answers_as_written_out_by_hand(bench: Bench, adapters: list[Adapter]) -> None:
    jobs = [job(bench, number, seed=number) for number in range(len(SPECS))]
    for one, adapter, logits in zip(jobs, adapters, bench.forward(jobs), strict=True):
        expected = reference(bench.forward.backbone, adapter, torch.from_numpy(one.pixels))[0].numpy()
        assert logits.shape == (len(adapter.config.labels),)
        assert np.ptp(expected) > 0.1
        near(logits, expected)


@torch.inference_mode()
def test_a_clip_of_more_frames_than_a_vector_is_wide_may_be_beside_them(backbone: Backbone) -> None:
    """An attention keeps its positions in lines of that width."""
    specs = [SPECS[5], Spec((), 3, frames=52, head="frames"), Spec((), 3, frames=50)]
    made = [random_adapter(backbone, spec, number) for number, spec in enumerate(specs)]
    bench = Bench(backbone, made)
    jobs = [bench.job(n, pixels(backbone, spec.frames, n)) for n, spec in enumerate(specs)]
    for one, adapter, logits in zip(jobs, made, bench.forward(jobs), strict=True):
        near(logits, reference(backbone, adapter, torch.from_numpy(one.pixels))[0].numpy())


@pytest.mark.parametrize("number", TIMED)
def test_frames_in_another_order_are_another_clip(bench: Bench, number: int) -> None:
    one = job(bench, number)
    turned = replace(one, pixels=one.pixels[::-1].copy())
    ahead, back = bench.forward([one, turned])
    assert np.abs(ahead - back).max() > 0.01


mixes = st.lists(st.integers(0, len(SPECS) - 1), min_size=1, max_size=5)


@settings(deadline=None, max_examples=25)
@given(mixes, st.randoms(use_true_random=False))
def test_the_order_of_a_batch_changes_no_answer(bench: Bench, mix: list[int], random: Random) -> None:
    jobs = [job(bench, number, seed=at) for at, number in enumerate(mix)]
    order = random.sample(range(len(jobs)), len(jobs))
    mixed = [jobs[at] for at in order]
    assert plan_of(jobs).key == plan_of(mixed).key
    found, expected = bench.forward(mixed), bench.forward(jobs)
    for at, logits in zip(order, found, strict=True):
        near(logits, expected[at])
        near(logits, bench.forward([jobs[at]])[0])


@pytest.fixture(scope="module")
def doubled(backbone: Backbone) -> Bench:
    """Two tasks of each kind of head but the plain one: of one shape, with other numbers."""
    return Bench(backbone, [random_adapter(backbone, SPECS[number], 10 * n) for number in LARGE for n in (1, 2)])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2 * len(LARGE) - 1), st.lists(st.integers(0, len(LARGE) - 1), min_size=1, max_size=4), st.data())
def test_neighbours_of_the_same_shape_change_no_bit(
    doubled: Bench, mine: int, others: list[int], data: st.DataObject
) -> None:
    """Other tasks, other pixels, another place in the batch."""
    one = doubled.job(mine, pixels(doubled.forward.backbone, SPECS[LARGE[mine // 2]].frames, 99))
    found: dict[object, bytes] = {}
    for turn in range(4):
        twins = data.draw(st.lists(st.booleans(), min_size=len(others), max_size=len(others)))
        jobs = [
            doubled.job(2 * kind + twin, pixels(doubled.forward.backbone, SPECS[LARGE[kind]].frames, turn))
            for kind, twin in zip(others, twins, strict=True)
        ]
        place = data.draw(st.integers(0, len(jobs)))
        jobs.insert(place, one)
        logits = doubled.forward(jobs)[place]
        assert found.setdefault(plan_of(jobs).key, logits.tobytes()) == logits.tobytes()


@torch.inference_mode()
def test_numbers_that_overflow_stay_in_their_own_task(backbone: Backbone, adapters: list[Adapter]) -> None:
    """Tasks of finite numbers whose answers are not; their neighbours answer with the same bits as before."""
    broken = [
        Adapter(a.config, {n: t * (3e38 if ".up." not in n else 1) for n, t in a.tensors.items()}, a.digest)
        for a in (adapters[3], adapters[6])
    ]
    found = []
    for beside in ([adapters[3], adapters[6]], broken):
        bench = Bench(backbone, [*adapters, *beside])
        jobs = [bench.job(len(SPECS) + n, pixels(backbone, a.config.frames)) for n, a in enumerate(beside)]
        jobs += [job(bench, number) for number in range(len(SPECS))]
        found.append(bench.forward(jobs))
    assert not any(np.isfinite(logits).all() for logits in found[1][:2])
    for before, after in zip(found[0][2:], found[1][2:], strict=True):
        assert before.tobytes() == after.tobytes()
        assert np.isfinite(after).all()


def test_batches_without_such_heads_know_nothing_of_them(bench: Bench) -> None:
    for pad in (False, True):
        plan = plan_of([job(bench, 0), job(bench, 1), job(bench, 7)], pad=pad)
        assert (plan.key.timed, plan.key.seconds) == (None, 0)
        assert plan.table.timed.shape == plan.table.seconds.shape == (0,)
        assert plan.table.second_vectors.size == plan.table.second_places.size == 0


@pytest.mark.parametrize("pad", [False, True])
def test_every_job_finds_the_pages_of_its_groups(bench: Bench, pad: bool) -> None:
    jobs = [job(bench, number) for number in (5, 0, 3, 2, 6, 5, 1, 4)]
    plan = plan_of(jobs, pad=pad)
    key = plan.key
    assert key.timed is not None
    assert key.timed.kinds == ("attention", "frames")
    table = TimedTable[NDArray[np.int64]].of(key.timed_shapes, plan.table.timed)
    own = [at for at, one in enumerate(jobs) if one.meta.groups]
    assert table.jobs[: len(own)].tolist() == own
    seen = set()
    for number, at in enumerate(own):
        meta, pages = jobs[at].meta, jobs[at].pages
        assert table.vectors[at] == key.jobs + number
        for group in range(key.timed.features):
            place = table.places[number, group]
            found = table.groups[place]
            if group >= meta.groups:
                assert not found.any()
            elif meta.head == "frames":
                first = meta.class_pages + group * meta.frames
                assert tuple(found[: meta.frames]) == pages[first : first + meta.frames]
                assert not found[meta.frames :].any()
            else:
                weight, position = pages[meta.class_pages + 2 * group :][:2]
                assert set(found[:-1]) == {weight}
                assert found[-1] == position
            if group < meta.groups:
                seen.add(place)
                assert table.attends[place] == (meta.head == "attention")
        assert meta.pages == len(pages)
    blank = np.delete(table.groups, list(seen), axis=0)
    assert len(blank)
    assert not blank.any()
    others = [at for at in range(key.jobs) if at not in own]
    assert table.vectors[others].tolist() == others


def test_few_shapes_serve_many_batches(bench: Bench) -> None:
    """A graph is kept for each; what a clip's neighbours are makes no other one."""
    mixes = ([2, 2], [2, 1], [1, 2], [2, 0, 0, 0, 0], [2, 0, 7, 7], [2, 0, 0, 7])
    keys = {replace(plan_of([job(bench, n) for n in mix], pad=True).key, sites=(), modes=()) for mix in mixes}
    assert len(keys) == 1


def test_graphs_answer_as_eager(bench: Bench) -> None:
    device = StandIn()
    forward = BankedForward(bench.forward.backbone, bench.slabs, device=device)
    mixes = (2,), (5, 5), (3, 6, 4, 1, 0)
    warm = forward.warm_up([4], [bench.packed[2][2]])
    for turn in range(2):
        for mix in mixes:
            jobs = [job(bench, number, seed=10 * turn + at) for at, number in enumerate(mix)]
            for found, expected in zip(forward(jobs), bench.forward(jobs), strict=True):
                near(found, expected)
    assert len(device.graphs) == warm + 2
    assert sum(graph.replays for graph in device.graphs) >= 2 * len(mixes)


def test_groups_are_gathered_a_few_at_a_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job(bench, number) for number in TIMED]
    expected = bench.forward(jobs)
    monkeypatch.setattr(served_heads, "PAGES_AT_ONCE", 8)
    for found, whole in zip(bench.forward(jobs), expected, strict=True):
        assert found.tobytes() == whole.tobytes()


def test_several_tasks_of_one_clip_decode_it_once(backbone: Backbone, adapters: list[Adapter]) -> None:
    """Tasks that differ in their heads alone take the same frames."""
    clip = media_samples.clip(picture=media_samples.scene(64, 48))
    members = [
        Adapter(a.config.model_copy(update={"task": f"t{n}"}), a.tensors, a.digest)
        for n, a in enumerate(adapters)
        if a.config.frames == 4
    ]
    predictor = Predictor(backbone, *members)
    seen = predictor._see(clip, [(task, predictor.adapter(task)) for task in predictor.tasks])
    assert len({id(one.pixels) for one in seen}) == 1
    together = predictor.each_task(clip)
    for task in predictor.tasks:
        near(together[task].logits, predictor(clip, task).logits)


def test_they_are_served_over_http(kit: Kit, tmp_path: Path) -> None:
    """Uploaded while others answer, asked beside pictures and other clips; too large a one is a problem document."""
    clip = media_samples.clip(picture=media_samples.scene(64, 48))
    specs = {f"t{number}": spec for number, spec in enumerate(SPECS)}
    made = {task: kit.file(seed, spec, task) for seed, (task, spec) in enumerate(specs.items())}
    large = kit.file(9, Spec((), 30, frames=16, head="frames"), "large")[0]
    with house(kit.settings(max_classes=240, data_dir=tmp_path)) as home:
        for task, (content, _) in made.items():
            assert home.put(task, content).status_code == 201, task
        refused = home.put("large", large)
        assert refused.status_code == 413
        assert "ADAPTSERVE_MAX_CLASSES=544" in refused.json()["detail"]
        for task, spec in specs.items():
            body = clip if spec.frames > 1 else photograph()
            answer = home.ask(task, body)
            assert answer.status_code == 200, answer.text
            np.testing.assert_allclose(scores_of(answer.json()), kit.alone(made[task][1], body), rtol=1e-3, atol=1e-4)
