"""The report beside an adapter file: ``index.html``, one page for people, and ``metrics.json``, every answer.

It knows what was measured; it computes nothing but counts of it, and knows no model.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from adapters.atomic import replacing
from adapters.config import AdapterConfig
from adapters.training.data import BadFile
from adapters.training.decoding import MediaExamples
from adapters.training.page import ClassScore, Mistake, page
from adapters.training.score import Recalls, Scored

WORST = 12
"""Mistakes that are shown as pictures, those first that the adapter was surest of."""
STRIP_FRAMES = 8
THUMBNAIL = 96


def write_report(
    folder: Path,
    config: AdapterConfig,
    digest: str,
    examples: Sequence[Scored],
    data: tuple[MediaExamples, MediaExamples],
    bad: Sequence[BadFile],
) -> None:
    """Write both files; ``data`` is what was trained on and what was held out, ``examples`` are the latter's.

    Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained_on, held_out = data
    classes = _classes(config.labels, trained_on, examples)
    confusion = Counter((e.label, e.predicted) for e in examples)
    metrics = {
        "task": config.task,
        "digest": digest or None,
        "labels": list(config.labels),
        "training": config.training,
        "classes": [asdict(line) | {"recall": line.recall} for line in classes],
        "held_out": [asdict(e) | {"correct": e.label == e.predicted} for e in examples],
        "bad_files": [asdict(b) for b in bad],
    }
    _write(folder / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    _write(folder / "index.html", page(config, digest, confusion, classes, _worst(examples, held_out), bad))


def _classes(labels: Sequence[str], trained_on: MediaExamples, examples: Sequence[Scored]) -> list[ClassScore]:
    counts = Counter(e.label for e in trained_on.examples)
    found = Recalls.of((e.label, e.predicted) for e in examples).found
    return [ClassScore(label, counts[label], *reversed(found.get(label, (0, 0)))) for label in labels]


def _worst(examples: Sequence[Scored], data: MediaExamples) -> list[Mistake]:
    """The mistakes with the highest score for the wrong label."""
    wrong = [(i, e) for i, e in enumerate(examples) if e.label != e.predicted]
    wrong.sort(key=lambda pair: -pair[1].scores[pair[1].predicted])
    return [Mistake(e, _picture(data, i)) for i, e in wrong[:WORST]]


def _picture(data: MediaExamples, index: int) -> str:
    """What the adapter saw, as PNG in a data URI; a clip as a strip of its frames."""
    frames = data[index][0][:STRIP_FRAMES]
    strip = frames.permute(2, 0, 3, 1).flatten(1, 2).numpy()  # height, frames side by side, colour
    picture = Image.fromarray(strip)
    width = max(1, round(THUMBNAIL * picture.width / picture.height))
    picture = picture.resize((width, THUMBNAIL), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    with replacing(path, mode=0o644) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
