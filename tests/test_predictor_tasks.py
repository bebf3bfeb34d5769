"""A predictor's tasks come, go and are asked by threads; what it cannot do or answer is said in words."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import adapters.bank.slabs
from adapters import Adapter, MediaLimits, Predictor
from adapters.errors import (
    AdapterError,
    AdaptError,
    AdapterTooLarge,
    BrokenAdapter,
    BrokenMedia,
    MediaTooLarge,
    NoRoom,
    UnknownTask,
    UnsupportedMedia,
    WrongBase,
    WrongModality,
)
from adapters.file import write_adapter
from tests.houses import Kit, photograph, sites
from tests.models import Spec, random_adapter, small_backbone
from tests.predictors import clip, made, predictor, same

__all__ = ["clip", "predictor"]


def test_adapters_come_and_go_and_the_others_stay_as_they_are(kit: Kit) -> None:
    predictor = Predictor(kit.backbone)
    assert predictor.tasks == ()
    with pytest.raises(UnknownTask, match=r"has none; add\(adapter\)"):
        predictor(photograph())
    alone = {name: Predictor(kit.backbone, made(kit.backbone, name))(photograph()) for name in ("images", "late")}
    predictor.add(made(kit.backbone, "images"))
    same(predictor(photograph()), alone["images"])
    predictor.add(made(kit.backbone, "late"))
    wide = random_adapter(kit.backbone, Spec(sites(rank=40), 300, "avg"), 8, task="wide")
    predictor.add(wide)
    same(predictor(photograph(), "wide"), Predictor(kit.backbone, wide)(photograph()))
    for name, expected in alone.items():
        same(predictor(photograph(), name), expected)
    predictor.add(made(kit.backbone, "late", seed=50))  # in the place of the old one
    assert predictor.tasks == ("images", "late", "wide")
    assert not np.allclose(predictor(photograph(), "late").logits, alone["late"].logits)
    predictor.add(made(kit.backbone, "late"), task="late-1")
    found = predictor(photograph(), "late-1")
    assert (found.task, predictor.adapter("late-1").config.task) == ("late-1", "late")
    np.testing.assert_allclose(found.logits, alone["late"].logits, rtol=0, atol=1e-3)
    predictor.remove("wide")
    with pytest.raises(UnknownTask, match="there is no task 'wide'; the predictor has images, late, late-1"):
        predictor(photograph(), "wide")
    with pytest.raises(UnknownTask):
        predictor.remove("wide")
    same(predictor(photograph(), "images"), alone["images"])


def test_what_changes_while_a_stream_is_read_is_never_a_wrong_answer(kit: Kit) -> None:
    predictor = Predictor(kit.backbone, made(kit.backbone, "late"), batch_rows=2)
    expected = [predictor(photograph(n)) for n in range(6)]
    results = predictor.stream([photograph(n) for n in range(6)])
    same(next(results), expected[0])
    predictor.add(random_adapter(kit.backbone, Spec((), 2), 1, task="late"))
    same(next(results), expected[1])  # of the batch that was computed before
    with pytest.raises(UnknownTask, match="task 'late' was removed or replaced"):
        next(results)


def test_threads_take_turns(kit: Kit, predictor: Predictor) -> None:
    expected = {name: predictor(photograph(7), name) for name in ("images", "labels", "late")}
    shared = Predictor(kit.backbone, *(made(kit.backbone, name) for name in expected))

    def ask(number: int) -> None:
        if number % 7 == 3:
            shared.add(made(kit.backbone, "linear", number), task=f"n{number}")
        name = list(expected)[number % 3]
        same(shared(photograph(7), name), expected[name])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(60)))
    assert len(shared.tasks) == 3 + 9


def test_room_that_is_given_back_is_used_again(kit: Kit) -> None:
    predictor = Predictor(kit.backbone, made(kit.backbone, "late"), slots=3)
    slabs = predictor._forward.slabs
    for seed in range(12):
        predictor.add(made(kit.backbone, "late", seed), task="other")
        predictor.remove("other")
    assert predictor._forward.slabs is slabs
    for seed in range(12):
        predictor.add(made(kit.backbone, "late", seed), task=f"n{seed}")
    assert predictor._forward.slabs.slots < 30


def test_an_adapter_that_there_is_no_memory_for_changes_nothing(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(kit.backbone, made(kit.backbone, "images"), slots=2)
    expected = predictor(photograph())
    monkeypatch.setattr(adapters.bank.slabs, "plane_of", lambda *_: Huge())
    for name in ("late", "labels"):  # into a slot that is free, and into a bank that must grow
        with pytest.raises(NoRoom):
            predictor.add(made(kit.backbone, name))
    assert predictor.tasks == ("images",)
    assert np.array_equal(predictor(photograph()).logits, expected.logits)
    monkeypatch.undo()
    predictor.add(made(kit.backbone, "late"))
    assert len(predictor.each_task(photograph())) == 2


class Huge:
    """As much as no machine has."""

    elements = 2**50


def test_a_file_is_checked_when_it_is_loaded_and_when_it_is_added(kit: Kit, tmp_path: Path) -> None:
    other = small_backbone(tmp_path / "other", "dinov2")
    adapter = made(kit.backbone, "late")
    path = tmp_path / "late.safetensors"
    digest = write_adapter(path, adapter.config, adapter.tensors)
    loaded = Adapter.load(path, kit.backbone)
    assert (loaded.digest, loaded.config) == (digest, adapter.config)
    assert Adapter.load(str(path)).digest == digest
    with pytest.raises(WrongBase, match="the backbone here is other"):
        Adapter.load(path, other)
    with pytest.raises(WrongBase, match="train it on this one, or load that one"):
        Predictor(other, Adapter.load(path))
    cut = {name: tensor for name, tensor in adapter.tensors.items() if name != "output.2.up.bias"}
    write_adapter(path, adapter.config, cut)
    with pytest.raises(BrokenAdapter, match=r"tensor output\.2\.up\.bias is missing"):
        Adapter.load(path, kit.backbone)
    predictor = Predictor(kit.backbone, adapter)
    with pytest.raises(BrokenAdapter, match=r"tensor output\.2\.up\.bias is missing"):
        predictor.add(Adapter.load(path), task="cut")
    assert predictor.tasks == ("late",)
    with pytest.raises(FileNotFoundError):
        Adapter.load(tmp_path / "nowhere.safetensors")


def test_errors_say_what_to_do(predictor: Predictor, kit: Kit, clip: bytes, tmp_path: Path) -> None:
    def says(kind: type[Exception], words: str, source: object, task: str | None = "images") -> None:
        with pytest.raises(kind, match=words):
            predictor(source, task)  # type: ignore[arg-type]

    says(UnknownTask, "there is no task 'cats'; the predictor has images, clips, labels", photograph(), "cats")
    says(UnknownTask, "which task", photograph(), None)
    says(WrongModality, "task images takes pictures, a clip came", clip)
    says(WrongModality, "task clips takes clips, a picture came", photograph(), "clips")
    says(WrongModality, "task clips takes clips, a picture came", Image.new("RGB", (9, 9)), "clips")
    says(WrongModality, "task images takes pictures, a clip came", [Image.new("RGB", (9, 9))])
    says(BrokenMedia, "the clip has no pictures", [], "clips")
    says(UnsupportedMedia, "type ndarray, which is not read here; send a path, bytes", np.zeros((9, 9, 3)))
    says(UnsupportedMedia, "type list", ["a.png"], "clips")
    says(FileNotFoundError, "nowhere", tmp_path / "nowhere.png")
    says(BrokenMedia, "does not decode", photograph()[:300])
    (tmp_path / "cut.jpg").write_bytes(photograph(size=(900, 700))[:5000])
    with Image.open(tmp_path / "cut.jpg") as cut:
        says(BrokenMedia, "does not decode", cut)
    strict = Predictor(kit.backbone, made(kit.backbone, "late"), limits=MediaLimits(max_pixels=1000, max_bytes=10**6))
    for source in (photograph(), Image.new("RGB", (90, 70))):
        with pytest.raises(MediaTooLarge, match=r"allow more with limits=MediaLimits\(max_pixels=\.\.\.\)"):
            strict(source)
    with pytest.raises(MediaTooLarge, match=r"MediaLimits\(max_bytes"):
        strict(b"\xff\xd8" + bytes(10**6))
    with pytest.raises(AdapterError, match=r"two adapters are of task 'late'.*task='late-2'"):
        Predictor(kit.backbone, made(kit.backbone, "late"), made(kit.backbone, "late"))
    with pytest.raises(AdapterError, match="no name for a task"):
        strict.add(made(kit.backbone, "late"), task="Not a name")
    with pytest.raises(AdapterTooLarge, match=r"clips of 4 frames, at most 2 .* limits=MediaLimits\(max_frames=4\)"):
        Predictor(kit.backbone, made(kit.backbone, "clips"), limits=MediaLimits(max_frames=2))
    for one in ("a.png", tmp_path, photograph(), Image.new("RGB", (9, 9))):
        with pytest.raises(UnsupportedMedia, match=r"one input alone.* ask predictor\(source\)"):
            predictor.many(one, "images")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shorter"):
        predictor.many([photograph()] * 3, ["late"])
    assert issubclass(UnknownTask, AdaptError)


def test_scores_that_are_not_numbers_are_an_error(kit: Kit) -> None:
    adapter = made(kit.backbone, "linear")
    huge = {name: torch.full_like(tensor, 3e38) for name, tensor in adapter.tensors.items()}
    predictor = Predictor(kit.backbone, adapter)
    predictor.add(Adapter(adapter.config, huge, adapter.digest), task="huge")
    with pytest.raises(BrokenAdapter, match="task 'huge' computed scores that are not finite"):
        predictor.each_task(photograph())
    assert predictor(photograph(), "linear").scores.sum() == pytest.approx(1)
