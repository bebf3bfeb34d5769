"""Heads that see time, or two vectors: as written out by hand, beside any neighbours, within pages and bounds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

from adapters.backbone import Backbone
from adapters.bank import PAGE, SimpleBank, pack
from adapters.config import SiteConfig, VideoConfig
from adapters.errors import AdapterTooLarge, BrokenAdapter
from adapters.file import Adapter, read_adapter, write_adapter, write_tensors
from adapters.forward import heads as served_heads
from adapters.forward.banked import BankedForward, Job
from adapters.forward.plan import plan_of
from adapters.forward.timed import TimedTable
from adapters.header import read_header, refusals
from adapters.heads import HEAD_SHARE, VALUES, group_pages, groups_of, pages_of, rank_of_head, width_of_head
from adapters.limits import FileLimits
from adapters.media import Sampling
from adapters.meta import AdapterMeta
from adapters.predictor import Predictor
from tests import media_samples
from tests.devices import StandIn
from tests.houses import Kit, house, photograph, scores_of
from tests.models import Spec, config_of, random_adapter, small_backbone
from tests.references import Bench, pixels, reference

DEMO = Path(__file__).parent.parent / "adapters" / "demo" / "tasks"
PARALLEL = SiteConfig(site="parallel", blocks=(0, 2), rank=4)
OVER_TIME = SiteConfig(site="parallel", blocks=(1,), rank=4, temporal=True)
SPECS = (
    Spec((PARALLEL,), 5),
    Spec((OVER_TIME,), 4, "avg", "trained", frames=4),
    Spec((OVER_TIME,), 3, "avg", "trained", frames=4, head="frames"),
    Spec((PARALLEL,), 60, "cls", "frozen", frames=3, head="frames", head_rank=20),
    Spec((), 40, "backbone", "frozen", frames=4, head="frames"),
    Spec((OVER_TIME,), 5, "avg", "trained", frames=4, head="attention", head_width=15),
    Spec((), 33, "cls", "trained", frames=2, head="attention", head_width=40),
    Spec((), 4, "avg", "frozen"),
    Spec((PARALLEL,), 60, "cls+avg"),
    Spec((OVER_TIME,), 20, "cls+avg", "none", frames=4),
)
TIMED = [number for number, spec in enumerate(SPECS) if spec.head != "mean"]
LARGE = [*TIMED, *(number for number, spec in enumerate(SPECS) if spec.pool == "cls+avg")]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(tmp_path_factory.mktemp("heads") / "vit")


@pytest.fixture(scope="module")
def adapters(backbone: Backbone) -> list[Adapter]:
    return [random_adapter(backbone, spec, number) for number, spec in enumerate(SPECS)]


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


@pytest.mark.parametrize("number", TIMED)
def test_a_head_takes_as_many_pages_as_it_says(backbone: Backbone, adapters: list[Adapter], number: int) -> None:
    adapter = adapters[number]
    packed = pack(adapter, backbone.layout, 8, torch.float32)
    assert len(packed.pages) == len(packed.page_bias) == packed.meta.pages == pages_of(adapter.config)
    groups = groups_of(adapter.config) * group_pages(adapter.config.head, adapter.config.frames)
    assert packed.meta.class_pages == len(packed.pages) - groups
    assert packed.pages.shape[1:] == (PAGE, backbone.layout.width)


def test_a_bank_of_one_thread_makes_room_for_them(backbone: Backbone, adapters: list[Adapter]) -> None:
    bank = SimpleBank(backbone.layout, {}, dtype=torch.float32, device=torch.device("cpu"))
    for number, adapter in enumerate(adapters):
        bank.put(str(number), adapter)
    assert bank.slabs.page_count >= sum(pages_of(adapter.config) for adapter in adapters)
    assert all(len(bank[str(number)].pages) == pages_of(adapter.config) for number, adapter in enumerate(adapters))


def test_a_file_without_such_a_head_says_nothing_of_it() -> None:
    assert VideoConfig(frames=4).model_dump_json() == '{"frames":4,"sampling":"uniform"}'
    told = VideoConfig(frames=4, head="frames", head_rank=3).model_dump_json()
    assert json.loads(told) == {"frames": 4, "sampling": "uniform", "head": "frames", "head_rank": 3}
    assert Sampling.of(VideoConfig.model_validate_json(told)) == Sampling.of(VideoConfig(frames=4))


@pytest.mark.parametrize("path", sorted(DEMO.glob("*.safetensors")), ids=lambda path: path.stem)
def test_the_config_of_an_older_file_is_written_as_it_was(path: Path) -> None:
    with safe_open(path, "pt") as file:
        told = file.metadata()["adaptserve"]
    assert read_header(path, FileLimits()).config.model_dump_json(exclude_none=True) == told


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"head": "later"}, "video.head"),
        ({"head": "mean", "head_rank": 2}, "video"),
        ({"head": "mean", "head_width": 2}, "video"),
        ({"head": "frames", "head_width": 2}, "video"),
        ({"head": "attention"}, "video"),
        ({"head": "attention", "head_width": 15, "head_rank": 1}, "video"),
        ({"head": "frames", "head_rank": -1}, "video.head_rank"),
        ({"head": "attention", "head_width": 5000}, "video.head_width"),
    ],
)
def test_a_head_that_contradicts_itself_is_refused(
    backbone: Backbone, tmp_path: Path, fields: dict[str, Any], field: str
) -> None:
    adapter = random_adapter(backbone, SPECS[2], 0)
    config = adapter.config.model_dump(mode="json", exclude_none=True)
    config["video"] = {"frames": 4, **fields}
    path = tmp_path / "a.safetensors"
    write_tensors(path, adapter.tensors, {"adaptserve": json.dumps(config)})
    with pytest.raises(BrokenAdapter) as caught:
        read_adapter(path, backbone.layout, FileLimits())
    assert caught.value.facts["field"] == field


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (Spec((), 49, frames=4, head="frames"), "labels"),
        (Spec((), 3, frames=4, head="frames", head_rank=49), "video.head_rank"),
        (Spec((), 3, frames=4, head="attention", head_width=46), "video.head_width"),
        (Spec((), 3, frames=49, head="attention", head_width=15), "video.frames"),
    ],
)
def test_a_head_wider_than_the_backbone_is_refused(backbone: Backbone, tmp_path: Path, spec: Spec, field: str) -> None:
    with pytest.raises(BrokenAdapter, match="on a backbone of this width") as caught:
        backbone.layout.check(config_of(backbone, spec), max_rank=99, max_classes=999, max_frames=99)
    assert caught.value.facts["field"] == field


@pytest.mark.parametrize("number", TIMED)
def test_tensors_of_another_shape_name_themselves(
    backbone: Backbone, adapters: list[Adapter], number: int, tmp_path: Path
) -> None:
    """Of other frames, of none, too many, or not a number."""
    adapter, path = adapters[number], tmp_path / "a.safetensors"

    def read(tensors: dict[str, torch.Tensor], **video: int) -> None:
        old = adapter.config.video
        assert old is not None
        config = adapter.config.model_copy(update={"video": old.model_copy(update=video)})
        write_adapter(path, config, tensors)
        read_adapter(path, backbone.layout, FileLimits())

    read(dict(adapter.tensors))
    with pytest.raises(BrokenAdapter, match="has shape"):
        read(dict(adapter.tensors), frames=adapter.config.frames + 1)
    for name in (name for name in adapter.tensors if name.startswith("head.")):
        with pytest.raises(BrokenAdapter, match=f"{name} is missing"):
            read({n: t for n, t in adapter.tensors.items() if n != name})
        with pytest.raises(BrokenAdapter, match=f"{name} has shape"):
            read({**adapter.tensors, name: adapter.tensors[name][:-1]})
        bad = adapter.tensors[name].clone()
        bad.view(-1)[-1] = torch.nan
        with pytest.raises(BrokenAdapter, match=f"{name} holds 1 values that are NaN"):
            read({**adapter.tensors, name: bad})
    with pytest.raises(BrokenAdapter, match="belongs to no site"):
        read({**adapter.tensors, "head.more.weight": torch.ones(1)})


def test_a_head_larger_than_a_server_takes_names_the_setting(backbone: Backbone) -> None:
    config = config_of(backbone, Spec((), 20, frames=8, head="frames"))
    assert pages_of(config) == 2 + 2 * 8
    layout = backbone.layout
    layout.check(config, max_rank=8, max_classes=18 * PAGE, max_frames=32)
    with pytest.raises(AdapterTooLarge, match="ADAPTSERVE_MAX_CLASSES=288") as caught:
        layout.check(config, max_rank=8, max_classes=17 * PAGE, max_frames=32)
    assert caught.value.facts == {"field": "video.head", "limit": 272, "value": 288, "settings": ["max_classes"]}
    assert [r.facts["field"] for r in refusals(config, layout, FileLimits(max_classes=100))] == ["video.head"]
    assert not refusals(config, layout, FileLimits())


@given(
    st.integers(48, 1024), st.integers(1, 64), st.integers(2, 2000), st.floats(2e5, 1e9),
)  # fmt: skip
def test_training_makes_heads_within_their_share(width: int, frames: int, classes: int, parameters: float) -> None:
    rank = rank_of_head(width, frames, classes, int(parameters))
    values = width_of_head(width, frames, classes, int(parameters))
    assert 0 <= rank <= min(width, classes)
    assert rank or classes <= width
    assert values % VALUES == 0
    assert VALUES <= values <= width // PAGE * VALUES
    most = max(HEAD_SHARE * int(parameters), classes * width / 2)
    size = rank * (frames * width + classes) if rank else classes * frames * width
    assert size + classes <= most or rank == 1
    size = values // VALUES * PAGE * (width + frames) + classes * (values + 1)
    assert size <= most or values == VALUES


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


def test_meta_of_a_plain_head_is_as_it_was(backbone: Backbone, adapters: list[Adapter]) -> None:
    meta = AdapterMeta.of(adapters[1].config, backbone.layout, digest="", parameters=1)
    assert (meta.head, meta.groups, meta.pages) == ("mean", 0, 1)


def test_a_head_of_two_vectors_counts_twice_and_takes_no_other_norm_or_head(backbone: Backbone) -> None:
    config = config_of(backbone, SPECS[8])
    assert pages_of(config) == 2 * pages_of(config.model_copy(update={"pool": "cls"})) == 8
    bounds = {"max_rank": 64, "max_frames": 8}
    backbone.layout.check(config, max_classes=128, **bounds)
    with pytest.raises(AdapterTooLarge, match="as large as one of 128 classes") as caught:
        backbone.layout.check(config, max_classes=112, **bounds)
    assert caught.value.facts["field"] == "pool"
    for changes in ({"norm": "trained"}, {"head": "frames", "frames": 4}):
        with pytest.raises(ValueError, match="cls\\+avg"):
            config_of(backbone, replace(SPECS[8], **changes))
