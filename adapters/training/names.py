"""What names say in a data set: parts such as ``train`` and ``valid``, labels, and files that are no data.

It opens nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from adapters.config import MAX_LABEL_CHARS
from adapters.errors import TrainingError

Method = Literal["adaptformer", "lora", "st-adapter", "linear", "vpt", "full"]
Part = Literal["train", "val", "test"]
"""What a split is made of: to train on, to hold out, and to leave alone where ``val`` is held out."""
_PARTS: dict[str, Part] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "validate": "val", "dev": "val", "eval": "val",
    "evaluation": "val", "holdout": "val", "test": "test", "testing": "test", "tests": "test",
}  # fmt: skip
_WORDS = "|".join(sorted(_PARTS, key=len, reverse=True))
_PART = re.compile(rf"({_WORDS})(?:[-_ .]?(?:set|data|dataset|split|images|imgs|pictures|photos|videos|clips))?")
_NUMBERED = re.compile(rf"(?:{_WORDS})[-_ .]?(?:\d+|[a-z])|k?(?:folds?|splits?)[-_ .]?\d+")
_WITHIN = re.compile(rf"(.*[-_ .])?({_WORDS})([-_ .].*)?")
_FOLD = re.compile(r"(?:.*[-_ .])?(?:k?folds?|splits?|cv|subsets?|partitions?|parts?)[-_ .]?\w?\d*")
_NO_DATA = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information",
    "lost+found", "__pycache__",
}  # fmt: skip
_JOINERS = dict.fromkeys((0x200C, 0x200D))
"""Characters that are not seen and tell how those beside them look."""
_OURS = re.compile(r"\.safetensors(?:\.\w+)?(?:\.(?:report|resume))?$")


def part_of(name: str) -> Part | None:
    """``Train``, ``valid``, ``TEST_SET`` and alike; None for any other name."""
    match = _PART.fullmatch(unicodedata.normalize("NFC", name).strip().casefold())
    return _PARTS[match[1]] if match else None


def like_parts(names: Sequence[str], *, folds: bool) -> bool:
    """Whether names look like those of a split's parts: ``train1`` and ``train2``, ``seg_train`` and ``seg_test``.

    ``folds``: also ``part1`` and ``subset_b``. ``bullet_train`` and ``steam_train`` are no parts.
    """
    plain = [name.strip().casefold() for name in names]
    if len(plain) > 1 and all(part_of(n) or _NUMBERED.fullmatch(n) or (folds and _FOLD.fullmatch(n)) for n in plain):
        return True
    found: dict[tuple[str | None, str | None], set[Part]] = defaultdict(set)
    for name in plain:
        if match := _WITHIN.fullmatch(name):
            found[match[1], match[3]].add(_PARTS[match[2]])
    return any(len(parts) > 1 for parts in found.values())


def is_no_data(name: str) -> bool:
    """Hidden files, and what systems leave in folders that people look at or pack."""
    return name.startswith(".") or name.strip().casefold() in _NO_DATA


def is_ours(name: str) -> bool:
    """What `adaptserve train` writes, which may lie among the data."""
    return bool(_OURS.search(name))


def label_of(text: str, where: str) -> str:
    """A label in one Unicode form (NFC), without space around it. Raises TrainingError for one that cannot be shown."""
    label = unicodedata.normalize("NFC", text).strip()
    if not 1 <= len(label) <= MAX_LABEL_CHARS:
        raise TrainingError(
            f"{where[:120]}: the label has {len(label)} characters, expected 1 to {MAX_LABEL_CHARS}; shorten it",
            field="label", limit=MAX_LABEL_CHARS, value=len(label),
        )  # fmt: skip
    seen = label.translate(_JOINERS)  # within words of Persian and Hindi, and within families of emoji
    if not seen.strip() or not seen.isprintable():  # so is no byte of a folder's name that is not UTF-8
        raise TrainingError(f"{where[:120]!r}: the label has characters that cannot be shown; rename it", field="label")
    return label
