"""Labelled files: every layout is understood, every mistake is one clear line, bad files are listed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from adapters.backbone import Backbone
from adapters.errors import TrainingError
from adapters.media import MediaLimits, Preprocess, decode_image
from adapters.training.batches import Batches
from adapters.training.data import DataListing, check_classes, find_examples, split
from adapters.training.decoding import MediaExamples, Reader, Scanned, scan
from adapters.training.fit import FitConfig
from adapters.training.progress import Teller
from adapters.training.recipe import Recipe
from adapters.training.run import TrainingPlan, train
from tests.media_samples import clip, encode, scene
from tests.models import Spec, config_of, small_backbone

PNG = encode(scene(), "PNG")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return small_backbone(tmp_path_factory.mktemp("data") / "vit")


def fill(root: Path, **classes: int) -> Path:
    """Folders of different pictures; ``a__b`` stands for a/b."""
    for name, count in classes.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (folder / f"{i}.png").write_bytes(encode(Image.new("RGB", (40, 30), (8 * i, len(name), 9)), "PNG"))
    return root


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def message(data: Path) -> str:
    with pytest.raises(TrainingError) as caught:
        find_examples(data)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_one_folder_per_class(tmp_path: Path) -> None:
    listing = find_examples(fill(tmp_path, dog=3, cat=2))
    assert listing.modality == "image"
    assert listing.labels == ("cat", "dog")
    assert [e.name for e in listing.examples] == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "dog/2.png"]
    assert {e.part for e in listing.examples} == {None}


def test_train_and_val_folders_are_the_split(tmp_path: Path) -> None:
    listing = find_examples(fill(tmp_path, train__cat=2, train__dog=2, val__cat=1, val__dog=1))
    assert listing.labels == ("cat", "dog")
    train, held = split(listing.examples, 0.5, seed=0)
    assert [listing.examples[i].name for i in held] == ["val/cat/0.png", "val/dog/0.png"]
    assert len(train) == 4


def test_a_class_named_train_among_others_is_a_class(tmp_path: Path) -> None:
    assert find_examples(fill(tmp_path, train=2, bus=2, car=1)).labels == ("bus", "car", "train")


def test_a_table_of_paths_and_labels(tmp_path: Path) -> None:
    fill(tmp_path, a=2, b=2)
    lines = ["a/0.png, cat/tabby", "a/1.png,cat/tabby", '"b/0.png","dog, ""big"""', 'b/1.png,"dog, ""big"""']
    for head in ([], ["path,label"], ["Path,Label"]):
        listing = find_examples(table(tmp_path / "t.csv", *head, *lines))
        assert listing.labels == ("cat/tabby", 'dog, "big"')
        assert len(listing.examples) == 4


def test_a_table_may_bring_its_split(tmp_path: Path) -> None:
    fill(tmp_path, a=2, b=2)
    lines = ["a/0.png,a,train", "a/1.png,a,val", "b/0.png,b,train", "b/1.png,b,val"]
    listing = find_examples(table(tmp_path / "t.csv", "path,label,split", *lines))
    assert split(listing.examples, 0.2, seed=0) == ([0, 2], [1, 3])
    assert "for all or for none" in message(table(tmp_path / "u.csv", *lines, "a/2.png,a"))


def test_the_split_is_stratified_and_seeded(tmp_path: Path) -> None:
    examples = find_examples(fill(tmp_path, a=10, b=5, c=2)).examples
    train, held = split(examples, 0.2, seed=1)
    assert sorted(train + held) == list(range(17))
    assert [sum(examples[i].label == c for i in held) for c in "abc"] == [2, 1, 1]
    assert split(examples, 0.2, seed=1) == (train, held)
    assert any(split(examples, 0.2, seed=s)[1] != held for s in range(2, 6))


def test_the_digest_tells_data_apart(tmp_path: Path) -> None:
    fill(tmp_path, a=2, b=2)
    before = find_examples(tmp_path).digest
    assert find_examples(tmp_path).digest == before
    (tmp_path / "a" / "1.png").write_bytes(PNG)
    assert find_examples(tmp_path).digest != before


def test_files_that_are_no_pictures_are_listed(tmp_path: Path) -> None:
    fill(tmp_path, a=2, b=2)
    (tmp_path / "a" / "notes.txt").write_text("hello")
    (tmp_path / "a" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "b" / "empty.png").touch()
    (tmp_path / "README").write_text("about")
    listing = find_examples(tmp_path)
    assert len(listing.examples) == 4
    assert {b.name for b in listing.bad} == {"a/notes.txt", "b/empty.png", "README"}
    listed = table(tmp_path / "t.csv", "a/0.png,a", "b/0.png,b", "gone.png,b", "nul\0.png,a")
    assert {b.name for b in find_examples(listed).bad} == {"gone.png", "nul\0.png"}


def test_mistakes_in_folders_are_one_line_each(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "none")
    assert "no picture or clip was found" in message(fill(tmp_path / "1", a=0))
    assert "class 'b' has no readable picture" in message(fill(tmp_path / "2", a=1, b=0))
    assert "one class, 'a'" in message(fill(tmp_path / "3", a=2))
    assert "class 'val/b' has no" in message(fill(tmp_path / "4", train__a=1, train__b=1, val__a=1, val__b=0))
    mixed = fill(tmp_path / "5", a=1, b=1)
    (mixed / "b" / "c.mp4").write_bytes(clip(count=2))
    assert "mixes 2 pictures with 1 clips, such as a/0.png and b/c.mp4" in message(mixed)
    odd = fill(tmp_path / "7", a=1, b=1)
    (odd / "a").rename(odd / "a\udcff")
    assert "cannot be shown" in message(odd)
    only_text = fill(tmp_path / "6", a=0, b=0)
    (only_text / "a" / "x.png").write_text("not a picture")
    assert "1 files are none, such as a/x.png" in message(only_text)


def test_mistakes_in_tables_are_one_line_each(tmp_path: Path) -> None:
    fill(tmp_path, a=2)
    assert "line 2: expected path,label" in message(table(tmp_path / "1.csv", "path,label", "a/0.png"))
    assert "257 characters" in message(table(tmp_path / "2.csv", f"a/0.png,{'x' * 257}"))
    assert "the label has 0 characters" in message(table(tmp_path / "3.csv", "a/0.png,"))
    assert "two labels, 'x' and 'y'" in message(table(tmp_path / "4.csv", "a/0.png,x", "a/0.png,y"))
    assert "more than once" in message(table(tmp_path / "5.csv", "a/0.png,x", "a/0.png,x"))
    assert "one class, 'x'" in message(table(tmp_path / "6.csv", "a/0.png,x", "a/1.png,x"))
    assert "no picture or clip" in message(table(tmp_path / "7.csv", ""))
    (tmp_path / "8.csv").write_bytes(PNG)
    assert "no CSV file" in message(tmp_path / "8.csv")


def test_an_unreadable_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, a=1, b=1)
    whole = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "b cannot be read: permission denied" in message(tmp_path)


def test_a_split_needs_enough_of_each_class(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="class 'b' has one file"):
        split(find_examples(fill(tmp_path / "1", a=3, b=1)).examples, 0.2, 0)
    lost = find_examples(fill(tmp_path / "2", train__a=1, val__a=1, val__b=1)).examples
    with pytest.raises(TrainingError, match="'b' is in 'val' but not in 'train'"):
        split(lost, 0.2, 0)


def scanned(listing: DataListing, reader: Reader, **options: int) -> Scanned:
    return scan(listing.examples, reader, threads=2, **options)


@pytest.mark.parametrize("cache", [0, 2**20])
def test_pixels_are_those_that_the_server_sees(tmp_path: Path, backbone: Backbone, cache: int) -> None:
    listing = find_examples(fill(tmp_path, a=6, b=7))
    reader = Reader(config_of(backbone, Spec()), MediaLimits())
    found = scanned(listing, reader, cache_bytes=cache)
    data = MediaExamples(found, [1, 8], {"a": 0, "b": 1}, reader)
    assert data.in_memory == (cache > 0)
    assert len(data) == 2
    for (pixels, label), example in zip((data[0], data[1]), data.examples, strict=True):
        expected = Preprocess(backbone.input)(decode_image(example.path.read_bytes(), MediaLimits()))
        assert np.array_equal(pixels, expected[None])
        assert pixels.dtype == torch.uint8
        assert label == (example.label == "b")


def test_broken_files_are_found_and_their_class_may_be_lost(tmp_path: Path, backbone: Backbone) -> None:
    fill(tmp_path, a=2, b=1)
    (tmp_path / "a" / "0.png").write_bytes(PNG[:100])
    listing = find_examples(tmp_path)
    reader = Reader(config_of(backbone, Spec()), MediaLimits())
    found = scanned(listing, reader)
    assert [b.name for b in found.bad] == ["a/0.png"]
    assert "does not decode" in found.bad[0].reason
    check_classes(listing, found.examples)
    (tmp_path / "b" / "0.png").write_bytes(PNG[:100])
    with pytest.raises(TrainingError, match="class 'b' has no readable picture"):
        check_classes(listing, scanned(listing, reader).examples)
    tight = scanned(listing, Reader(config_of(backbone, Spec()), MediaLimits(max_bytes=50)))
    assert len(tight.bad) == 3


def numbered(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count)[:, None], torch.arange(count) % 2)


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("seed", [None, 4])
def test_batches_come_in_the_order_of_a_loader(threads: int, seed: int | None) -> None:
    """With a seed also what is drawn for it: the generator goes on alike."""
    ours, theirs = (None if seed is None else torch.Generator().manual_seed(seed) for _ in range(2))
    data = numbered(25)
    batches = Batches(data, 8, threads=threads, generator=ours)
    loader = DataLoader(data, batch_size=8, shuffle=seed is not None, generator=theirs)
    assert len(batches) == len(loader)
    for _ in range(2):
        for (found, labels), (expected, truth) in zip(batches, loader, strict=True):
            assert torch.equal(found, expected)
            assert torch.equal(labels, truth)
    if ours and theirs:
        assert torch.equal(ours.get_state(), theirs.get_state())


def test_a_file_that_is_gone_ends_the_batches(tmp_path: Path, backbone: Backbone) -> None:
    listing = find_examples(fill(tmp_path, a=20, b=20))
    reader = Reader(config_of(backbone, Spec()), MediaLimits())
    found = scanned(listing, reader, cache_bytes=0)
    data = MediaExamples(found, range(40), {"a": 0, "b": 1}, reader)
    (tmp_path / "b" / "3.png").unlink()
    before = threading.active_count()
    with pytest.raises(FileNotFoundError):
        list(Batches(data, 4, threads=2))
    assert threading.active_count() == before


def test_nothing_is_decoded_in_processes_or_shared_memory(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container has 64 MiB of it, on which a large set ended in a bus error."""

    def refuse(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    (tmp_path / "d").mkdir()
    plan = TrainingPlan(fill(tmp_path / "d", a=6, b=6), tmp_path / "a.safetensors", Recipe("t"),
                FitConfig(epochs=1, batch=4, workers=3), cache_bytes=0)  # fmt: skip
    assert train(plan, backbone, Teller()).config.labels == ("a", "b")


def test_clips_decode_in_threads(tmp_path: Path, backbone: Backbone) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.mp4").write_bytes(clip(count=6))
    listing = find_examples(tmp_path)
    assert listing.modality == "video"
    reader = Reader(config_of(backbone, Spec(frames=3)), MediaLimits())
    found = scanned(listing, reader, cache_bytes=0)
    data = MediaExamples(found, [0, 1], {"a": 0, "b": 1}, reader)
    ((pixels, labels),) = Batches(data, 2, threads=2)
    assert pixels.shape == (2, 3, 3, 32, 32)
    assert labels.tolist() == [0, 1]
    assert torch.equal(pixels[0], data[0][0])
    levels = pixels[0].float().mean((1, 2, 3))
    assert (levels.diff() > 4).all()  # frames in time order
