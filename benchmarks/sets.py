"""Small labelled sets of pictures and clips on which the defaults of training are chosen and tried.

``CHOSEN_ON`` are those that the defaults were chosen on, ``KEPT_ASIDE`` those that they were only tried on. Some are
drawn here, some come from folders that are not shipped (docs/RESULTS.md says where they are from). It knows no model.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Part = tuple[Tensor, Tensor]
"""Pixels (items, frames, 3, side, side) uint8 and labels (items,) int64."""
FRAMES = 8
FONTS = Path("/usr/share/fonts/truetype")  # Debian: fonts-dejavu, fonts-liberation
ROTATIONS = 4
MOST_DOTS = 6
FOUR = ("sit", "sitdown", "stand", "standup")
PAIR = ("sitdown", "standup")


@dataclass(frozen=True)
class Set:
    """``load`` takes the folder of the data and the side in pixels; gives training and held-out examples."""

    name: str
    about: str
    load: Callable[[Path, int], tuple[Part, Part]]
    frames: int = 1


def _stack(pictures: Iterable[Image.Image], side: int) -> Tensor:
    found = [np.asarray(p.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) for p in pictures]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)[:, None].contiguous()


def _split(items: list[Image.Image], labels: list[int], train: NDArray[np.bool_], side: int) -> tuple[Part, Part]:
    pixels, truth = _stack(items, side), torch.tensor(labels)
    chosen = torch.from_numpy(train)
    return (pixels[chosen], truth[chosen]), (pixels[~chosen], truth[~chosen])


def digits(_root: Path, side: int, count: int = 1000) -> tuple[Part, Part]:
    """scikit-learn's scans of handwritten digits."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    items = [Image.fromarray(np.round(scan * (255 / 16)).astype(np.uint8)) for scan in bunch.images]
    order = np.random.default_rng(0).permutation(len(items))
    return _split(items, bunch.target.tolist(), np.isin(np.arange(len(items)), order[:count]), side)


def _cifar(
    root: Path, part: str, classes: tuple[str, ...], each: int, seed: int
) -> tuple[list[Image.Image], list[int]]:
    random, items, labels = np.random.default_rng(seed), [], []
    for label, name in enumerate(classes):
        paths = sorted((root / "cifar10" / part / name).iterdir())
        for index in random.permutation(len(paths))[:each]:
            with Image.open(paths[index]) as picture:
                items.append(picture.convert("RGB"))
            labels.append(label)
    return items, labels


CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def photographs(
    root: Path, side: int, classes: tuple[str, ...] = CIFAR, each: int = 100, held: int = 100
) -> tuple[Part, Part]:
    """CIFAR-10, so many training and test pictures of each class."""
    parts = []
    for part, count in (("train", each), ("test", held)):
        items, labels = _cifar(root, part, classes, count, seed=11)
        parts.append((_stack(items, side), torch.tensor(labels)))
    return parts[0], parts[1]


def rotations(root: Path, side: int) -> tuple[Part, Part]:
    """How far a photograph of a horse, ship or truck was turned."""
    parts = []
    for part, count in (("train", 320), ("test", 320)):
        items, _ = _cifar(root, part, ("horse", "ship", "truck"), count, seed=12)
        turns = [n % ROTATIONS for n in range(len(items))]
        turned = [p.rotate(90 * turn) for p, turn in zip(items, turns, strict=True)]
        parts.append((_stack(turned, side), torch.tensor(turns)))
    return parts[0], parts[1]


def signs(root: Path, side: int) -> tuple[Part, Part]:
    """Photographs of hands that show a digit, one in five held out."""
    items, labels = [], []
    for digit in range(10):
        for path in sorted((root / "sign_digits" / str(digit)).iterdir()):
            with Image.open(path) as picture:
                items.append(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
            labels.append(digit)
    held = np.zeros(len(items), bool)
    held[np.random.default_rng(0).permutation(len(items))[: len(items) // 5]] = True
    return _split(items, labels, ~held, side)


def letters(_root: Path, side: int) -> tuple[Part, Part]:
    """Capitals at random places, sizes and colours; some of the fonts are held out."""
    fonts = [p for p in sorted(FONTS.rglob("*.ttf")) if p.name.startswith(("DejaVuS", "Liberation"))]
    random, parts = np.random.default_rng(3), []
    for chosen, each in ((fonts[::2], 40), (fonts[1::2], 20)):
        items, labels = [], []
        for label in range(26):
            for _ in range(each):
                canvas = Image.new("RGB", (64, 64), tuple(random.integers(0, 256, 3).tolist()))
                font = ImageFont.truetype(str(chosen[random.integers(len(chosen))]), int(random.integers(26, 46)))
                place = tuple(random.integers(0, 24, 2).tolist())
                ImageDraw.Draw(canvas).text(place, chr(65 + label), tuple(random.integers(0, 256, 3).tolist()), font)
                items.append(canvas)
                labels.append(label)
        parts.append((_stack(items, side), torch.tensor(labels)))
    return parts[0], parts[1]


def dots(_root: Path, side: int) -> tuple[Part, Part]:
    """How many dots there are, one to six, of one colour on another."""
    random, parts = np.random.default_rng(4), []
    for count in (600, 600):
        items, labels = [], []
        for n in range(count):
            canvas = Image.new("RGB", (64, 64), tuple(random.integers(0, 128, 3).tolist()))
            cells = random.permutation(16)[: 1 + n % MOST_DOTS]
            colour = tuple(random.integers(128, 256, 3).tolist())
            for cell in cells:
                x, y = 16 * (cell % 4) + random.integers(2, 6), 16 * (cell // 4) + random.integers(2, 6)
                ImageDraw.Draw(canvas).ellipse((x, y, x + 8, y + 8), colour)
            items.append(canvas)
            labels.append(n % MOST_DOTS)
        parts.append((_stack(items, side), torch.tensor(labels)))
    return parts[0], parts[1]


def on_photographs(root: Path, side: int) -> tuple[Part, Part]:
    """Handwritten digits written over photographs."""
    from sklearn.datasets import load_digits

    bunch, random = load_digits(), np.random.default_rng(5)
    items, _ = _cifar(root, "train", CIFAR, 180, seed=13)
    order = random.permutation(len(bunch.images))
    made, labels = [], []
    for place, index in enumerate(order):
        scan = np.round(bunch.images[index] * (255 / 16)).astype(np.uint8)
        mask = Image.fromarray(scan).resize((32, 32), Image.Resampling.BICUBIC)
        ink = Image.new("RGB", (32, 32), tuple(random.integers(0, 256, 3).tolist()))
        made.append(Image.composite(ink, items[place], mask))
        labels.append(int(bunch.target[index]))
    return _split(made, labels, np.arange(len(made)) < 1000, side)


def actions(root: Path, side: int, classes: tuple[str, ...] | None = None) -> tuple[Part, Part]:
    """Thermal clips of people, split by person, middles of eight equal parts."""
    import av

    folder = root / "thermal_actions"
    names = classes or tuple(sorted(p.name for p in (folder / "train").iterdir()))
    parts = []
    for part in ("train", "val"):
        clips, labels = [], []
        for label, name in enumerate(names):
            for path in sorted((folder / part / name).iterdir()):
                with av.open(str(path)) as clip:
                    shown = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in clip.decode(video=0)]
                chosen = [shown[int((i + 0.5) * len(shown) / FRAMES)] for i in range(FRAMES)]
                clips.append(_stack(chosen, side)[:, 0])
                labels.append(label)
        parts.append((torch.stack(clips), torch.tensor(labels)))
    return parts[0], parts[1]


CHOSEN_ON = (
    Set("digits", "scikit-learn's handwritten digits, 1,000 to train", digits),
    Set("photographs", "CIFAR-10, 1,000 to train", photographs),
    Set("signs", "Sign-Language-Digits, one in five held out", signs),
    Set("letters", "capitals in held-out fonts", letters),
    Set("rotations", "how far a photograph was turned", rotations),
    Set("four actions", "thermal clips, by person", partial(actions, classes=FOUR), FRAMES),
)
KEPT_ASIDE = (
    Set("cat or dog", "CIFAR-10, 200 to train", partial(photographs, classes=("cat", "dog"), held=500)),
    Set("few photographs", "CIFAR-10, 10 a class", partial(photographs, each=10)),
    Set("dots", "how many dots there are", dots),
    Set("digits on photographs", "handwritten digits over CIFAR-10", on_photographs),
    Set("sit down or stand up", "thermal clips, by person", partial(actions, classes=PAIR), FRAMES),
)


def unpack(archives: Path, folder: Path) -> Path:
    """The data's archives, unpacked once."""
    for name, target in (("cifar10.tar.xz", "cifar10"), ("sign_digits.tar", "."), ("thermal_actions.tar", ".")):
        mark = folder / f".{name}"
        if not mark.exists():
            with tarfile.open(fileobj=io.BytesIO((archives / name).read_bytes())) as archive:
                archive.extractall(folder / target, filter="data")
            mark.touch()
    return folder
