"""What every importer needs: labels, preprocessing, residuals of uneven rank as one site, and the checked write.

It does not know any foreign format.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ValidationError
from torch import Tensor

from adapters.config import (
    MAX_CLASSES,
    MAX_FRAMES,
    MAX_RANK,
    Activation,
    AdapterConfig,
    BaseModelConfig,
    InputConfig,
    Norm,
    Pool,
    SiteConfig,
    SiteName,
    Tokens,
    VideoConfig,
)
from adapters.errors import ImportRefused
from adapters.file import write_adapter
from adapters.layout import Layout

MAX_SOURCE_BYTES = 16 * 2**30
"""A checkpoint of ViT-H with its optimizer has about 5 GB."""
MAX_LABEL_FILE_BYTES = 32 * 2**20
Model = TypeVar("Model", bound=BaseModel)


class Imported(NamedTuple):
    """An adapter's config and tensors, and what its importer took for granted, a sentence each, to be shown."""

    config: AdapterConfig
    tensors: dict[str, Tensor]
    granted: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImportTerms:
    """What a foreign file does not tell: the task's name, its labels, and preprocessing other than the base's.

    ``preprocessing`` holds fields of InputConfig, such as ``mean``; those that are None count as not given.
    """

    task: str
    labels: tuple[str, ...]
    preprocessing: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Residual:
    """One block's low-rank residual: ``down`` (rank, width in), ``up`` (width out, rank), and their biases.

    ``time`` (rank, 1, 3) mixes over the frames of a clip.

    Raises ImportRefused if they do not agree on a rank.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    time: Tensor | None = None

    def __post_init__(self) -> None:
        rank = self.down_bias.shape
        whole = (self.down.ndim, self.up.ndim, self.down_bias.ndim) == (2, 2, 1)
        if not whole or self.down.shape[:1] != rank or self.up.shape[1:] != rank:
            raise ImportRefused(
                f"an adapter's tensors do not fit together: down {_shown(self.down.shape)}, its bias {_shown(rank)}, "
                f"up {_shown(self.up.shape)}; expected rank x width, rank, width x rank",
            )

    def padded(self, rank: int) -> dict[str, Tensor]:
        """The tensors at a rank that is not smaller; exact, since the new columns of ``up`` are zero."""
        more = rank - self.down.shape[0]
        tensors = {
            "down.weight": F.pad(self.down, (0, 0, 0, more)),
            "down.bias": F.pad(self.down_bias, (0, more)),
            "up.weight": F.pad(self.up, (0, more)),
            "up.bias": self.up_bias,
        }
        if self.time is not None:
            tensors["time.weight"] = F.pad(self.time, (0, 0, 0, 0, 0, more))
        return tensors


def read_state(path: Path, saved: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors under 'model' of a checkpoint and all that it holds, read by torch's restricted unpickler.

    ``saved`` says who saves such files. Raises ImportRefused, OSError.
    """
    content = load_plain(path)
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise ImportRefused(f"{path.name} has no 'model' entry; expected what {saved}", field="model")
    if not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()):
        raise ImportRefused(f"the 'model' entry of {path.name} holds more than named tensors", field="model")
    return state, content


def load_plain(path: Path, also: Sequence[Any] = ()) -> Any:
    """Whatever plain tensors and values a checkpoint of torch holds; code in it is not run.

    ``also``: harmless classes that may be made, or pairs of one and the name that the file has for it.

    Raises ImportRefused, OSError.
    """
    size = path.stat().st_size
    if size > MAX_SOURCE_BYTES:
        raise ImportRefused(f"{path.name} has {size} bytes, the limit is {MAX_SOURCE_BYTES}",
                            limit=MAX_SOURCE_BYTES, value=size)  # fmt: skip
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *also]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and more: it cannot be read
        first = str(error).strip().splitlines()[0][:160] if str(error).strip() else ""
        raise ImportRefused(
            f"{path.name} cannot be read as a checkpoint of plain tensors ({type(error).__name__}: {first})"
        ) from error


def read_labels(path: Path, classes: int) -> tuple[str, ...]:
    """Class names in the order of the head's rows: one a line, a JSON list, or ``id2label`` of a JSON object.

    The last is a ``config.json`` of transformers. Raises ImportRefused, OSError.
    """
    size = path.stat().st_size
    if size > MAX_LABEL_FILE_BYTES:
        raise ImportRefused(
            f"the labels file has {size} bytes, the limit is {MAX_LABEL_FILE_BYTES}",
            field="labels", limit=MAX_LABEL_FILE_BYTES, value=size,
        )  # fmt: skip
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
        labels = json.loads(text) if text[:1] in "[{" and text else [line.strip() for line in text.splitlines()]
        if isinstance(labels, dict):
            labels = labels_by_number(labels.get("id2label"))
    except (ValueError, RecursionError) as error:
        raise ImportRefused(
            f"labels file {path.name} is neither lines of UTF-8 nor a JSON list ({error})", field="labels"
        ) from error
    if not all(isinstance(label, str) and label for label in labels):
        raise ImportRefused(f"labels file {path.name} must hold a name for every class, and no empty one; "
                            "write one a line, or a JSON list of strings", field="labels")  # fmt: skip
    check_labels(labels, classes, f"labels file {path.name}")
    return tuple(labels)


def labels_by_number(id2label: object) -> list[object]:
    """The values of a mapping from numbers, as JSON writes them, in the numbers' order. Raises ValueError."""
    if not isinstance(id2label, dict):
        raise ValueError("it has no id2label")
    numbered = {int(number): label for number, label in id2label.items()}
    if sorted(numbered) != list(range(len(numbered))):
        raise ValueError("its id2label leaves out numbers")
    return [numbered[number] for number in range(len(numbered))]


def check_labels(labels: Sized, classes: int, whose: str) -> None:
    """Raise ImportRefused unless there are as many labels as classes; ``whose`` begins the sentence."""
    if len(labels) != classes:
        raise ImportRefused(
            f"{whose} has {len(labels)} labels, the head has {classes} classes; "
            "give one label per class, in the order of training",
            field="labels", expected=classes, got=len(labels),
        )  # fmt: skip


def check_head(weight: Tensor, bias: Tensor) -> None:
    """Raise ImportRefused unless they are (classes, width) and (classes,)."""
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ImportRefused(
            f"the head's weight {_shown(weight.shape)} and bias {_shown(bias.shape)} do not fit together; "
            "expected classes x width and classes", tensor="head.weight",
        )  # fmt: skip


def site_of(
    site: SiteName, residuals: Mapping[int, Residual], *, act: Activation, scale: float, tokens: Tokens = "all"
) -> tuple[SiteConfig, dict[str, Tensor]]:
    """Residuals by block -> one site of the largest rank among them, and its tensors. Raises ImportRefused."""
    rank = max(r.down.shape[0] for r in residuals.values())
    fields = {
        "site": site, "blocks": tuple(sorted(residuals)), "rank": rank, "act": act, "scale": scale, "tokens": tokens,
        "temporal": any(residual.time is not None for residual in residuals.values()),
    }  # fmt: skip
    tensors = {f"{site}.{b}.{name}": t for b, r in residuals.items() for name, t in r.padded(rank).items()}
    return validated(SiteConfig, fields), tensors


def config_of(
    terms: ImportTerms,
    layout: Layout,
    base_input: InputConfig,
    sites: tuple[SiteConfig, ...],
    *,
    pool: Pool,
    norm: Norm,
    training: Mapping[str, object],
    video: VideoConfig | None = None,
    score: Literal["softmax", "sigmoid"] = "softmax",
) -> AdapterConfig:
    """The config of an imported adapter, of pictures unless there is ``video``.

    Raises ImportRefused where a value is not allowed in one.
    """
    given = {name: value for name, value in terms.preprocessing.items() if value is not None}
    fields = {
        "task": terms.task,
        "modality": "video" if video else "image",
        "video": video,
        "labels": terms.labels,
        "score": score,
        "base": BaseModelConfig(model=layout.model, fingerprint=layout.fingerprint),
        "sites": sites,
        "pool": pool,
        "norm": norm,
        "input": validated(InputConfig, base_input.model_dump() | given),
        "training": {**training, "backbone_parameters": layout.parameters},
    }
    return validated(AdapterConfig, fields)


def save(path: Path, imported: Imported, layout: Layout) -> str:
    """Check everything that a server will check, then write atomically. Returns the digest.

    Raises ImportRefused for a missing, superfluous, misshapen or not finite tensor, and the errors of Layout.check.
    """
    config, tensors, _ = imported
    layout.check(config, max_rank=MAX_RANK, max_classes=MAX_CLASSES, max_frames=MAX_FRAMES)
    wanted = layout.tensors(config)
    for name in sorted(wanted.keys() | tensors.keys()):
        expected = wanted.get(name)
        got = tuple(tensors[name].shape) if name in tensors else None
        if expected != got:
            raise ImportRefused(
                f"tensor {name} has shape {_shown(got)}, {layout.model} needs {_shown(expected)}; "
                "the file belongs to another architecture",
                tensor=name, expected=expected, got=got,
            )  # fmt: skip
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ImportRefused(f"tensor {name} holds values that are NaN or infinite", tensor=name)
    return write_adapter(path, config, {name: t.float() for name, t in tensors.items()})


def _shown(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape)) if shape is not None else "none"


def validated(kind: type[Model], fields: dict[str, Any]) -> Model:
    """Raises ImportRefused where a value is not allowed."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "config"
        raise ImportRefused(
            f"'{where}' cannot be {repr(first.get('input'))[:80]}: {first['msg']}", field=where
        ) from error
