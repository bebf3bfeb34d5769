"""The library's front door: five lines for an answer, and the same answers as a server and as timm's own model."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

import adapters
from adapters import Adapter, Prediction, Predictor
from adapters.errors import BrokenMedia
from tests.houses import Kit, photograph, sites
from tests.models import Spec, close, random_adapter
from tests.predictors import SPECS, clip, made, predictor, same

__all__ = ["clip", "predictor"]
ROOT = Path(__file__).parent.parent


def code_of(page: str) -> str:
    """All indented lines of a page, as they are written there."""
    text = (ROOT / page).read_text()
    return "\n".join(line.removeprefix("    ") for line in text.splitlines() if line.startswith("    ") or not line)


def test_the_readme_s_lines_run_as_they_are_written_and_print_what_it_says() -> None:
    section = (ROOT / "README.md").read_text().split("## In Python")[1].split("\n## ")[0]
    lines = [line.removeprefix("    ") for line in section.splitlines() if line.startswith("    ")]
    code = [line for line in lines if not line.startswith(("Prediction(", "[Prediction("))]
    assert len(code) == 5
    command = [sys.executable, "-W", "error", "-c", "\n".join(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    number = re.compile(r"0\.\d+")
    assert number.sub("", done.stdout).splitlines() == number.sub("", "\n".join(lines[5:])).splitlines()
    found, told = (np.array(number.findall(text), float) for text in (done.stdout, "\n".join(lines)))
    np.testing.assert_allclose(found, told, rtol=0, atol=1e-3)


def test_the_page_s_lines_run_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    printed: list[object] = []
    namespace: dict[str, object] = {"print": lambda *values: printed.extend(values)}
    exec(code_of("docs/LIBRARY.md"), namespace)
    assert isinstance(namespace["predictor"], Predictor)
    assert printed[0] == "9"
    assert {"2", "3", "5"} == set(printed[6])
    assert printed[-1] == ("digits", "digit-collage")


def test_only_what_is_used_is_imported() -> None:
    code = "import sys, adapters, adapters.config, adapters.scores; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    assert set(adapters.__all__) <= set(dir(adapters))
    assert [type(getattr(adapters, name)).__name__ for name in adapters.__all__].count("module") == 0
    with pytest.raises(AttributeError, match="no attribute 'Predictr'"):
        _ = adapters.Predictr  # type: ignore[attr-defined]


def test_an_adapter_that_adds_nothing_is_timm_s_own_model(kit: Kit) -> None:
    backbone = kit.backbone
    adapter = random_adapter(backbone, Spec(sites(), 5), 3, task="zero")
    tensors = {n: torch.zeros_like(t) if ".up." in n else t for n, t in adapter.tensors.items()}
    found = Predictor(backbone, Adapter(adapter.config, tensors, adapter.digest))(photograph())
    data = backbone.input
    transform = create_transform(
        data.size, interpolation=data.interpolation, mean=data.mean, std=data.std, crop_pct=data.crop_pct
    )
    image = transform(Image.open(io.BytesIO(photograph())).convert("RGB"))[None]
    with torch.inference_mode():
        vector = backbone.model.forward_head(backbone.model.forward_features(image), pre_logits=True)
        head = torch.nn.functional.linear(vector, tensors["head.weight"], tensors["head.bias"])[0]
    close(torch.tensor(found.logits), head.double())


def test_scores_are_what_the_file_says(predictor: Predictor) -> None:
    one, many = predictor(photograph(), "images"), predictor(photograph(), "labels")
    assert one.scores.sum() == pytest.approx(1)
    np.testing.assert_allclose(many.scores, 1 / (1 + np.exp(-many.logits.astype(np.float64))))
    assert one.best == Prediction(one.labels[one.scores.argmax()], int(one.scores.argmax()), one.scores.max())
    assert [p.index for p in one.top_k(3)] == list(np.argsort(-one.scores, kind="stable")[:3])
    assert one.top_k(99)[-1].score == one.scores.min()
    assert {p.index for p in many.above(0.6)} == set(np.flatnonzero(many.scores >= 0.6))
    assert repr(one.best) in repr(one)
    assert repr(predictor).startswith("Predictor(vit+random:0: images, clips")
    assert len(repr(many)) < 200
    for values in (one.scores, one.logits):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0
    with pytest.raises(AttributeError):
        one.task = "other"  # type: ignore[misc]


def test_a_picture_is_the_same_as_path_bytes_and_pillow_s(predictor: Predictor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    picture = Image.open(io.BytesIO(photograph(3, "PNG"))).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    for number, (kind, source) in enumerate({"PNG": picture, "JPEG": picture.convert("RGB"), "WEBP": picture}.items()):
        path = tmp_path / f"{number}"
        source.save(path, kind, exif=exif)
        with Image.open(path) as opened:
            found = predictor.many([path, str(path), path.read_bytes(), opened], "images")
        assert all(np.array_equal(each.logits, found[0].logits) for each in found)
    grey = Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 20)
    grey.save(tmp_path / "grey.png")
    assert np.array_equal(predictor(grey, "late").logits, predictor(tmp_path / "grey.png", "late").logits)


def test_a_clip_is_the_same_as_path_and_bytes_and_may_be_a_list_of_pictures(
    predictor: Predictor, clip: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip)
    first, second = predictor.many([path, clip], "clips")
    assert np.array_equal(first.logits, second.logits)
    assert first.bad_frames == 0
    pictures = [Image.open(io.BytesIO(photograph(n))) for n in range(8)]
    found = predictor(pictures, "clips")
    same(found, predictor(pictures[1::2], "clips"))  # the middles of four equal parts
    assert not np.allclose(found.logits, predictor(pictures[::-1], "clips").logits)
    short = predictor(pictures[:1], "clips")
    same(short, predictor(tuple(pictures[:1] * 4), "clips"))


def test_many_tasks_on_one_picture_are_as_one_after_another(predictor: Predictor) -> None:
    picture = photograph(5)
    names = ["images", "labels", "linear", "late"]
    together = predictor.each_task(picture, names)
    assert list(together) == names
    for name in names:
        same(together[name], predictor(picture, name))
    assert predictor.each_task(picture, ["late", "late"]).keys() == {"late"}


def test_tasks_on_one_picture_share_what_none_of_them_adapts(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    whole = predictor.backbone.model.forward_features
    monkeypatch.setattr(predictor.backbone.model, "forward_features", lambda x: (rows.append(len(x)), whole(x))[1])
    predictor.each_task(photograph(5), ["images", "labels", "linear", "late"])
    predictor.many([photograph(5)] * 3, "late")
    predictor.many([photograph(n) for n in range(3)], "late")
    assert rows == [1, 1, 3]


def test_a_moving_picture_is_a_picture_to_some_tasks_and_a_clip_to_others(predictor: Predictor) -> None:
    frames = [Image.open(io.BytesIO(photograph(n, "PNG"))) for n in range(4)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    found = predictor.each_task(file.getvalue())
    assert tuple(found) == predictor.tasks == tuple(SPECS)
    for name, result in found.items():
        same(result, predictor(file.getvalue(), name))


def test_more_than_a_batch_of_any_mix_keeps_the_order(kit: Kit, clip: bytes) -> None:
    predictor = Predictor(kit.backbone, *(made(kit.backbone, name) for name in SPECS), batch_rows=6)
    sources = [photograph(n) for n in range(9)]
    tasks = [list(SPECS)[n % len(SPECS)] for n in range(9)]
    mixed = [clip if task == "clips" else source for source, task in zip(sources, tasks, strict=True)]
    for source, task, found in zip(mixed, tasks, predictor.many(iter(mixed), iter(tasks)), strict=True):
        same(found, predictor(source, task))
    assert predictor.many([], "late") == []
    small = Predictor(kit.backbone, made(kit.backbone, "clips"), batch_rows=2)
    same(small(clip), predictor(clip, "clips"))  # one input that is larger than a batch goes alone


def test_a_batch_has_no_more_rows_than_were_allowed(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(kit.backbone, made(kit.backbone, "late"), batch_rows=4)
    sizes: list[int] = []
    forward = predictor._forward
    monkeypatch.setattr(predictor, "_forward", lambda jobs: (sizes.append(len(jobs)), forward(jobs))[1])
    predictor.many([photograph(n) for n in range(10)])
    assert sizes == [4, 4, 2]


def test_a_stream_is_read_a_batch_at_a_time_also_when_its_picture_is_one_object_that_changes(kit: Kit) -> None:
    predictor, read = Predictor(kit.backbone, made(kit.backbone, "late"), batch_rows=2), []
    canvas = Image.new("RGB", (64, 64))

    def endless() -> object:
        while True:
            canvas.paste((len(read) * 40, 90, 10), (0, 0, 64, 64))
            read.append(canvas.copy())
            yield canvas

    results = predictor.stream(endless())
    found = [next(results) for _ in range(4)]
    assert len(read) <= 6
    for picture, result in zip(read, found, strict=False):
        same(result, predictor(picture))


def test_pixels_that_are_ready_give_numbers(predictor: Predictor) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 3, 32, 32), dtype=np.uint8)
    found = predictor.logits(pixels, ["late", "images", "late"])
    assert [each.shape for each in found] == [(7,), (5,), (7,)]
    one = Predictor(predictor.backbone, predictor.adapter("late"))
    assert not np.allclose(found[2], found[0])
    np.testing.assert_allclose(one.logits(pixels[2:])[0], found[2], rtol=0, atol=1e-4)
    for wrong in (pixels.astype(np.float32), pixels[:, :, :, :9], pixels[:, 0]):
        with pytest.raises(BrokenMedia, match=r"task 'late' takes uint8 \[1, 3, 32, 32\]"):
            predictor.logits(wrong, "late")
