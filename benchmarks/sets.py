"""Small labelled sets of pictures and clips on which the defaults of training are chosen and tried.

``CHOSEN_ON`` are those that AdaptFormer's defaults were chosen on, ``KEPT_ASIDE`` those that it was only tried on. Some
are drawn here, some come from folders that are not shipped (docs/RESULTS.md says where they are from). It knows no
model.
"""

from __future__ import annotations

import os
import string
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Part = tuple[list[Image.Image], list[str]]
"""RGB pictures and their labels."""
FONTS = Path("/usr/share/fonts/truetype")  # Debian: fonts-dejavu, fonts-liberation
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MOST_DOTS, SIDE = 6, 64
FOUR = ("sit", "sitdown", "stand", "standup")
PAIR = ("sitdown", "standup")


@dataclass(frozen=True)
class Set:
    """``pictures`` gives training and held-out examples of a folder of data; a set of clips names ``actions``."""

    name: str
    about: str
    pictures: Callable[[Path], tuple[Part, Part]] | None = None
    actions: tuple[str, ...] = ()

    def write(self, data: Path, folder: Path) -> None:
        """As ``adaptserve train`` reads it: ``folder/{train,val}/CLASS/FILE``."""
        if self.pictures is None:
            for source in sorted((data / "thermal_actions").glob("*/*/*.mp4")):
                part, action = source.parts[-3:-1]
                if action in self.actions:
                    target = folder / part / action / source.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to(source.resolve())
            return
        for part, (items, labels) in zip(("train", "val"), self.pictures(data), strict=True):
            for number, (picture, label) in enumerate(zip(items, labels, strict=True)):
                target = folder / part / label / f"{number:05}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                picture.save(target)


def _split(items: list[Image.Image], labels: list[str], train: NDArray[np.bool_]) -> tuple[Part, Part]:
    parts = []
    for wanted in (True, False):
        chosen = np.flatnonzero(train == wanted)
        parts.append(([items[i] for i in chosen], [labels[i] for i in chosen]))
    return parts[0], parts[1]


def digits(_data: Path, train: int = 1000) -> tuple[Part, Part]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    items = [Image.fromarray(_scan(scan)).convert("RGB") for scan in bunch.images]
    order = np.random.default_rng(0).permutation(len(items))
    return _split(items, [str(d) for d in bunch.target], np.isin(np.arange(len(items)), order[:train]))


def _scan(scan: NDArray[np.float64]) -> NDArray[np.uint8]:
    grey: NDArray[np.uint8] = np.round(scan * (255 / 16)).astype(np.uint8)
    return grey


def _cifar(data: Path, part: str, classes: tuple[str, ...], each: int, seed: int) -> Part:
    random, items, labels = np.random.default_rng(seed), [], []
    for name in classes:
        paths = sorted((data / "cifar10" / part / name).iterdir())
        for index in random.permutation(len(paths))[:each]:
            with Image.open(paths[index]) as picture:
                items.append(picture.convert("RGB"))
            labels.append(name)
    return items, labels


def photographs(
    data: Path, classes: tuple[str, ...] = CIFAR, train: int = 100, held_out: int = 100
) -> tuple[Part, Part]:
    """So many of each class."""
    return _cifar(data, "train", classes, train, seed=11), _cifar(data, "test", classes, held_out, seed=11)


def rotations(data: Path) -> tuple[Part, Part]:
    parts: list[Part] = []
    for part in ("train", "test"):
        items, _ = _cifar(data, part, ("horse", "ship", "truck"), 320, seed=12)
        turns = [90 * (n % 4) for n in range(len(items))]
        parts.append(([p.rotate(turn) for p, turn in zip(items, turns, strict=True)], [str(turn) for turn in turns]))
    return parts[0], parts[1]


def signs(data: Path) -> tuple[Part, Part]:
    items, labels = [], []
    for path in sorted((data / "sign_digits").glob("*/*.JPG")):
        with Image.open(path) as picture:
            items.append(picture.convert("RGB"))
        labels.append(path.parent.name)
    train = np.ones(len(items), bool)
    train[np.random.default_rng(0).permutation(len(items))[: len(items) // 5]] = False
    return _split(items, labels, train)


def letters(_data: Path) -> tuple[Part, Part]:
    """At random places, sizes and colours; every second font is held out."""
    fonts = [p for p in sorted(FONTS.rglob("*.ttf")) if p.name.startswith(("DejaVuS", "Liberation"))]
    random, parts = np.random.default_rng(3), []
    for chosen, each in ((fonts[::2], 40), (fonts[1::2], 20)):
        items, labels = [], []
        for letter in string.ascii_uppercase:
            for _ in range(each):
                dark, light = random.integers(0, 100, 3).tolist(), random.integers(156, 256, 3).tolist()
                ground, ink = (dark, light) if random.random() < 0.5 else (light, dark)
                canvas = Image.new("RGB", (SIDE, SIDE), tuple(ground))
                font = ImageFont.truetype(str(chosen[random.integers(len(chosen))]), int(random.integers(36, 52)))
                place = tuple(random.integers(0, 20, 2).tolist())
                ImageDraw.Draw(canvas).text(place, letter, tuple(ink), font)
                items.append(canvas)
                labels.append(letter)
        parts.append((items, labels))
    return parts[0], parts[1]


def dots(_data: Path) -> tuple[Part, Part]:
    """Of one colour on another, in cells of a grid."""
    random, parts = np.random.default_rng(4), []
    for _ in range(2):
        items, labels = [], []
        for n in range(600):
            count = 1 + n % MOST_DOTS
            canvas = Image.new("RGB", (SIDE, SIDE), tuple(random.integers(0, 128, 3).tolist()))
            colour = tuple(random.integers(128, 256, 3).tolist())
            for cell in random.permutation(16)[:count]:
                x, y = 16 * (cell % 4) + random.integers(2, 6), 16 * (cell // 4) + random.integers(2, 6)
                ImageDraw.Draw(canvas).ellipse((x, y, x + 8, y + 8), colour)
            items.append(canvas)
            labels.append(str(count))
        parts.append((items, labels))
    return parts[0], parts[1]


def digits_on_photographs(data: Path, train: int = 1000) -> tuple[Part, Part]:
    """In a colour of its own, twice as large as scanned."""
    from sklearn.datasets import load_digits

    bunch, random = load_digits(), np.random.default_rng(5)
    grounds, _ = _cifar(data, "train", CIFAR, 180, seed=13)
    made, labels = [], []
    for place, index in enumerate(random.permutation(len(bunch.images))):
        mask = Image.fromarray(_scan(bunch.images[index])).resize(grounds[place].size, Image.Resampling.BICUBIC)
        ink = Image.new("RGB", mask.size, tuple(random.integers(0, 256, 3).tolist()))
        made.append(Image.composite(ink, grounds[place], mask))
        labels.append(str(bunch.target[index]))
    return _split(made, labels, np.arange(len(made)) < train)


CHOSEN_ON = (
    Set("digits", "scikit-learn's scans of handwritten digits", digits),
    Set("photographs", "CIFAR-10", photographs),
    Set("signs", "Sign-Language-Digits", signs),
    Set("letters", "capitals in fonts that were not trained on", letters),
    Set("rotations", "how far a photograph was turned", rotations),
    Set("four actions", "sit, sitdown, stand, standup: thermal clips, by person", actions=FOUR),
)
KEPT_ASIDE = (
    Set("cat or dog", "CIFAR-10", partial(photographs, classes=("cat", "dog"), held_out=500)),
    Set("few photographs", "CIFAR-10, ten of each class", partial(photographs, train=10)),
    Set("dots", "how many there are, one to six", dots),
    Set("digits on photographs", "the scans over CIFAR-10", digits_on_photographs),
    Set("down or up", "sitdown, standup: thermal clips, by person", actions=PAIR),
)
ALL = CHOSEN_ON + KEPT_ASIDE
SEVEN = Set("seven actions", "of people in thermal clips, by person", actions=(*FOUR, "fall", "lie", "walk"))


def written(name: str, data: Path) -> Path:
    """The set as a folder, from the unpacked archives in ``data``; written once."""
    chosen = next(each for each in (*ALL, SEVEN) if each.name == name)
    folder = data / "written" / name.replace(" ", "_")
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part{os.getpid()}")
        chosen.write(data, part)
        part.rename(folder)
    return folder


def unpack(archives: Path, folder: Path) -> None:
    """The data's archives into a folder, once."""
    for name, target in (("cifar10.tar.xz", "cifar10"), ("sign_digits.tar", "."), ("thermal_actions.tar", ".")):
        mark = folder / f".{name}"
        if not mark.exists():
            with tarfile.open(archives / name) as archive:
                archive.extractall(folder / target, filter="data")
            mark.touch()
